"""Faults, done for real: what tests try and scripts/reliability.py counts."""

from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

import jax

from jaxgpt.errors import UserError
from jaxgpt.training import manifest, metrics
from jaxgpt.training.checkpoint import Checkpoints, DamagedError, State, digests

ROOT = pathlib.Path(__file__).parents[1]
TINY = "configs/sigma_char.py:tiny"
# Of runs killed at random: a checkpoint writes a row of metrics too.
OFTEN = "--config.checkpoint_interval=5"
KINDS = ("flip", "flip", "flip", "truncate", "delete", "empty")


def start(
    workdir: pathlib.Path, *options: str, module: tuple = ("jaxgpt.train",), **more
) -> subprocess.Popen:
    """Starts training the tiny config in a process of its own."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", *module),
            *(f"--config={TINY}", f"--workdir={workdir}", *options),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Returns (exit code, what it said); it never shows a traceback."""
    _, said = process.communicate(timeout=300)
    assert "Traceback" not in said, said
    return process.returncode, said


def wait_for_step(workdir: pathlib.Path, step: int, process: subprocess.Popen) -> None:
    """Waits until a run has recorded a step, or its process has ended."""
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if any(row["step"] >= step for row in metrics.read_rows(workdir)):
            return
        time.sleep(0.01)


def saved_digests(workdir: pathlib.Path, step: int) -> dict[str, list]:
    """Returns the digests of every parameter and moment of a checkpoint."""
    folder = workdir / "checkpoints" / str(step) / "digests"
    return json.loads((folder / "metadata").read_text())["arrays"]


def record(workdir: pathlib.Path) -> list[dict]:
    """Returns the rows of metrics.jsonl without what the clock decides."""
    rows = metrics.read_rows(workdir)
    return [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in rows]


def count_changes(folder: pathlib.Path) -> int:
    """Returns how many changes of files a whole run makes (see kill_at.py)."""
    counted = folder / "counted.txt"
    module = ("tests.kill_at", "0", str(counted))
    assert finish(start(folder / "counted", module=module))[0] == 0
    return len(counted.read_text().splitlines())


def killed_at(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Returns the folder of a run that died before the number-th change of a file."""
    workdir = folder / f"at-{number}"
    process = start(workdir, module=("tests.kill_at", str(number), os.devnull))
    process.communicate(timeout=300)
    return workdir


def killed_after(folder: pathlib.Path, seconds: float) -> pathlib.Path:
    """Returns the folder of a run that was killed some time after its first row."""
    workdir = folder / f"after-{seconds:.3f}"
    process = start(workdir, OFTEN)
    while process.poll() is None and not metrics.read_rows(workdir):
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    return workdir


def resumes_to(straight: pathlib.Path, workdir: pathlib.Path, *options: str) -> bool:
    """Resumes a killed run to its end; returns whether it equals one never killed."""
    code, _ = finish(start(workdir, *options))
    same = saved_digests(workdir, 40) == saved_digests(straight, 40)
    return code == 0 and same and record(workdir) == record(straight)


def mutate(path: pathlib.Path, kind: str, chance: random.Random) -> None:
    """Flips a bit of a file, cuts it off, removes or empties it."""
    content = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
        return
    if kind == "flip" and content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == "truncate":
        content = content[: chance.randrange(len(content)) if content else 0]
    else:
        content = bytearray()
    assert content != path.read_bytes(), f"{path} is empty: nothing to {kind}"
    path.write_bytes(content)


def tiny_state(seed: int) -> State:
    """Returns a state of a few arrays."""
    drawn = jax.random.normal(jax.random.key(seed), (64, 48))
    return {
        "params": {"kernel": drawn, "scale": jax.numpy.ones(300)},
        "opt_state": {"mu": drawn * 2, "count": jax.numpy.int32(seed)},
    }


def mutations(
    folder: pathlib.Path, count: int, say: Callable[[str], None] = print
) -> Counter:
    """Damages the newer of two checkpoints, count times, and restores.

    Returns:
      How often the file was named, as `verify` does, and the older step was restored
      ("detected"), and how often not ("lost").
    """
    whole = folder / "whole"
    checkpoints = Checkpoints(whole, keep=2)
    for step in (1, 2):
        checkpoints.save(step, tiny_state(step), {"val_loss": 3.0 - step})
    checkpoints.close()
    expected = digests(tiny_state(1))
    abstract = jax.eval_shape(lambda: tiny_state(0))
    newer = whole / "checkpoints" / "2"
    files = sorted(p.relative_to(whole) for p in newer.rglob("*") if p.is_file())
    chance, found, copy = random.Random(0), Counter(), folder / "copy"
    for _ in range(count):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        file, kind = chance.choice(files), chance.choice(KINDS)
        mutate(copy / file, kind, chance)
        name = (copy / file).relative_to(copy / "checkpoints" / "2").as_posix()
        outcome = _restored(copy, name, abstract, expected)
        found[outcome] += 1
        if outcome == "lost":
            say(f"{kind} {file}")
    return found


def _restored(workdir: pathlib.Path, name: str, abstract: State, expected: dict) -> str:
    (line,) = manifest.differences(workdir / "checkpoints" / "2") or [""]
    checkpoints = Checkpoints(workdir, keep=2)
    try:
        checkpoints.restore(2, abstract)
        named = False
    except DamagedError as error:
        named = str(error) == line and line.startswith(f"{name} ")
    try:
        step, state = checkpoints.restore_newest(abstract) or (0, {})
    except UserError:
        return "lost"
    finally:
        checkpoints.close()
    aside = (workdir / "checkpoints" / "2.damaged").is_dir()
    right = step == 1 and expected == digests(state)
    return "detected" if named and aside and right else "lost"
