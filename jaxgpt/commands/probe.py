"""Probes the checkpoints of a run for the latents of its graph, and plots them."""

from __future__ import annotations

import argparse
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from jaxgpt import backend, cli, drawing
from jaxgpt import config as configs
from jaxgpt.errors import os_errors
from jaxgpt.run import open_run
from jaxgpt.systems.gssm.probes import Probes
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.progress import status


def execute(args: argparse.Namespace, figure: pathlib.Path | None) -> None:
    """Probes what the options name; prints it, and draws it in a .png file.

    Raises:
      UserError: if there is no such checkpoint, or the picture cannot be written.
    """
    backend.set_up_jax()
    with status("probing the checkpoints"):
        figures = probe(args.workdir, args.step, args.num_sequences)
    if figure:
        with os_errors(f"--figure='{args.figure}'"):
            drawing.write_record(figures, figure)
            plot(figures, figure)
    if args.json:
        cli.print_json(figures)
    else:
        print("\n".join(table(figures)))


def probe(workdir: str, step: str, num_sequences: int) -> dict[str, Any]:
    """Returns the figures of an untrained model and of checkpoints.

    `step` is "all", or as of `open_run`, and `num_sequences` as of `Probes`. The result
    is {"layers": names; "latents": `Probes.references`; "models": {"untrained" or a
    step: `Probes.measure`}; "sequences": how many were scored}.

    Raises:
      UserError: as `open_run`.
    """
    steps = [step]
    if step == "all":
        folder = configs.user_path(workdir)
        found = Checkpoints(folder, read_only=True).steps()
        steps = [str(one) for one in found] or ["last"]
    run = open_run(workdir, steps[0])
    probes = Probes(run.system, num_sequences)
    models = {"untrained": probes.untrained(), str(run.step): run.params}
    models |= {other: open_run(workdir, other).params for other in steps[1:]}
    return {
        "layers": probes.layers,
        "latents": probes.references(),
        "models": {name: probes.measure(params) for name, params in models.items()},
        "sequences": num_sequences,
    }


def table(figures: dict[str, Any]) -> list[str]:
    """Returns the figures as lines of text."""
    row = lambda name, cells: f"{name:>28}" + "".join(f"{cell:>11}" for cell in cells)
    lines = []
    for model, found in figures["models"].items():
        title = model if model == "untrained" else f"step {model}"
        lines.append(row(title, figures["layers"]))
        for latent, values in found.items():
            shown = ["-" if v is None else f"{v:.3f}" for v in values["r2"]]
            lines.append(row(f"R^2 of the belief, {latent}", shown))
        for latent, values in found.items():
            shown = [f"{v:.3f}" for v in values["accuracy"]]
            lines.append(row(f"accuracy of the state, {latent}", shown))
    for latent, known in figures["latents"].items():
        lines.append(
            f"{latent}: {known['states']} states; the commonest is right "
            f"{known['commonest']:.3f} of the time, the likeliest by the exact belief "
            f"{known['belief']:.3f}"
        )
    return lines


def plot(figures: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the figures of `probe`: by layer, and by step if there are several.

    By layer they are those of the last checkpoint, with the untrained model's dashed.
    """
    models, latents = dict(figures["models"]), figures["latents"]
    untrained = models.pop("untrained")
    steps, last = [int(step) for step in models], list(models.values())[-1]
    blocks = [f"block\n{i}" for i in range(len(figures["layers"]) - 1)]
    titles = {"r2": "R² of the exact belief", "accuracy": "Accuracy of the state"}
    several = len(steps) > 1

    def draw(axes: Any, places: Sequence[int], curves: dict[str, list[float]]) -> None:
        lines = [axes.plot(places, curve, "o-")[0] for curve in curves.values()]
        drawing.label_ends(axes, lines, [*curves])

    with drawing.picture(path, 7.5 if several else 4.2) as figure:
        rows = figure.subplots(1 + several, 2, squeeze=False)
        drawing.heading(figure, "What linear probes read of the latents")
        for column, (name, title) in zip(rows.T, titles.items(), strict=True):
            axes = column[0]
            draw(axes, range(len(blocks) + 1), {z: last[z][name] for z in latents})
            axes.set_prop_cycle(None)
            for latent in latents:
                axes.plot(untrained[latent][name], "--", lw=1.2)
            axes.set_xticks(range(len(blocks) + 1), ["embed-\nding", *blocks])
            axes.set(title=title, xlabel=f"layer, at step {steps[-1]}")
            if several:
                found = models.values()
                ends = {z: [one[z][name][-1] for one in found] for z in latents}
                draw(column[1], steps, ends)
                column[1].set_xlabel("step, after the last block")
        for axes in rows[:, 1]:
            for known, colour in zip(
                latents.values(), itertools.cycle(drawing.COLOURS)
            ):
                axes.axhline(known["belief"], color=colour, lw=1.2, ls=":")
        for axes, style, label in zip(
            rows[0], ("--", ":"), ("untrained", "exact belief"), strict=True
        ):
            axes.plot([], [], style, color=drawing.GREY, lw=1.2, label=label)
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1))
