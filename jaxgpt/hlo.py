"""What a compiled program sends between chips, read from its text.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it
runs.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "s4": 4, "u4": 4}
COMPUTATION = re.compile(r"^(?:ENTRY\s+)?%?([\w.\-]+)\s*\(.*\{\s*$")
OPERATION = re.compile(
    r"^\s+(?:ROOT\s+)?%?[\w.\-]+ = (.*?) "
    rf"({'|'.join(KINDS)})(-start)?\("
)
CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation|"
    r"async_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}"
)
TURNS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
SHAPE = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")


@dataclasses.dataclass
class Traffic:
    """All collectives of one kind in a step: how many, and bytes each chip sends."""

    count: int = 0
    bytes: float = 0.0


def collectives(text: str) -> dict[str, Traffic]:
    """Returns {kind: traffic of one run of the program} of a program's text.

    A ring is assumed: of n chips each sends (n - 1) / n of the array gathered or
    scattered, and twice that of one reduced everywhere.
    """
    own: dict[str, list[tuple[str, float]]] = collections.defaultdict(list)
    calls: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
    entry = name = ""
    for line in text.splitlines():
        begins = COMPUTATION.match(line)
        if begins:
            name = begins.group(1)
            entry = name if line.startswith("ENTRY") else entry
            continue
        operation = OPERATION.match(line)
        if operation:
            shape, kind, start = operation.groups()
            sizes = _sizes(shape)
            # What starts asynchronously returns its operand beside its result.
            size = max(sizes, default=0) if start else sum(sizes)
            own[name].append((kind, _sent(kind, size, _members(line))))
        turns = TURNS.search(line)
        for one, many in CALLED.findall(line):
            for called in [one] if one else re.findall(r"[\w.\-]+", many):
                # The condition of a loop runs too, but nothing is sent there.
                calls[name].append((called, int(turns.group(1)) if turns else 1))
    found: dict[str, Traffic] = {}
    for place, times in _times(entry, calls).items():
        for kind, sent in own[place]:
            traffic = found.setdefault(kind, Traffic())
            traffic.count += times
            traffic.bytes += times * sent
    return found


def _times(entry: str, calls: dict[str, list[tuple[str, int]]]) -> dict[str, int]:
    """Returns how often each computation runs; the calls have no cycles."""
    times: dict[str, int] = collections.defaultdict(int)

    def visit(name: str, count: int) -> None:
        times[name] += count
        for called, turns in calls[name]:
            visit(called, count * turns)

    visit(entry, 1)
    return dict(times)


def _sizes(shape: str) -> list[float]:
    """Returns the bytes of each array in a shape, which may be a tuple."""
    return [
        math.prod(int(n) for n in dims.split(",") if n) * _bits(kind) / 8
        for kind, dims in SHAPE.findall(shape)
    ]


def _bits(kind: str) -> int:
    digits = re.search(r"\d+", kind)
    return BITS.get(kind, int(digits.group()) if digits else 0)


def _members(line: str) -> int:
    """Returns how many chips take part: {{0,1},{2,3}} and [2,2]<=[4] have two."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return listed.group(1).count(",") + 1
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    return int(counted.group(1)) if counted else 2


def _sent(kind: str, size: float, members: int) -> float:
    share = (members - 1) / members
    if kind == "all-reduce":
        return 2 * share * size
    if kind == "reduce-scatter":
        return share * size * members
    return size if kind == "collective-permute" else share * size
