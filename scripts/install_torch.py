"""Installs PyTorch for the tests: its CPU build where there is no NVIDIA driver.

python -m scripts.install_torch

On Linux the build that pip finds by default brings several gigabytes of CUDA
libraries. A PyTorch that is installed already, of whatever build, is left alone.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence

TORCH = "torch==2.13.0"
PIP = (sys.executable, "-m", "pip")
REMEDY = (
    "install torch into this environment yourself, or point PIP_EXTRA_INDEX_URL to an "
    "index of its CPU wheels, then run this again"
)

Run = Callable[[Sequence[str]], subprocess.CompletedProcess[str]]


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command; what it prints is returned."""
    return subprocess.run(command, capture_output=True, text=True)


def brings_cuda(run: Run) -> bool:
    """Returns whether the PyTorch that pip would install depends on CUDA libraries."""
    options = ("--dry-run", "--quiet", "--report", "-", TORCH)
    found = run((*PIP, "install", *options))
    if found.returncode:
        return False  # Installing it will say why.
    names = [each["metadata"]["name"] for each in json.loads(found.stdout)["install"]]
    return any(name.startswith(("nvidia-", "cuda-", "triton")) for name in names)


def commands(run: Run, system: str, nvidia: bool) -> list[Sequence[str]]:
    """Returns the commands that install the right build on this machine.

    Args:
      run: runs a command.
      system: `sys.platform`; only on Linux does the default build bring CUDA.
      nvidia: whether there is an NVIDIA driver.
    """
    if system != "linux" or nvidia or not brings_cuda(run):
        return [(*PIP, "install", "--quiet", TORCH)]
    # uv knows where PyTorch publishes its CPU wheels; pip has to be told.
    uv = (sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable)
    return [
        (*PIP, "install", "--quiet", "uv"),
        (*uv, "--quiet", "--torch-backend=cpu", TORCH),
    ]


def main() -> int:
    """Installs PyTorch unless it is there; returns the exit code."""
    if importlib.util.find_spec("torch"):
        return 0
    nvidia = bool(shutil.which("nvidia-smi"))
    chosen = commands(run, sys.platform, nvidia)
    build = "its CPU build, by uv" if len(chosen) > 1 else "the build that pip finds"
    print(f"installing {TORCH}: {build}", file=sys.stderr, flush=True)
    for command in chosen:
        done = run(command)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"error: {TORCH} not installed ({reason}): {REMEDY}", file=sys.stderr)
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
