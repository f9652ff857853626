"""The gain from a memory: loss by distance, and perplexity by size, of two runs.

python -m scripts.draw_memory --workdir=runs/memory_gpt2-laptop \
    --without=runs/memory_gpt2-laptop-off --output=docs/memory.png

Prints a table, and one JSON object last.
"""

from __future__ import annotations

import math
import pathlib
from typing import Any

from jaxgpt import backend, cli, drawing
from jaxgpt.config import user_path

SIZES = (64, 256, 1024, 4096)


def measure(workdir: str, split: str, count: int, **overrides: Any) -> dict[str, Any]:
    """Returns the figures of a run's documents; with overrides only the loss."""
    from jaxgpt.run import open_run
    from jaxgpt.systems.memory.evaluation import report

    given = {f"memory.{name}": str(value) for name, value in overrides.items()}
    run = open_run(workdir, "last", given)
    windows = run.open_data().eval_windows(split, run.system.window, count)
    rows = run.config.batch_size
    if overrides:
        nll = run.system.eval_nll(run.params, windows, rows, run.config.seed)
        return {"loss": float(nll[""].mean())}
    return report(run.system.host, run.params, windows, rows, {})


def draw(record: dict[str, Any], path: pathlib.Path) -> None:
    """Writes the figure."""
    with_it, without, sizes = record["with"], record["without"], record["sizes"]
    names = list(with_it["loss_by_distance_on"])
    with drawing.picture(path, 7.5) as figure:
        upper, lower = figure.subplots(2, 1)
        lines = []
        for loss, style, color in (
            (without["loss_by_distance_off"], "o-", drawing.BLUE),
            (with_it["loss_by_distance_off"], "o--", drawing.ORANGE),
            (with_it["loss_by_distance_on"], "o-", drawing.GREEN),
        ):
            losses = [loss[name] for name in names]
            lines += upper.plot(range(len(names)), losses, style, color=color)
        ranges = [f"≥ {n[:-1]}" if n[-1] == "-" else n for n in names]
        upper.set_xticks(range(len(names)), ranges)
        upper.set(
            title="Loss of a token, by how far back it last occurred",
            xlabel="tokens since it last occurred",
            ylabel="loss, nats per token",
        )
        shown = ["without a memory", "its memory masked", "with its memory"]
        drawing.label_ends(upper, lines, shown)
        perplexities = [math.exp(loss) for loss in sizes.values()]
        entries = [int(size) for size in sizes]
        (line,) = lower.plot(entries, perplexities, "o-", color=drawing.GREEN)
        off = lower.axhline(without["perplexity_off"], color=drawing.BLUE)
        shuffled = lower.axhline(
            with_it["perplexity_shuffled"], color=drawing.PINK, ls="--"
        )
        lower.set(
            title="Perplexity, by how much a memory holds",
            xlabel="entries of the memory",
            ylabel="perplexity",
        )
        drawing.log_scale(lower, "x", entries)
        shown = ["with its memory", "without a memory", "another document's\nmemory"]
        drawing.label_ends(lower, [line, off, shuffled], shown)


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
    record = {"with": with_it, "without": without, "sizes": sizes}
    output = user_path(args.output)
    drawing.write_record(record, output)
    draw(record, output)
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
    cli.print_json(record)


if __name__ == "__main__":
    cli.main(command)
