"""What each way of sampling σ-GPT costs, and how good its texts are.

    python -m benchmarks.sigma_pareto --workdir=SIGMA_RUN --judge=CAUSAL_RUN

Every sampler writes the same number of texts from one given token. The judge is a
plain GPT trained on the same data: its negative log-likelihood of the texts is low
for good texts, and for dull ones, which is why the entropy of their single characters
is shown too. Both are also shown for real texts of the validation split. The time is
the processor's, of all its cores.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time

import numpy as np

from benchmarks.alternate import machine
from benchmarks.labels import label_points
from jaxgpt import drawing

ORDERS = ("random", "left-to-right", "fractal", "far-apart", "block")


def contenders(system_class, config, block: int) -> dict:
    """Returns {name: (system, Sampling)}."""
    from jaxgpt.sampling.state import SamplingParams

    system = system_class(config)
    found = {}
    for order in (*ORDERS, "low-entropy-first"):
        found[f"ar, {order}"] = (system, SamplingParams("ar", order))
    for order in ORDERS:
        found[f"exact-burst, {order}"] = (system, SamplingParams("exact-burst", order))
    for N in (1, 5, 20):
        found[f"burst, N={N}"] = (system, SamplingParams("burst", num_orders=N))
    for calls in (4, 8, 16, 32):
        most = -(-(block - 1) // calls)
        surest = SamplingParams("top-k-unmasking", tokens_per_pass=most)
        found[f"top-k unmasking, {calls} calls"] = (system, surest)
    for bound in (0.5, 2.0, 8.0):
        bounded = SamplingParams("entropy-bounded-unmasking", entropy_bound=bound)
        found[f"entropy-bounded, {bound:g} nats"] = (system, bounded)
    return found


def quality(judge, tokens_NT: np.ndarray) -> dict[str, float]:
    """Returns the judge's mean nats per token, its error, and the unigram entropy."""
    nll_NT = np.asarray(judge.system.score(judge.params, tokens_NT, None)[1])
    share_V = np.bincount(tokens_NT.ravel()) / tokens_NT.size
    entropy = -(share_V[share_V > 0] * np.log(share_V[share_V > 0])).sum()
    per_text_N = nll_NT.mean(1)
    return {
        "nll": float(per_text_N.mean()),
        "nll_error": float(per_text_N.std(ddof=1) / np.sqrt(len(per_text_N))),
        "entropy": float(entropy),
    }


def front(points: list[tuple[float, float]]) -> list[int]:
    """Returns the indices of the points that none is better than in both."""
    beaten = lambda p: any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)
    return [i for i, point in enumerate(points) if not beaten(point)]


def draw_figure(record: dict, path: pathlib.Path) -> None:
    """Writes the picture: quality against calls, and against milliseconds."""
    real, *rows = record["rows"]
    kind_of = [row["sampler"].split(",")[0] for row in rows]
    with drawing.picture(path, 7.5) as figure:
        drawing.heading(
            figure, "How good the texts of each sampler are, and what they cost"
        )
        upper, lower = figure.subplots(2, 1)
        for axes, cost, unit, ticks in (
            (upper, "calls", 1, (4, 8, 16, 32, 64)),
            (lower, "seconds", 1e-3, (2, 5, 10, 20, 50, 100)),
        ):
            points = [(row[cost] / unit, row["nll"]) for row in rows]
            best = sorted(front(points), key=lambda i: points[i])
            kinds = dict.fromkeys(kind_of)
            for kind, color in zip(kinds, drawing.COLOURS, strict=False):
                own = [i for i, other in enumerate(kind_of) if other == kind]
                at = zip(*(points[i] for i in own), strict=True)
                errors = [rows[i]["nll_error"] for i in own]
                axes.errorbar(*at, errors, fmt="o", color=color, label=kind)
            drawing.log_scale(axes, "x", ticks)
            real_line = axes.axhline(real["nll"], color=drawing.GREY, ls="--", lw=1.2)
            drawing.label_ends(axes, [real_line], ["real texts"])
            names = [rows[i]["sampler"] for i in best]
            label_points(axes, [points[i] for i in best], names)
            axes.set(ylabel="judge's loss, nats per character")
        note = "low and left is best; named: samplers that none beats in both"
        upper.set_title(note, size=10, weight="normal")
        upper.set(xlabel="model calls a text")
        lower.set(xlabel=f"processor's milliseconds a text ({record['machine']})")
        figure.legend(
            *upper.get_legend_handles_labels(), loc="outside lower center", ncols=5
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--num_samples", type=int, default=256)
    parser.add_argument("--only", nargs="+", help="names of samplers; no figure")
    parser.add_argument(
        "--figure", type=pathlib.Path, default=pathlib.Path("docs/sigma_pareto.png")
    )
    args = parser.parse_args()
    from jaxgpt import backend
    from jaxgpt.run import open_run

    backend.set_up_jax()
    import jax

    run, judge = open_run(args.workdir), open_run(args.judge)
    block = run.config.model.block_size
    real_NT = run.open_data().eval_windows("val", block, args.num_samples)
    # Texts begin as real ones do: with the first character of each.
    prompt_mask_NT = np.tile(np.arange(block) < 1, (args.num_samples, 1))
    rows = [{"sampler": "real texts"} | quality(judge, real_NT)]
    print(machine())
    head = ("nll", "+-", "entropy", "calls", "evaluations", "ms a text")
    print(f"{'sampler':32}" + "".join(f"{name:>12}" for name in head))
    print(
        f"{'real texts':32}{rows[0]['nll']:12.3f}{rows[0]['nll_error']:12.3f}"
        f"{rows[0]['entropy']:12.3f}"
    )
    chosen = contenders(type(run.system), run.config, block)
    if args.only:
        chosen = {name: chosen[name] for name in args.only}
    for name, (system, sampling) in chosen.items():
        fill = lambda seed, system=system, sampling=sampling: system.sample(
            run.params,
            real_NT * prompt_mask_NT,
            prompt_mask_NT,
            jax.random.key(seed),
            sampling,
        )
        fill(1)  # Compiles.
        began = time.process_time()  # Other programs do not disturb it.
        filled = fill(0)
        seconds = (time.process_time() - began) / args.num_samples
        row = {"sampler": name} | quality(judge, filled.tokens_BT)
        row |= {
            "calls": float(filled.num_forward_passes_B.mean()),
            "evaluations": float(filled.tokens_processed_B.mean()),
            "seconds": seconds,
        }
        rows.append(row)
        print(
            f"{name:32}{row['nll']:12.3f}{row['nll_error']:12.3f}"
            f"{row['entropy']:12.3f}{row['calls']:12.1f}{row['evaluations']:12.0f}"
            f"{1e3 * seconds:12.2f}",
            flush=True,
        )
    record = {"machine": machine(), "rows": rows}
    if not args.only:
        drawing.write_record(record, args.figure)
        draw_figure(record, args.figure)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
