"""Model calls against the length of the text, where the true distribution is known.

    python -m benchmarks.sigma_calls [--figure=docs/sigma_calls.png]

The texts are Markov chains of two symbols that stay with probability 0.9; the model's
conditionals are exact, so that the samplers alone are measured.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib

import numpy as np

from benchmarks.alternate import machine
from jaxgpt import drawing

LENGTHS = (8, 16, 32, 64, 128, 256, 512)
BURST_LIMIT = 128  # The best of N orders costs N times the work: longer takes minutes.


def measure(n: int, order: str, num_orders: int, runs: int) -> tuple[float, float]:
    """Returns the mean model calls, and token evaluations per token, for one length."""
    from jaxgpt.systems.sigma.samplers import best_of, speculative
    from tests.systems.sigma import tables
    from tests.systems.sigma.test_samplers import decode_order, draw_texts

    advance = functools.partial(speculative.advance, max_draft_length=n)
    if num_orders:
        advance = functools.partial(best_of.advance, num_orders=num_orders)
    known = np.zeros((1, n), bool)
    _, calls, evaluations = draw_texts(
        tables.markov(n, 2, 0.9), advance, runs, known, read=decode_order(known, order)
    )
    return float(calls.mean()), float(evaluations.mean() / n)


def draw_figure(record: dict, path: pathlib.Path) -> None:
    """Writes the picture."""
    rows = record["rows"]
    names = list(dict.fromkeys(row["sampler"] for row in rows))
    shown = [name.replace(", ", ",\n").replace(" (", "\n(") for name in names]
    with drawing.picture(path, 4.5) as figure:
        axes = figure.subplots()
        lines = axes.plot(LENGTHS, LENGTHS, color=drawing.GREY, ls="--")
        for name in names:
            own = [row for row in rows if row["sampler"] == name]
            at = [row["tokens"] for row in own], [row["calls"] for row in own]
            lines += axes.plot(*at, "o-")
        axes.set(
            title="Model calls to write a Markov chain, by its length",
            xlabel="tokens of the chain",
            ylabel="model calls",
            xlim=(LENGTHS[0] / 1.1, LENGTHS[-1] * 1.1),
        )
        drawing.log_scale(axes, "x", LENGTHS)
        drawing.log_scale(axes, "y", [2**i for i in range(2, 10)])
        drawing.label_ends(axes, lines, ["one token a call", *shown])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=32)
    parser.add_argument(
        "--figure", type=pathlib.Path, default=pathlib.Path("docs/sigma_calls.png")
    )
    args = parser.parse_args()
    samplers = {
        "exact burst, random order": ("random", 0),
        "exact burst, far-apart order": ("far-apart", 0),
        "best of 5 orders (biased)": ("random", 5),
    }
    print(machine())
    print(f"{'tokens':>6}  {'sampler':30} {'calls':>7} {'evaluations a token':>20}")
    rows = []
    for name, (order, num_orders) in samplers.items():
        for n in LENGTHS:
            if num_orders and n > BURST_LIMIT:
                continue
            calls, evaluations = measure(n, order, num_orders, args.runs)
            print(f"{n:6}  {name:30} {calls:7.1f} {evaluations:20.2f}", flush=True)
            rows.append(
                {
                    "sampler": name,
                    "tokens": n,
                    "calls": calls,
                    "evaluations": evaluations,
                }
            )
    record = {"machine": machine(), "rows": rows}
    drawing.write_record(record, args.figure)
    draw_figure(record, args.figure)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
