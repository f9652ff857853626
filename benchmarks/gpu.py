"""One GPU: training, generation, parity and a learning curve, beside PyTorch.

    python -m benchmarks.gpu [--only=train,decode] [--out=FILE] [--profile]
                             [--variants] [--tiny]

Parts, in this order:

  train    a step of GPT-2 124M, bfloat16, against PyTorch's equal under torch.compile
  sigma    the same step of σ-GPT 124M
  decode   tokens a second with a cache, against eager PyTorch
  parity   logits, loss and gradients of 124M against the CPU's in float32
  curve    configs/sigma_char.py at full size, for as long as there is time
  bursts   σ-GPT 124M one by one and in exact bursts, which take minutes to compile

Every part is a process of its own with a time limit; what it has measured by then is
kept. A line for each measurement is printed at once, and one JSON line last.
--variants also trains and decodes without some of what model/gpu.py does.
--tiny does all of it at toy sizes on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks.gpu_team import team

# Seconds a part may take, on an H100.
PARTS = {
    "train": 200,
    "sigma": 80,
    "decode": 130,
    "parity": 80,
    "curve": 120,
    "bursts": 150,
}
PEAK_LINES = 30  # Of a table of kernels, on the screen.
# CUDA graphs of whole while loops: not XLA's default.
GRAPHS = "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"
# What of model/gpu.py a step can do without.
VARIANTS = ("xla-norms", "one-projection")


def train(
    report: Callable[..., None],
    tiny: bool,
    profile: str,
    system: str = "causal",
    variants: bool = False,
) -> None:
    batches = (4, 2) if tiny else (32, 16, 8)
    rounds, steps = (2, 2) if tiny else (6, 10)
    contenders: dict[str, tuple] = {
        "jaxgpt": ("JaxTrainer", {"tiny": tiny, "system": system})
    }
    if system == "causal":
        contenders["torch"] = ("TorchTrainer", {"tiny": tiny})
    else:
        batches = batches[:1]
    for variant in VARIANTS if variants else ():
        options = {"tiny": tiny, "system": system, "variant": variant}
        contenders[variant] = ("JaxTrainer", options)
    with team(report, **contenders) as both:
        described = both.together("describe")
        report(**functools.reduce(dict.__or__, described.values(), {}))
        for batch in batches:
            prepared = both.together("prepare", batch=batch)
            found = both.rounds(prepared, rounds, steps=steps)
            tokens = prepared.get("jaxgpt", {}).get("tokens", 0)
            rate = prepared.get("jaxgpt", {}).pop("mfu_of_a_token_a_second", None)
            for name, one in found.items():
                speed = tokens / one["seconds"]
                one |= prepared[name] | {"tokens_per_second": speed}
                one["mfu"] = speed * rate if rate else None
                one.pop("mfu_of_a_token_a_second", None)
                report(batch=batch, contender=name, **one)
            if {"jaxgpt", "torch"} <= found.keys():
                ratio = found["torch"]["seconds"] / found["jaxgpt"]["seconds"]
                report(batch=batch, jaxgpt_over_torch=ratio)
            if profile and batch == batches[0]:
                # One at a time: a kernel beside another's takes longer.
                ask = lambda worker: worker.ask("profile", folder=profile)
                for name, one in both.each("profile", found, ask).items():
                    text = f"{system}, {name}, batch {batch}\n{one['table']}\n"
                    file = pathlib.Path(profile) / f"{system}_{name}_kernels.txt"
                    file.write_text(text)
                    print("\n".join(text.splitlines()[:PEAK_LINES]), flush=True)


def decode(
    report: Callable[..., None], tiny: bool, profile: str, variants: bool = False
) -> None:
    del profile
    ours = {"tiny": tiny, "system": "causal"}
    prompt, new = (4, 8) if tiny else (16, 256)
    rounds, times = (1, 1) if tiny else (4, 2)
    contenders = {
        "jaxgpt": ("JaxDecoder", ours),
        "jaxgpt, graphs": ("JaxDecoder", ours | {"flags": GRAPHS}),
        "torch": ("TorchDecoder", {"tiny": tiny}),
    }
    if variants:
        contenders["xla-attention"] = ("JaxDecoder", ours | {"cudnn": False})
    with team(report, **contenders) as all_:
        for batch in (1, 2) if tiny else (1, 64):
            length = prompt + new
            prepared = all_.together(
                "prepare", batch=batch, prompt=prompt, length=length
            )
            found = all_.rounds(prepared, rounds, times=times)
            for name, one in found.items():
                one |= prepared[name] | {
                    "tokens_per_second": batch * new / one["seconds"]
                }
                if "torch" in found:
                    one["over_torch"] = found["torch"]["seconds"] / one["seconds"]
                report(batch=batch, contender=name, **one)


def bursts(
    report: Callable[..., None], tiny: bool, profile: str, variants: bool = False
) -> None:
    del profile
    length = 16 if tiny else 256
    rounds, times = (1, 1) if tiny else (4, 2)
    ours = {"tiny": tiny, "system": "sigma"}
    contenders = {
        sampler: ("JaxDecoder", ours | {"sampler": sampler})
        for sampler in ("ar", "exact-burst")
    }
    if variants:
        options = ours | {"sampler": "exact-burst", "cudnn": False}
        contenders["exact-burst, xla-attention"] = ("JaxDecoder", options)
    with team(report, **contenders) as all_:
        prepared = all_.together("prepare", batch=1, prompt=1, length=length)
        for name, one in all_.rounds(prepared, rounds, times=times).items():
            one |= prepared[name] | {"tokens_per_second": (length - 1) / one["seconds"]}
            report(batch=1, contender=name, **one)


def parity(report: Callable[..., None], tiny: bool, profile: str) -> None:
    del profile
    with team(report, jaxgpt=("Parity", {"tiny": tiny})) as one:
        for dtype in ("float32", "bfloat16"):
            for answer in one.together("run", dtype=dtype).values():
                report(dtype=dtype, **answer)


def curve(report: Callable[..., None], tiny: bool, profile: str) -> None:
    """Trains until the run ends or its time is up; then it saves, and leaves."""
    del profile
    limit = 20.0 if tiny else PARTS["curve"] - 25.0
    config = "configs/sigma_char.py" + ":tiny" * tiny
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        began = time.perf_counter()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jaxgpt.train"),
                *(f"--config={config}", f"--workdir={workdir}"),
                # Each of the default's takes as long as hundreds of steps.
                *(() if tiny else ("--config.checkpoint_interval=1000",)),
            ],
            env=os.environ | ({"JAX_PLATFORMS": "cpu"} if tiny else {}),
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            status = process.wait(20)
        seconds = time.perf_counter() - began
        file = workdir / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines]
    names = ("step", "train_loss", "val_loss", "val_loss_left_to_right")
    points = [[row[name] for name in names] for row in rows if "val_loss" in row]
    speeds = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    report(
        status=status,
        seconds=seconds,
        steps=rows[-1]["step"] if rows else 0,
        tokens_per_second=statistics.median(speeds) if speeds else None,
        columns=names,
        points=points,
    )


def run_part(name: str, file: str, tiny: bool, profile: str, variants: bool) -> None:
    """Runs one part; its measurements are in the file as they come."""
    rows: list[dict] = []

    def report(**row) -> None:
        rows.append({"part": name} | row)
        pathlib.Path(file).write_text(json.dumps(rows))
        print("  ".join(f"{key}={shown(value)}" for key, value in rows[-1].items()))
        sys.stdout.flush()

    parts: dict[str, Callable[..., None]] = {
        "train": functools.partial(train, variants=variants),
        "sigma": functools.partial(train, system="sigma"),
        "decode": functools.partial(decode, variants=variants),
        "bursts": functools.partial(bursts, variants=variants),
        "parity": parity,
        "curve": curve,
    }
    parts[name](report, tiny, profile)


def shown(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--out", help="a file for the JSON, written after each part")
    parser.add_argument("--seconds", type=float, default=470, help="for all parts")
    parser.add_argument(
        "--profile", action="store_true", help="kernels by time, beside --out"
    )
    parser.add_argument(
        "--variants", action="store_true", help="of train, decode and bursts"
    )
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = str(pathlib.Path(args.out or "gpu.json").resolve().parent)
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    if args.part:
        profile = folder if args.profile else ""
        run_part(args.part, args.file, args.tiny, profile, args.variants)
        return
    wanted = args.only.split(",")
    unknown = set(wanted) - PARTS.keys()
    if unknown:
        parser.error(f"--only knows {', '.join(PARTS)}: not {', '.join(unknown)}")
    # Told to end, it ends its part first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    result: dict = {"rows": [], "seconds": {}}
    end = time.perf_counter() + args.seconds
    for name in wanted:
        began = time.perf_counter()
        limit = min(PARTS[name], end - began)
        if limit < 10:
            print(f"{name}: no time is left")
            continue
        with tempfile.TemporaryDirectory() as temporary:
            file = pathlib.Path(temporary) / "rows.json"
            options = [f"--part={name}", f"--file={file}", f"--out={folder}/gpu.json"]
            options += [
                f"--{x}" for x in ("tiny", "profile", "variants") if vars(args)[x]
            ]
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu", *options],
                process_group=0,
            )
            try:
                status = str(process.wait(limit))
            except subprocess.TimeoutExpired:
                status = "out of time"
            finally:
                # Its workers too; they are all there is in its group.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            if file.exists():
                result["rows"] += json.loads(file.read_text())
        took = time.perf_counter() - began
        result["seconds"][name] = took
        print(f"{name}: {took:.0f} s, {status}", flush=True)
        if args.out:
            pathlib.Path(args.out).write_text(json.dumps(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
