"""What a compiled program sends between chips, read from its HLO text.

XLA's own cost analysis counts the body of a loop once, however often it runs.
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
LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
CHANNEL = re.compile(r"channel_id=(\d+)")
SHAPE = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")


@dataclasses.dataclass
class Traffic:
    """All collectives of one kind in a step: their number, and bytes sent per chip."""

    count: int = 0
    bytes: float = 0.0


def collectives(text: str) -> dict[str, Traffic]:
    """Returns {kind: traffic} of one run of a program.

    Assumes rings: each of n chips sends (n - 1) / n of an array that is gathered or
    scattered, and twice that of one that is all-reduced.
    """
    own: dict[str, list[tuple[str, str, float]]] = collections.defaultdict(list)
    calls: dict[str, list[str]] = collections.defaultdict(list)
    conditions: dict[str, str] = {}
    limits: dict[str, int] = collections.defaultdict(int)
    starting: set[str] = set()
    entry = name = ""
    for line in text.splitlines():
        header = COMPUTATION.match(line)
        if header:
            name = header.group(1)
            entry = name if line.startswith("ENTRY") else entry
            continue
        operation = OPERATION.match(line)
        if operation:
            shape, kind, start = operation.groups()
            sizes = _sizes(shape)
            if start and kind == "all-gather":
                sizes = sizes[len(sizes) // 2 :]  # Operands come before results.
            elif start and kind == "collective-permute":
                sizes = sizes[:1]
            size = sum(sizes)
            channel = CHANNEL.search(line)
            key = channel.group(1) if channel else f"{name} {len(own[name])}"
            own[name].append((key, kind, _sent(kind, size, _members(line))))
        if '"AsyncCollectiveStart"' in line:
            starting.add(name)
        conditions |= {body: test for test, body in LOOP.findall(line)}
        limits[name] = max([limits[name], *map(int, LIMIT.findall(line))])
        for one, many in CALLED.findall(line):
            calls[name] += [one] if one else re.findall(r"[\w.\-]+", many)
    # XLA's loops count from 0 up to the constant in their condition.
    trips = {body: limits[test] or 1 for body, test in conditions.items()}
    # A TPU's asynchronous collective is in the text several times (start, steps, done),
    # all on one channel, and runs as often as it starts: its steps may be within a loop
    # that it has nothing to do with, such as an LSTM's over tokens, which hides it.
    seen: dict[str, tuple[bool, int, str, float]] = {}
    for place, times in _times(entry, calls, trips).items():
        for key, kind, sent in own[place]:
            part = (place in starting, times, kind, sent)
            seen[key] = max(seen.get(key, part), part)
    found: dict[str, Traffic] = {}
    for _, times, kind, sent in seen.values():
        traffic = found.setdefault(kind, Traffic())
        traffic.count += times
        traffic.bytes += times * sent
    return found


def _times(
    entry: str, calls: dict[str, list[str]], trips: dict[str, int]
) -> dict[str, int]:
    """Returns how often each computation runs; calls have no cycles."""
    times: dict[str, int] = collections.defaultdict(int)

    def visit(name: str, count: int) -> None:
        count *= trips.get(name, 1)
        times[name] += count
        for called in calls[name]:
            visit(called, count)

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
    """Returns the number of chips in each replica group.

    Two in {{0,1},{2,3}}, in [2,2]<=[4], and in mesh['a'=2,'b'=4] {'a'} or {'b':(2)2}:
    a part of an axis, of that size, after one of the size in brackets.
    """
    meshed = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if meshed:
        sizes = dict(re.findall(r"('\w+')=(\d+)", meshed.group(1)))
        axes = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", meshed.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
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
