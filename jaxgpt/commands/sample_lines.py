"""Generates from a file of prompts and templates into a file: a JSON object a line.

Until it is complete the output is in OUTPUT.partial: the same command resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

from jaxgpt import cli
from jaxgpt.config import user_path
from jaxgpt.errors import UserError, atomic_path, log, os_errors, require
from jaxgpt.inference import Run
from jaxgpt.parallel import lock
from jaxgpt.sampling.options import SamplingOptions, check_ranges
from jaxgpt.sampling.output import Sample
from jaxgpt.sampling.state import SamplingParams
from jaxgpt.systems.batches import Row
from jaxgpt.systems.reader import Given
from jaxgpt.training.checkpoint import json_digest
from jaxgpt.training.progress import counting

# What a line of the input may have, and the type of each.
FIELDS = {
    "prompt": str,
    "template": str,
    "max_new_tokens": int,
    "seed": int,
    "num_samples": int,
}
# Which options are for lines that do not say otherwise.
DEFAULTS = ("max_new_tokens", "seed", "num_samples")


class Request(NamedTuple):
    """A line of the input."""

    given: Given
    seed: int
    num_samples: int

    def rows(self) -> Iterator[Row]:
        """Yields a row for each sample."""
        for number in range(self.num_samples):
            yield Row(self.given.tokens, self.given.known, self.seed, number)


def execute(run: Run, args: argparse.Namespace, sampling: SamplingParams) -> None:
    """Reads --input, and writes --output.

    Raises:
      UserError: for an invalid line, before anything is generated.
    """
    output = cli.output_path("output", args.output)
    if output.exists():
        raise UserError(f"--output '{args.output}' exists: name a new file")
    with os_errors(f"--input='{args.input}'"):
        content = user_path(args.input).read_bytes()
    requests = read_requests(run, args, content, sampling)
    partial = output.with_name(f"{output.name}.partial")
    rows = [row for request in requests for row in request.rows()]
    # For all lines, so that a resumed call settles on what the first one did.
    sampling = run.system.settle(run.params, rows, sampling)
    names = [*SamplingOptions.__annotations__, *DEFAULTS, "stop", "special_tokens"]
    options = {name: getattr(args, name) for name in names}
    options["sampler"] = sampling.sampler
    header = json_digest(
        [run.fingerprint, options, hashlib.sha256(content).hexdigest()]
    )
    began = time.perf_counter()
    locked = lock.hold(
        output.with_name(f".{output.name}.lock"),
        f"--output='{args.output}'",
        "written",
        "wait for it",
    )
    with os_errors(f"--output='{args.output}'"), locked:
        done = _finished_lines(partial, header, args.output)
        if done:
            log(f"{done:,} of {len(requests):,} lines are done: resuming")
        with (
            counting("lines", len(requests), done) as show,
            open(partial, "a", encoding="utf-8") as stream,
        ):
            if not stream.tell():
                stream.write(json.dumps({"digest": header}) + "\n")
            for count in _generate(run, requests[done:], sampling, args.stop, stream):
                show(done + count)
        with (
            atomic_path(output) as temporary,
            open(partial, "rb") as source,
            open(temporary, "wb") as target,
        ):
            source.readline()
            target.writelines(source)
        partial.unlink()
    figures = {
        "output": args.output,
        "lines": len(requests),
        "samples": sum(request.num_samples for request in requests),
        "seconds": time.perf_counter() - began,
    }
    if args.json:
        cli.print_json(figures)
    else:
        print(
            f"{figures['samples']:,} samples for {figures['lines']:,} lines in "
            f"{args.output}, {figures['seconds']:.2f} s, compilation included"
        )


def read_requests(
    run: Run, args: argparse.Namespace, content: bytes, sampling: SamplingParams
) -> list[Request]:
    """Reads the lines of the input; empty ones are refused.

    Raises:
      UserError: naming the line, and what is wrong with it.
    """
    requests = []
    notes = set()
    # Not splitlines, which also splits at characters that may occur in JSON.
    lines = content.removesuffix(b"\n").split(b"\n") if content.strip() else []
    require(bool(lines), f"--input='{args.input}'", "a JSON object a line", "nothing")
    for number, line in enumerate(lines, 1):
        try:
            requests.append(_read_line(run, args, line))
            given = requests[-1].given
            run.system.check_given(given.tokens, given.known, sampling)
        except UserError as error:
            raise UserError(f"--input='{args.input}', line {number}: {error}") from None
        notes.add(requests[-1].given.note)
    for note in sorted(notes - {""}):
        log(f"note: {note}")
    return requests


def _read_line(run: Run, args: argparse.Namespace, line: bytes) -> Request:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}") from None
    if not isinstance(fields, Mapping):
        raise UserError(f"must be an object like {{'prompt': 'ROMEO:'}}, got {fields}")
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise UserError(f"unknown '{unknown[0]}': a line has {', '.join(FIELDS)}")
    for name, value in fields.items():
        kind = FIELDS[name]
        fits = isinstance(value, kind) and not isinstance(value, bool)
        require(fits, name, "a text" if kind is str else "an integer", value)
    if ("prompt" in fields) == ("template" in fields):
        raise UserError("give one of prompt and template")
    given = {name: fields.get(name, getattr(args, name)) for name in DEFAULTS}
    check_ranges(given)
    special = args.special_tokens
    if "template" in fields:
        if "max_new_tokens" in fields:
            raise UserError("max_new_tokens is for prompts: gaps set their lengths")
        if args.stop:
            raise UserError("--stop is for prompts: gaps set their lengths")
        start = run.reader.template(fields["template"], special)
    else:
        new = given["max_new_tokens"]
        start = run.reader.prompt(fields["prompt"], new, special)
    return Request(start, given["seed"], given["num_samples"])


def _finished_lines(partial: pathlib.Path, header: str, output: str) -> int:
    """Returns how many lines an earlier call has left; cuts off an incomplete one.

    Raises:
      UserError: if its run, input or options differ.
    """
    if not partial.exists():
        return 0
    with open(partial, "r+b") as stream:
        first = stream.readline()
        if not first.endswith(b"\n"):  # Stopped before the first line was complete.
            stream.truncate(0)
            return 0
        found = None
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found = json.loads(first)["digest"]
        if found != header:
            raise UserError(
                f"'{partial}' is from another run, input or options: delete it, or "
                f"name another --output than '{output}'"
            )
        lines, end = 0, stream.tell()
        for line in stream:
            if line.endswith(b"\n"):
                lines, end = lines + 1, end + len(line)
        stream.truncate(end)
    return lines


def _generate(
    run: Run,
    requests: list[Request],
    sampling: SamplingParams,
    stop: str,
    stream: IO[str],
) -> Iterator[int]:
    """Writes a line for each request once all its samples are done; yields how many."""
    rows = [row for request in requests for row in request.rows()]
    waiting = iter(requests)
    found: list[Sample] = []
    count = 0
    request = next(waiting, None)
    for part, output in run.fill_rows(rows, sampling, stop) if rows else ():
        found += run.read_output(output, [row.known for row in part], stop)
        while request and len(found) >= request.num_samples:
            own, found = found[: request.num_samples], found[request.num_samples :]
            objects = [_to_json(sample) for sample in own]
            line = objects[0] if len(own) == 1 else {"samples": objects}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            count, request = count + 1, next(waiting, None)
        stream.flush()
        yield count


def _to_json(sample: Sample) -> dict[str, Any]:
    return {
        "text": sample.text,
        "tokens": sample.tokens.tolist(),
        "log_prob": sample.log_prob,
        "num_forward_passes": sample.num_forward_passes,
    }
