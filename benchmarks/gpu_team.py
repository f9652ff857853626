"""Contenders of `benchmarks.gpu`, each in a process of its own, that take turns."""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
from collections.abc import Callable, Iterable, Iterator

from benchmarks import gpu_contenders


def serve(connection, contender: str, arguments: dict) -> None:
    """Makes a contender, then answers requests (method, arguments)."""

    def attempt(work: Callable[..., dict], **options) -> dict:
        try:
            return work(**options)
        except Exception as error:  # Out of memory, a missing compiler: a line, and on.
            return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:600]}

    made: list = []

    def make(**options) -> dict:
        made.append(getattr(gpu_contenders, contender)(**options))
        return {}

    connection.send(attempt(make, **arguments))
    while made and (request := connection.recv()) is not None:
        method, options = request
        connection.send(attempt(getattr(made[0], method), **options))


class Worker:
    """A contender in a process of its own; it works only when asked."""

    def __init__(self, contender: str, **arguments):
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        self.process = context.Process(target=serve, args=(there, contender, arguments))
        self.process.start()
        there.close()

    def answer(self) -> dict:
        """Waits for the answer to what was asked.

        Raises:
          RuntimeError: where the contender failed.
        """
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            answer = {"error": f"the process ended: {self.process.exitcode}"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def send(self, method: str, **arguments) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.connection.send((method, arguments))

    def ask(self, method: str, **arguments) -> dict:
        self.send(method, **arguments)
        return self.answer()

    def end(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(None)
        self.process.join(10)
        self.process.kill()


class Team:
    """Contenders by name; what one fails at is a line, and the others go on."""

    def __init__(self, report: Callable[..., None], workers: dict[str, Worker]):
        self.report, self.workers = report, workers
        made = self.each("made", workers, lambda worker: worker.answer())
        for name in workers.keys() - made.keys():
            workers.pop(name).end()

    def each(
        self, doing: str, names: Iterable[str], work: Callable[[Worker], dict]
    ) -> dict[str, dict]:
        """Returns what each answers, without those that fail."""
        found = {}
        for name in list(names):
            try:
                found[name] = work(self.workers[name])
            except RuntimeError as error:
                self.report(contender=name, failed=doing, error=str(error))
        return found

    def together(self, method: str, **arguments) -> dict[str, dict]:
        """Asks all at once: compilers share the processor well."""
        for worker in self.workers.values():
            worker.send(method, **arguments)
        return self.each(method, self.workers, lambda worker: worker.answer())

    def rounds(self, names: Iterable[str], rounds: int, **arguments) -> dict[str, dict]:
        """Returns the median, least and most seconds of contenders that take turns."""
        found: dict[str, list] = {name: [] for name in names}
        for _ in range(rounds):
            turn = self.each(
                "run", found, lambda worker: worker.ask("run", **arguments)
            )
            found = {name: [*found[name], answer] for name, answer in turn.items()}
        result = {}
        for name, answers in found.items():
            seconds = [answer["seconds"] for answer in answers]
            result[name] = answers[-1] | {
                "seconds": statistics.median(seconds),
                "least": min(seconds),
                "most": max(seconds),
            }
        return result

    def end(self) -> None:
        for worker in self.workers.values():
            worker.end()


@contextlib.contextmanager
def team(report: Callable[..., None], **contenders: tuple) -> Iterator[Team]:
    """Starts (class, arguments) by name, all at once, and ends them."""
    made = Team(report, {n: Worker(c, **a) for n, (c, a) in contenders.items()})
    try:
        yield made
    finally:
        made.end()
