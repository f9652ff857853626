"""σ-GPT, masked diffusion of texts and of blocks, and a plain GPT at equal CPU time.

    python -m benchmarks.any_order --speed --data characters
    python -m benchmarks.any_order --train --data characters --seeds 0 --only MDLM
    python -m benchmarks.any_order --time --data characters
    python -m benchmarks.any_order --table --figure=docs/any_order.png

--speed times a training step of each contender, taking turns, and keeps in --workdir
how many steps take BUDGET CPU seconds. --train trains and scores one run for each
contender and seed, on Shakespeare's characters or on 512 byte-pair tokens trained on
the same text; "judge" is a run to judge by, of another seed, which the others need
first. Finished runs are kept and not repeated. --time lets the samplers take turns on
the runs of seed 0. --table prints what there is; with --figure it also writes it into
docs/diffusion.md, and the record and the picture.

All losses leave out the token that is read first, which not every contender predicts:
of a text in random order that is a random one. So those of σ-GPT and of masked
diffusion are of the same quantity, the mean over all orders; masked diffusion's is
taken over masks.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import statistics
import sys
import time

import numpy as np

from benchmarks.alternate import machine
from benchmarks.labels import label_points
from benchmarks.sigma_quality import CAUSAL, QUICK, SIGMA, Contender, score, speeds
from jaxgpt import drawing

ROOT = pathlib.Path(__file__).parents[1]
BUDGET = 40.0  # CPU seconds of training steps.
DATA = {
    "characters": {},
    "byte pairs": {
        "data.tokenizer": "sentencepiece",
        "data.sentencepiece_type": "bpe",
        "data.vocab_size": "512",
    },
}
VOCABULARY = {"characters": 65, "byte pairs": 512}
ROTATED = {"model.positions": "rope", "model.rope_theta": "100"}
RANDOM_ONLY = {"sigma.left_to_right_share": "0", "sigma.infill_share": "0"}
MASKED = "configs/masked_diffusion.py:laptop"
CONTENDERS = {
    "plain GPT": Contender(SIGMA, CAUSAL | ROTATED, 0),
    "σ-GPT": Contender(SIGMA, {}, 0),
    "σ-GPT, rotations": Contender(QUICK, RANDOM_ONLY, 0),
    "σ-GPT, quickstart": Contender(QUICK, {}, 0),
    "MDLM": Contender(MASKED, {}, 0),
    "BD3-LM, blocks of 8": Contender(f"{MASKED}-blocks", {}, 0),
}
JUDGE = Contender(SIGMA, CAUSAL | ROTATED, 3000)
JUDGE_SEED = 100
# How each kind writes: options of jaxgpt.sample.
ONE_BY_ONE = {"sampler": "ar", "order": "left-to-right"}
SURE = {"sampler": "top-k-unmasking", "tokens_per_pass": 4}
SAMPLERS = {
    "causal": {"one by one": {}},
    "sigma": {"exact bursts, random": {}, "left to right": ONE_BY_ONE},
    "masked-diffusion": {
        "ancestral": {},
        "ancestral, fewer steps": {"num_steps": 0},  # Set by the block.
        "top-k unmasking": SURE,
    },
}
TEXTS = 256
TIMED = 64  # Texts at a time.


def slug(data: str, name: str, seed: int) -> str:
    return re.sub(r"\W+", "_", f"{data}-{name}-{seed}")


def read(path: pathlib.Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def measure_speed(folder: pathlib.Path, data: str) -> None:
    """Keeps the CPU seconds of a step of each contender."""
    changes = {"model.vocab_size": str(VOCABULARY[data])}
    chosen = {
        name: Contender(one.file, one.changes | changes, 0)
        for name, one in CONTENDERS.items()
    }
    record = {"machine": machine(), "seconds": speeds(chosen)}
    path = folder / "speed.json"
    path.write_text(json.dumps(read(path) | {data: record}, indent=1))


def steps_of(speed: dict, data: str) -> dict[str, int]:
    """Returns how many steps of each contender take BUDGET CPU seconds."""
    seconds = speed[data]["seconds"]
    return {name: round(BUDGET / s / 10) * 10 for name, s in seconds.items()}


def train_run(folder: pathlib.Path, data: str, name: str, seed: int) -> pathlib.Path:
    """Trains a run to its end and returns its folder."""
    from jaxgpt import config
    from jaxgpt.commands.train import train

    if name == "judge":
        one, steps, common = JUDGE, JUDGE.steps, JUDGE.steps
    else:
        one, counts = CONTENDERS[name], steps_of(read(folder / "speed.json"), data)
        steps, common = counts[name], min(counts.values())
    fixed = {"seed": str(seed), "steps": str(steps), "eval_interval": str(common)}
    fixed |= {"checkpoint_interval": str(steps), "log_interval": "50"}
    c = config.load(one.file, one.changes | DATA[data] | fixed)
    workdir = folder / slug(data, name, seed)
    if status := train(c, workdir):
        sys.exit(status)
    return workdir


def losses(run) -> dict[str, float]:
    """Returns nats per token of the validation split, without the token read first."""
    import jax

    block = run.config.model.block_size
    if run.config.system != "masked-diffusion":
        return score(run.workdir, block)
    system = run.system
    windows_NT = run.open_data().eval_windows("val", block)
    nll_NT = system.eval_nll(run.params, windows_NT, 64, 0)[""]
    # Less the first of a block's levels, where nothing of the first block is known.
    T, L = block, system.block_length
    masked_NT = np.arange(T) < np.full((64, 1), L)
    first = jax.jit(
        lambda tokens, masked: system.nll(
            run.params, {"tokens": tokens, "masked": masked, "weight": masked / L}
        ).sum(1)
    )
    parts = [
        np.asarray(first(part, masked_NT[: len(part)]))
        for part in np.array_split(windows_NT, -(-len(windows_NT) // 64))
    ]
    loss_N = (nll_NT.sum(1) - np.concatenate(parts)) / (T - 1)
    kind = "random" if L == T else "blocks"
    error = float(loss_N.std(ddof=1) / np.sqrt(len(loss_N)))
    return {kind: float(loss_N.mean()), f"{kind}_error": error}


def options(run) -> dict[str, dict]:
    """Returns {name: options} of the samplers of a run's kind."""
    found = {name: {**how} for name, how in SAMPLERS[run.config.system].items()}
    for how in found.values():
        if "num_steps" in how:
            how["num_steps"] = run.system.block_length // 4
    return found


def write(run, first_N1: np.ndarray, how: dict, seed: int = 0):
    """Writes a block of text after each first token: the output of a sampler."""
    from jaxgpt.sampling.state import SamplingParams
    from jaxgpt.systems.batches import Row

    block = run.config.model.block_size
    known_T = np.arange(block) < 1
    rows = [
        Row(np.pad(first, (0, block - 1)).astype(np.int32), known_T, seed, number)
        for number, first in enumerate(first_N1)
    ]
    parts = [output for _, output in run.fill_rows(rows, SamplingParams.of(how))]
    return type(parts[0]).joined(parts)


def score_run(folder: pathlib.Path, data: str, name: str, seed: int) -> dict:
    """Returns the figures of a run, trained first if it is not yet."""
    from jaxgpt.commands.evaluate_samples import measure
    from jaxgpt.run import open_run
    from jaxgpt.training import metrics
    from jaxgpt.training.cost import read_cost

    path = folder / slug(data, name, seed) / "scores.json"
    if path.exists():
        return read(path)
    workdir = train_run(folder, data, name, seed)
    run = open_run(str(workdir), "last")
    evaluated = [row for row in metrics.read_rows(workdir) if "val_loss" in row]
    cost = read_cost(workdir)
    found = {
        "name": name,
        "data": data,
        "seed": seed,
        "machine": machine(),
        "steps": run.step,
        "tokens": evaluated[-1]["tokens"],
        "parameters": cost["parameters"],
        "cpu_seconds": cost["cpu_seconds"],
        "evaluated": evaluated,
        "loss": losses(run),
    }
    judge = open_run(str(folder / slug(data, "judge", JUDGE_SEED)), "last")
    block = run.config.model.block_size
    real_NT = run.open_data().eval_windows("val", block, TEXTS)
    kept = ("nll", "nll_error", "entropy", "entropy_error")

    def judged(texts_NT: np.ndarray) -> dict:
        measured = measure([*texts_NT], run, judge)
        return {name: measured[name] for name in kept}

    found["real"] = judged(real_NT)
    found["samples"] = {}
    for sampler, how in options(run).items():
        output = write(run, real_NT[:, :1], how)
        calls = float(output.num_forward_passes_B.mean())
        found["samples"][sampler] = judged(output.tokens_BT) | {"calls": calls}
    path.write_text(json.dumps(found, indent=1))
    return found


def measure_time(folder: pathlib.Path, data: str, rounds: int) -> None:
    """Keeps the seconds a text of every sampler, which take turns."""
    from jaxgpt.run import open_run

    runs = {n: open_run(str(folder / slug(data, n, 0)), "last") for n in CONTENDERS}
    first_N1 = {
        name: run.open_data().eval_windows("val", run.config.model.block_size, TIMED)
        for name, run in runs.items()
    }
    seconds: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            for sampler, how in options(run).items():
                began = time.perf_counter()
                write(run, first_N1[name][:, :1], how)
                if turn:  # The first compiles.
                    took = (time.perf_counter() - began) / TIMED
                    seconds.setdefault(f"{name}: {sampler}", []).append(took)
    path = folder / "time.json"
    record = {"machine": machine(), "seconds": seconds}
    path.write_text(json.dumps(read(path) | {data: record}, indent=1))
    for name, found in seconds.items():
        print(f"{name:50} {1e3 * statistics.median(found):8.2f} ms a text")


def spread(values: list[float], digits: int = 3) -> str:
    """Returns "mean ± deviation" of a figure over seeds."""
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def collect(folder: pathlib.Path) -> dict:
    """Returns the record: what is measured so far."""
    runs = [read(path) for path in sorted(folder.glob("*/scores.json"))]
    chosen = {name: i for i, name in enumerate(CONTENDERS)}
    runs.sort(key=lambda run: (run["data"], chosen[run["name"]], run["seed"]))
    return {
        "speed": read(folder / "speed.json"),
        "time": read(folder / "time.json"),
        "runs": runs,
    }


LOSSES = {"random": "random", "blocks": "blocks", "left_to_right": "left to right"}


def tables(record: dict) -> str:
    """Returns two tables in Markdown for each kind of data: losses, and texts."""
    lines = []
    for data in DATA:
        runs = [run for run in record["runs"] if run["data"] == data]
        if not runs:
            continue
        common = min(steps_of(record["speed"], data).values())
        lines += [
            f"Shakespeare's {data}, losses in nats per token:", "",
            "| | seeds | parameters | steps | tokens | loss, in which order | logged "
            f"at step {common} |",
            "|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for name in CONTENDERS:
            own = [run for run in runs if run["name"] == name]
            if not own:
                continue
            kinds = [kind for kind in LOSSES if kind in own[0]["loss"]]
            cells = [
                f"{spread([run['loss'][kind] for run in own])} {LOSSES[kind]}"
                for kind in kinds
            ]
            early = [
                next(row for row in run["evaluated"] if row["step"] == common)
                for run in own
            ]
            logged = [spread([row["val_loss"] for row in early])]
            if len(kinds) > 1:
                straight = [row["val_loss_left_to_right"] for row in early]
                logged.append(spread(straight))
            one = own[0]
            lines.append(
                f"| {name} | {len(own)} | {one['parameters']:,} | {one['steps']:,} | "
                f"{one['tokens'] / 1e6:.2f} M | {'; '.join(cells)} | "
                f"{'; '.join(logged)} |"
            )
        lines += [
            "", f"Texts of {data}:", "",
            "| | sampler | judge's nats | entropy | calls | ms a text |",
            "|---|---|---|---|---|---|",
        ]  # fmt: skip
        real = runs[0]["real"]
        lines.append(
            f"| real texts | | {real['nll']:.3f} ± {real['nll_error']:.3f} (over "
            f"texts) | {real['entropy']:.3f} | | |"
        )
        times = record["time"].get(data, {}).get("seconds", {})
        for name in CONTENDERS:
            own = [run for run in runs if run["name"] == name]
            for sampler in own[0]["samples"] if own else ():
                found = [run["samples"][sampler] for run in own]
                took = times.get(f"{name}: {sampler}")
                cell = ""
                if took:
                    low, high = 1e3 * min(took), 1e3 * max(took)
                    cell = (
                        f"{1e3 * statistics.median(took):.1f} ({low:.1f} - {high:.1f})"
                    )
                lines.append(
                    f"| {name} | {sampler} | {spread([t['nll'] for t in found])} | "
                    f"{spread([t['entropy'] for t in found])} | "
                    f"{statistics.mean(t['calls'] for t in found):.1f} | {cell} |"
                )
        lines.append("")
    return "\n".join(lines)


def draw(record: dict, path: pathlib.Path) -> None:
    """Writes the picture: the judge's nats of the texts against calls a text."""
    kinds = [d for d in DATA if any(run["data"] == d for run in record["runs"])]
    with drawing.picture(path, 0.6 + 4 * len(kinds)) as figure:
        drawing.heading(figure, "How good texts are after equal training time")
        panels = figure.subplots(len(kinds), squeeze=False)[:, 0]
        for axes, data in zip(panels, kinds, strict=True):
            runs = [run for run in record["runs"] if run["data"] == data]
            points, names = [], []
            for name, color in zip(CONTENDERS, drawing.COLOURS, strict=True):
                own = [run for run in runs if run["name"] == name]
                samplers = [*own[0]["samples"]] if own else []
                for sampler in samplers:
                    found = [run["samples"][sampler] for run in own]
                    nll = [texts["nll"] for texts in found]
                    at = (
                        statistics.mean(t["calls"] for t in found),
                        statistics.mean(nll),
                    )
                    error = statistics.stdev(nll) if len(nll) > 1 else 0
                    label = name if sampler == samplers[0] else None
                    axes.errorbar(*at, error, fmt="o", color=color, label=label)
                    points.append(at)
                    names.append(sampler)
            real = axes.axhline(runs[0]["real"]["nll"], color=drawing.GREY, ls="--")
            drawing.label_ends(axes, [real], ["real texts"])
            drawing.log_scale(axes, "x", (16, 32, 64))
            label_points(axes, points, names)
            axes.set(xlim=(10, 100), ylabel=f"judge's nats per token, {data}")
        panels[-1].set(xlabel="model calls a text of 64 tokens")
        shown = panels[0].get_legend_handles_labels()
        figure.legend(*shown, loc="outside lower center", ncols=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="characters", choices=list(DATA))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    names = [*CONTENDERS, "judge"]
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=names)
    parser.add_argument(
        "--workdir", type=pathlib.Path, default=pathlib.Path("runs/any_order")
    )
    parser.add_argument("--figure", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5, help="of --time")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    if args.speed:
        measure_speed(args.workdir, args.data)
        return
    if args.table:
        record = collect(args.workdir)
        print(tables(record))
        if args.figure:
            drawing.write_record(record, args.figure)
            draw(record, args.figure)
            page = ROOT / "docs/diffusion.md"
            before, rest = page.read_text().split("<!-- any_order -->\n")
            after = rest.split("<!-- end -->")[1]
            filled = f"<!-- any_order -->\n{tables(record)}<!-- end -->"
            page.write_text(before + filled + after)
        print(json.dumps(record))
        return
    from jaxgpt import backend

    backend.set_up_jax()
    print(machine(), flush=True)
    if args.time:
        measure_time(args.workdir, args.data, args.rounds)
    if args.train:
        for seed in args.seeds:
            for name in args.only:
                if name == "judge":
                    train_run(args.workdir, args.data, name, JUDGE_SEED)
                    continue
                found = score_run(args.workdir, args.data, name, seed)
                print(name, seed, found["loss"], flush=True)


if __name__ == "__main__":
    main()
