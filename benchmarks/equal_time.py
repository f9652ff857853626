"""One change at a time, all in the same CPU time: the steps of a study, and its table.

    python -m benchmarks.equal_time --study=studies/quickstart.yaml --speed
    python -m jaxgpt.grid --study=studies/quickstart.yaml
    python -m benchmarks.equal_time --study=studies/quickstart.yaml

The study lists its points (see jaxgpt.grid), the first of them changes nothing, and
those that only change the seed say how much chance there is. --speed times a training
step of the first and of every point that sets `steps`, in turns, and prints how many
steps take each as long as all those of the first; they belong in the file. Without it
the finished runs are scored on the validation split, nats per character, and compared
with the mean of the seeds. "gaps" are spans of a third of each window, filled left to
right from both sides, "without what follows" the same from the text before them alone.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys

from benchmarks.alternate import machine
from benchmarks.sigma_quality import Contender, speeds
from jaxgpt.commands.study import Study, read_study

# Contenders that are timed in turns: each holds a compiled step.
GROUP = 5
# Of a window, cut out and filled left to right.
GAP = 0.33
# A difference counts from this many standard deviations of the seeds on.
DEVIATIONS = 3.0
METRICS = {
    "random": "random order",
    "straight": "left to right",
    "filled": "gaps",
    "prefix": "without what follows",
}


def timed(study: Study) -> list[int]:
    """Returns the points whose steps take another time: those that set how many."""
    return [i for i, change in enumerate(study.changes) if "steps" in change]


def measure(study: Study, chosen: list[int], path: pathlib.Path) -> None:
    """Times steps, relative to the first point's in the same turns; adds to a file."""
    found = json.loads(path.read_text()) if path.exists() else {}
    steps = int(study.points[0]["steps"])
    for start in range(0, len(chosen), GROUP):
        group = [0, *chosen[start : start + GROUP]]
        contenders = {
            study.label(i): Contender(study.config, study.points[i], steps)
            for i in group
        }
        seconds = speeds(contenders)
        first = seconds[study.label(0)]
        for i in group[1:]:
            ratio = seconds[study.label(i)] / first
            found[str(i)] = {"seconds": seconds[study.label(i)], "ratio": ratio}
            print(f"{study.label(i):40} {ratio:5.2f}  steps: {round(steps / ratio)}")
        found.setdefault("0", {"seconds": first, "ratio": 1.0})
        path.write_text(json.dumps(found, indent=1))


def score(workdir: pathlib.Path, row: dict) -> dict[str, float]:
    """Returns the losses of a finished run, and nats per character of filled gaps."""
    from jaxgpt.commands.evaluate import evaluate_infilling
    from jaxgpt.run import open_run

    run = open_run(str(workdir), "last")
    infill = evaluate_infilling(run, "val", [GAP])["infill"][f"{GAP:g}"]
    return {
        "random": row["val_loss"],
        "straight": row["val_loss_left_to_right"],
        "filled": infill["nll"],
        "prefix": infill["nll_prefix"],
    }


def table(study: Study, folder: pathlib.Path) -> list[dict]:
    """Prints the table of the finished runs, and returns their scores."""
    path = folder / "speed.json"
    speed = json.loads(path.read_text()) if path.exists() else {}
    scores = {}
    for point in range(len(study.points)):
        row = study.last_row(folder, point)
        if row is not None:
            scores[point] = score(study.workdir(folder, point), row)
    seeds = [i for i, c in enumerate(study.changes) if set(c) <= {"seed"}]
    base = [scores[i] for i in seeds if i in scores]
    if len(base) < 2:
        sys.exit("the runs that change no more than the seed are not finished: train")
    mean = {m: statistics.mean(s[m] for s in base) for m in METRICS}
    noise = {m: statistics.stdev(s[m] for s in base) for m in METRICS}
    print(f"| change | steps | CPU s | {' | '.join(METRICS.values())} | verdict |")
    print("|" + "---|" * (len(METRICS) + 4))
    cells = [f"{mean[m]:.3f} ± {noise[m]:.3f}" for m in METRICS]
    steps = study.points[0]["steps"]
    one = speed.get("0", {}).get("seconds")
    cpu = f"{one * int(steps):.0f}" if one else ""
    print(f"| none ({len(base)} seeds) | {steps} | {cpu} | {' | '.join(cells)} | |")
    rows = []
    for point, found in scores.items():
        differences = {m: found[m] - mean[m] for m in METRICS}
        told = {
            "better": [m for m in METRICS if differences[m] < -DEVIATIONS * noise[m]],
            "worse": [m for m in METRICS if differences[m] > DEVIATIONS * noise[m]],
        }
        verdict = "; ".join(
            f"{word}: {', '.join(METRICS[m] for m in names)}"
            for word, names in told.items()
            if names
        )
        change = study.changes[point]
        rows.append({"change": change, "steps": study.points[point]["steps"]} | found)
        if point in seeds:
            continue
        shown = ", ".join(f"`{k}={v}`" for k, v in change.items() if k != "steps")
        steps = study.points[point]["steps"]
        ratio = speed.get(str(point), {"ratio": 1.0} if "steps" not in change else {})
        known = one and "ratio" in ratio
        cpu = f"{one * ratio['ratio'] * int(steps):.0f}" if known else ""
        cells = [f"{found[m]:.3f} ({differences[m]:+.3f})" for m in METRICS]
        print(f"| {shown} | {steps} | {cpu} | {' | '.join(cells)} | {verdict} |")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", required=True)
    parser.add_argument("--workdir", help="default: runs/NAME of the study")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument(
        "--points", nargs="+", type=int, help="with --speed: only these"
    )
    args = parser.parse_args()
    study = read_study(args.study)
    folder = pathlib.Path(args.workdir or f"runs/{study.name}")
    folder.mkdir(parents=True, exist_ok=True)
    print(machine(), flush=True)
    if args.speed:
        measure(study, args.points or timed(study), folder / "speed.json")
        return
    from jaxgpt import backend

    backend.set_up_jax()
    rows = table(study, folder)
    print(json.dumps({"machine": machine(), "runs": rows}))


if __name__ == "__main__":
    main()
