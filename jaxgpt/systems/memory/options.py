"""--memory, --document, --explain and --forget of jaxgpt.sample."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jaxgpt.config import user_path
from jaxgpt.errors import UserError, log, require
from jaxgpt.parallel import lock
from jaxgpt.systems.memory.config import IndexConfig
from jaxgpt.systems.memory.header import Document, peek

if TYPE_CHECKING:
    import numpy as np
    from ml_collections import ConfigDict

    from jaxgpt.data.tokenizers import Tokenizer
    from jaxgpt.sampling.state import SamplerOutput
    from jaxgpt.systems.memory.documents import Memory

# Tokens of the source shown before and after a retrieved position.
BEFORE, AFTER = 8, 3
MAX_SHOWN = 3  # Entries shown for each token.


def show(tokens_T: np.ndarray, tokenizer: Tokenizer | None) -> str:
    """Returns the text of tokens from the middle of a document."""
    return tokenizer.decode_rest(tokens_T) if tokenizer else str(tokens_T.tolist())


def excerpt(tokens_T: np.ndarray, position: int, tokenizer: Tokenizer | None) -> str:
    """Returns the text of a document around a position."""
    return show(tokens_T[max(0, position - BEFORE) : position + AFTER], tokenizer)


def add_allow_other_model(group: argparse._ActionsContainer) -> None:
    """Adds --allow_other_model."""
    group.add_argument(
        "--allow_other_model",
        action="store_true",
        help="read a --memory that other weights or another tokenizer have written, "
        "without writing to it",
    )


def overrides(config: ConfigDict, path: pathlib.Path) -> dict[str, str]:
    """Returns the settings with which a run reads a memory.

    Args:
      config: of the run; a causal one reads it in mode output.
      path: of the memory, whose size and index are kept.
    """
    found = {}
    if config.system == "causal":
        found = {"system": "memory", "memory.mode": "output"}
    elif config.system == "memory" and config.memory.reading != "on":
        found = {"memory.reading": "on"}
    if path.exists():
        header = peek(path)
        names = {field.name for field in dataclasses.fields(IndexConfig)} - {"metric"}
        kept = {name: header.index[name] for name in names & header.index.keys()}
        kept["memory_size"] = header.memory_size
        found |= {
            f"memory.{name}": str(value)
            for name, value in kept.items()
            if value != config.memory[name]
        }
    return found


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from writing a memory.

    Raises:
      UserError: if one does, or its folder cannot be written.
    """
    what, remedy = f"--memory='{path}'", "wait for it"
    file = path.resolve()  # One lock, whatever links to it.
    held = lock.hold(file.with_name(f".{file.name}.lock"), what, "written", remedy)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held)
        except OSError as error:
            raise UserError(f"{what} cannot be written: {error.strerror}") from None
        yield


def said(document: Document) -> str:
    """Returns how much of a document a memory has, as text."""
    return (
        f"'{document.name}' keeps {document.entries:,} entries of "
        f"{document.tokens:,} tokens ({document.kept:.0%})"
    )


class MemoryOptions:
    """The memory's options of jaxgpt.sample.

    Attributes:
      system: whose runs --help shows them for.
      title: of their group.
    """

    system, title = "memory", "of runs with a memory"

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Adds the options."""
        group.add_argument(
            "--memory", help="file of the memory, read if it exists, and written"
        )
        group.add_argument(
            "--document",
            type=str,
            default="",
            help="name of this text in the memory (default text N)",
        )
        group.add_argument(
            "--explain",
            action="store_true",
            help="show the entries that each token was predicted with",
        )
        group.add_argument("--forget", help="only remove this document from --memory")
        add_allow_other_model(group)

    def check(self, args: argparse.Namespace) -> None:
        """Raises UserError if they are incompatible."""
        if args.forget and not args.memory:
            raise UserError("--forget needs --memory, the file to forget it in")
        one = not args.memory or args.num_samples == 1
        remedy = "a memory reads one text"
        require(one, "--num_samples", "1 with --memory", args.num_samples, remedy)
        if args.document and not args.memory:
            raise UserError("--document names a text in --memory: add that")

    def overrides(self, config: ConfigDict, args: argparse.Namespace) -> dict[str, str]:
        """Returns the settings with which a run reads the file."""
        return overrides(config, user_path(args.memory)) if args.memory else {}

    def open(self, run: Any, args: argparse.Namespace) -> MemorySession | None:
        """Returns a session with the memory of the file, or a new one."""
        if not (args.memory or args.explain):
            return None
        if run.config.system != "memory":
            raise UserError("--memory and --explain are for runs with a memory")
        path = user_path(args.memory) if args.memory else None
        if path and args.forget and not path.exists():
            raise UserError(
                f"--memory='{path}' does not exist: there is nothing to forget"
            )
        with contextlib.ExitStack() as stack:
            if path and not args.allow_other_model:
                stack.enter_context(writing(path))
            memory = run.system.open_memory(
                path, args.num_samples, run.fingerprint, args.allow_other_model
            )
            return MemorySession(
                run,
                memory,
                None if args.allow_other_model else path,
                args.document,
                args.explain,
                args.forget,
                stack.pop_all(),
            )


@dataclasses.dataclass(frozen=True)
class MemorySession:
    """Generates in place of the system; the last fields are the options."""

    run: Any
    memory: Memory
    path: pathlib.Path | None = None
    document: str = ""
    explain: bool = False
    forget: str | None = None
    held: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    def close(self) -> None:
        """Lets others write the file."""
        self.held.close()

    def instead(self) -> tuple[dict[str, Any], str] | None:
        """Removes the document of --forget; returns what was done, as JSON and text.

        None without --forget: then a text is generated.
        """
        name = self.forget
        if not name or not self.path:
            return None
        count = self.memory.forget(name, self.run.params)
        self.memory.save(self.path)
        result = {"forgotten": count, "left": self.memory.store.size()}
        return result, f"{count} entries of '{name}' forgotten"

    def sample(
        self, *arguments: Any, shown: Callable[[np.ndarray], int]
    ) -> SamplerOutput:
        """Generates as `System.sample` with the memory, and saves it.

        Args:
          *arguments: those of `System.sample`.
          shown: how many tokens of a text [T] the user is shown: those up to --stop.
        """
        output = self.run.system.sample(
            *arguments, memory=self.memory, document=self.document, shown=shown
        )
        if self.path:
            self.memory.save(self.path)
            for document in self.memory.documents():
                if document.kept < 1 and self.run.config.memory.keep == "all":
                    log(
                        f"note: {said(document)}: raise memory.memory_size to keep more"
                    )
        return output

    def describe(self, samples, output, prompt_length, tokenizer) -> None:
        """Adds, with --explain, the entries that each token was predicted with.

        "memories" holds for each token {"token", "memories": [{"weight", "document",
        "position", "text"}]}, most used first; the text is that around the position.
        """

        def source(row, place, m):
            document = int(output.document_BTM[row, place, m])
            position = int(output.position_BTM[row, place, m])
            # The rows of a batch are one document, of which the memory has the first.
            one = len(samples) == 1
            text = self.memory.texts[document] if one else output.tokens_BT[row]
            return {
                "weight": float(output.weight_BTM[row, place, m]),
                "document": self.memory.names[document],
                "position": position,
                "text": excerpt(text, position, tokenizer),
            }

        for row, sample in enumerate(samples if self.explain else []):
            sample["memories"] = []
            for place in range(prompt_length, len(sample["tokens"])):
                order = (-output.weight_BTM[row, place]).argsort(kind="stable")
                entries = order[output.document_BTM[row, place, order] >= 0]
                found = [source(row, place, m) for m in entries[:MAX_SHOWN]]
                token = show(output.tokens_BT[row, place : place + 1], tokenizer)
                sample["memories"].append({"token": token, "memories": found})

    def show(self, sample: dict[str, Any]) -> list[str]:
        """Returns the lines to print below a text: with --explain, its entries."""
        lines = []
        for token in sample.get("memories", []):
            lines.append(repr(token["token"]))
            lines += [
                f"    {entry['weight']:.3f}  {entry['document']} at "
                f"{entry['position']}: {entry['text']!r}"
                for entry in token["memories"]
            ]
        return lines
