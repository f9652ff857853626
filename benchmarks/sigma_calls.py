"""Model calls against the length of the text, where the true distribution is known.

    python -m benchmarks.sigma_calls [--figure=docs/sigma_calls.png]

The texts are Markov chains of two symbols that stay with probability 0.9; the model's
conditionals are exact, so that the samplers alone are measured.
"""

from __future__ import annotations

import argparse
import functools
import json

import numpy as np

from benchmarks.alternate import machine

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


def draw_figure(rows: list[dict], path: str) -> None:
    """Writes the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), constrained_layout=True)
    axes.plot(LENGTHS, LENGTHS, color="gray", ls="--", label="one token a call")
    for name in dict.fromkeys(row["sampler"] for row in rows):
        own = [row for row in rows if row["sampler"] == name]
        axes.plot(
            [r["tokens"] for r in own], [r["calls"] for r in own], "o-", label=name
        )
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="model calls")
    axes.set_xticks(LENGTHS, [str(n) for n in LENGTHS])
    axes.minorticks_off()
    axes.set_yticks((2, 4, 8, 16, 32, 64, 128, 256, 512))
    axes.set_yticklabels(str(2**i) for i in range(1, 10))
    axes.set_title("Calls to write a Markov chain")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=32)
    parser.add_argument("--figure", default="docs/sigma_calls.png")
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
    draw_figure(rows, args.figure)
    print(json.dumps({"machine": machine(), "rows": rows}))


if __name__ == "__main__":
    main()
