"""A training set as the memory of the model that was trained on it: kNN-LM.

python -m scripts.plays
python -m jaxgpt.train --config=configs/memory_gpt2.py:laptop --workdir=runs/plain \
    --config.memory.mode=output --config.memory.reading=off
python -m benchmarks.knn_lm --workdir=runs/plain --output=docs/knn_lm.png

The first entries of the training documents, in order, are read into memories of growing
size. For each, neighbours, temperature and weight are chosen on the validation split;
printed is the test perplexity. Draws it by size, and by weight for the largest.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import time
from typing import Any

import numpy as np

from benchmarks.alternate import machine
from jaxgpt import backend, drawing
from jaxgpt.data.documents import Segments
from jaxgpt.run import open_run
from jaxgpt.systems.memory import attached
from jaxgpt.systems.memory.documents import Memory

SIZES = (1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20)
FLAT = 1 << 14  # Up to this size search is exact; clusters are searched above.
SEGMENTS = 256  # Of each split that is scored.


def measure(workdir: str, size: int) -> dict[str, Any]:
    """Returns what a memory of this many entries is worth."""
    began = time.process_time()
    changes = {"memory.memory_size": str(size), "memory.reading": "on"}
    changes["memory.num_search_results"] = str(max(attached.RESULTS))
    if size > FLAT:
        clusters = 4 * math.isqrt(size)
        changes |= {"memory.index_type": "ivf", "memory.num_clusters": str(clusters)}
    run = open_run(workdir, overrides=changes)
    data: Any = run.open_data()
    train, memory = data.splits["train"], Memory.empty(run.system.host)  # type: ignore[arg-type]
    begin = 0
    for number, end in enumerate(train.ends):
        left = size - memory.store.size()
        # The last token of a text has no entry: nothing has followed it.
        tokens_T = np.asarray(
            train.tokens[begin : min(end, begin + left + 1)], np.int32
        )
        if left:
            memory.read(run.params, f"train/{number}", tokens_T)
        begin = end

    def found(split: str) -> attached.Neighbours:
        segments: Segments = data.eval_windows(split, run.system.window, SEGMENTS)
        rows = run.config.batch_size
        return attached.find_neighbours(memory, run.params, segments, rows)

    best, test = attached.tune(found("val")), found("test")
    perplexity = lambda nll_P: math.exp(float(nll_P.mean()))
    return {
        "entries": memory.store.size(),
        "neighbours": best.num_search_results,
        "temperature": best.temperature,
        "weight": best.weight,
        "perplexity": perplexity(test.nll(*best[:3])),
        "without": perplexity(test.nll_P),
        "weights": attached.WEIGHTS,
        "by_weight": [
            perplexity(test.nll(*best[:2], weight)) for weight in attached.WEIGHTS
        ],
        "cpu_seconds": time.process_time() - began,
    }


def draw(record: dict[str, Any], path: pathlib.Path) -> None:
    """Writes the figure."""
    rows = record["rows"]
    with drawing.picture(path, 7.5) as figure:
        left, right = figure.subplots(2, 1)
        without = rows[0]["without"]
        sizes = [row["entries"] for row in rows]
        left.plot(sizes, [r["perplexity"] for r in rows], "o-", color=drawing.GREEN)
        left.axhline(without, color=drawing.BLUE)
        left.text(sizes[0], without, "the model alone", va="bottom")
        left.set_xscale("log", base=2)
        left.set(
            title="Training tokens in the memory, settings tuned on val",
            xlabel="entries",
            ylabel="test perplexity",
        )
        last = rows[-1]
        right.plot(last["weights"], last["by_weight"], "o-", color=drawing.GREEN)
        right.axhline(without, color=drawing.BLUE)
        right.set(
            title=f"Weight of the memory, with {sizes[-1]:,} entries",
            xlabel="memory.weight",
            ylabel="test perplexity",
        )


def main() -> None:
    """Measures every size, prints a table and one JSON line, and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="a run without a memory")
    parser.add_argument("--output", help="of the figure")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    args = parser.parse_args()
    backend.set_up_jax()
    rows = []
    print("entries    neighbours  temperature  weight  perplexity  without  CPU s")
    for size in args.sizes:
        row = measure(args.workdir, size)
        rows.append(row)
        print(
            f"{row['entries']:>9,}  {row['neighbours']:>9}  {row['temperature']:>11}  "
            f"{row['weight']:>6}  {row['perplexity']:>10.2f}  {row['without']:>7.2f}  "
            f"{row['cpu_seconds']:>5.1f}",
            flush=True,
        )
    record = {"machine": machine(), "rows": rows}
    if args.output:
        path = pathlib.Path(args.output)
        draw(record, path)
        path.with_suffix(".json").write_text(json.dumps(record) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
