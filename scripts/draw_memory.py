"""The gain from a memory: loss by distance, and perplexity by size, of two runs.

python -m scripts.draw_memory --workdir=runs/memory_gpt2-laptop \
    --without=runs/memory_gpt2-laptop-off --output=docs/memory.png

Prints a table, and one JSON object last.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxgpt import backend, cli
from jaxgpt.config import user_path

SIZES = (64, 256, 1024, 4096)


def measure(workdir: str, split: str, count: int, **overrides: Any) -> dict[str, Any]:
    """Returns the figures of a run's documents; with overrides only the loss."""
    from jaxgpt.run import open_run

    given = {f"memory.{name}": str(value) for name, value in overrides.items()}
    run = open_run(workdir, "last", given)
    windows = run.open_data().eval_windows(split, run.system.window, count)
    rows = run.config.batch_size
    if overrides:
        nll = run.system.eval_nll(run.params, windows, rows, run.config.seed)
        return {"loss": float(nll[""].mean())}
    return run.system.report(run.params, windows, rows)


def draw(with_it: dict, without: dict, sizes: dict[int, float], output: str) -> None:
    """Writes the figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(with_it["loss_by_distance_on"])
    at = np.arange(len(names))
    for label, found in (
        ("without a memory", without["loss_by_distance_off"]),
        ("its memory masked", with_it["loss_by_distance_off"]),
        ("with its memory", with_it["loss_by_distance_on"]),
    ):
        style = "--" if "masked" in label else "-"
        left.plot(at, [found[name] for name in names], f"o{style}", label=label)
    left.set_xticks(at, names, rotation=30, ha="right")
    left.set(xlabel="tokens since it last occurred", ylabel="loss, nats")
    left.legend()
    right.plot(list(sizes), [math.exp(loss) for loss in sizes.values()], "o-", c="C2")
    right.axhline(without["perplexity_off"], color="C0", label="without a memory")
    right.axhline(
        with_it["perplexity_shuffled"],
        color="C3",
        ls="--",
        label="another document's memory",
    )
    right.set_xscale("log", base=2)
    right.set(xlabel="entries a memory holds", ylabel="perplexity")
    right.legend()
    figure.savefig(output, dpi=110)


def command(argv: list[str]) -> None:
    """Parses arguments, measures and draws."""
    parser = cli.Parser("draw_memory", __doc__)
    parser.add_argument("--workdir", required=True, help="a run with a memory")
    parser.add_argument("--without", required=True, help="the same with reading=off")
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument(
        "--segments",
        type=int,
        default=1024,
        help="approximate number, of all documents",
    )
    parser.add_argument("--output", required=True, help="the .png to write")
    args = parser.parse_args(argv)
    backend.set_up_jax()
    what = (args.split, args.segments)
    with_it = measure(args.workdir, *what)
    without = measure(args.without, *what)
    sizes = {
        size: measure(args.workdir, *what, memory_size=size)["loss"] for size in SIZES
    }
    draw(with_it, without, sizes, str(user_path(args.output)))
    rows = [("without", without, "off")]
    rows += [(way, with_it, way) for way in ("on", "off", "shuffled")]
    print(f"{'memory':>10}  perplexity  accuracy      f1")
    for label, found, way in rows:
        figures = [found[f"{name}_{way}"] for name in ("perplexity", "accuracy", "f1")]
        print(f"{label:>10}  {figures[0]:10.2f}  {figures[1]:8.4f}  {figures[2]:6.4f}")
    for size, loss in sizes.items():
        print(f"{size:>10} entries: perplexity {math.exp(loss):.2f}")
    ratio = with_it["perplexity_on"] / without["perplexity_off"]
    print(f"with / without: {ratio:.3f}")
    cli.print_json({"with": with_it, "without": without, "sizes": sizes})


if __name__ == "__main__":
    cli.main(command)
