"""--sampler=auto: one token a call or exact bursts, whichever is faster here.

Both draw from the same distribution, but what a seed writes depends on which is taken.
So measurements are kept, in JAXGPT_CACHE, and all rows of a request get one sampler.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import time
from collections.abc import Sequence

import jax

from jaxgpt.data.cache import cache_root
from jaxgpt.errors import atomic_write, log
from jaxgpt.sampling.state import SamplingParams
from jaxgpt.systems import batches
from jaxgpt.systems.base import System
from jaxgpt.systems.batches import Row
from jaxgpt.systems.sigma.options import AUTO, LOW_ENTROPY_FIRST

SAMPLERS = ("ar", "exact-burst")
# Rows that are measured, at most: with more, the ratio of the two hardly changes.
ROWS = 64
REPEATS = 2
VERSION = 2  # To be raised with a change that makes a sampler faster or slower.


def settle(
    system: System, params: dict, rows: Sequence[Row], sampling: SamplingParams
) -> SamplingParams:
    """Returns `sampling` with the faster sampler in place of `AUTO`; says which.

    Args:
      rows: all that are to be filled; the largest batch of them is measured.
    """
    if sampling.order == LOW_ENTROPY_FIRST:
        log(f"--sampler={AUTO} is ar: only it has --order={LOW_ENTROPY_FIRST}")
        return dataclasses.replace(sampling, sampler="ar")
    burst = dataclasses.replace(sampling, sampler="exact-burst")
    batch = max(batches.batches(system, rows, burst), key=len)[:ROWS]
    file = _file(system, batch, sampling)
    seconds, when = _read(file), "measured before"
    if not seconds:
        seconds, when = measure(system, params, batch, sampling), "measured now"
        with contextlib.suppress(OSError):  # Then it is measured again next time.
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as stream:
                json.dump(seconds, stream)
    name = min(seconds, key=lambda name: seconds[name])
    times = ", ".join(f"{name} {1e3 * s:.3g} ms" for name, s in seconds.items())
    log(f"--sampler={AUTO} is {name}: {times} for a batch of {len(batch)}, {when}")
    return dataclasses.replace(sampling, sampler=name)


def measure(
    system: System, params: dict, batch: Sequence[Row], sampling: SamplingParams
) -> dict[str, float]:
    """Returns the seconds that each sampler takes for a batch, compiled before."""
    tokens_BT, known_BT, draws, length_B = batches.stack(batch)
    seconds = dict.fromkeys(SAMPLERS, math.inf)
    for repeat in range(1 + REPEATS):  # The first one compiles.
        for name in SAMPLERS:
            chosen = dataclasses.replace(sampling, sampler=name)
            began = time.perf_counter()
            system.sample(params, tokens_BT, known_BT, draws, chosen, length_B=length_B)
            if repeat:
                seconds[name] = min(seconds[name], time.perf_counter() - began)
    return seconds


def _file(
    system: System, batch: Sequence[Row], sampling: SamplingParams
) -> pathlib.Path:
    """Returns the file with the seconds for batches and models like these."""
    like = lambda count: 1 << (count - 1).bit_length()  # The next power of two.
    missing = max(int((~row.known).sum()) for row in batch)
    key = (
        VERSION,
        jax.__version__,
        jax.devices()[0].device_kind,
        os.cpu_count(),
        system.model_config,
        sampling,
        like(len(batch)),
        like(max(len(row.tokens) for row in batch)),
        like(missing + 1),
    )
    digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
    return cache_root() / "samplers" / f"{digest}.json"


def _read(file: pathlib.Path) -> dict[str, float]:
    """Returns the seconds in a file; empty if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        kept = json.loads(file.read_text())
        if isinstance(kept, dict) and kept.keys() == {*SAMPLERS}:
            seconds = {name: float(kept[name]) for name in SAMPLERS}
            if all(0 < value < math.inf for value in seconds.values()):
                return seconds
    return {}
