"""Makes the pictures of README.md and docs/ anew, and dates them in docs/figures.md.

python -m scripts.figures              # those that take minutes on two CPU cores
python -m scripts.figures pareto ...   # these; --list says which there are
python -m scripts.figures --redraw     # all, from what earlier runs recorded in docs/

Commands are run as a user runs them, and print the numbers that the pages quote. What a
picture is drawn from is kept beside it.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import json
import pathlib
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable

from benchmarks import (
    any_order,
    extrapolation,
    knn_lm,
    sigma_calls,
    sigma_from_causal,
    sigma_pareto,
    timescales,
)
from benchmarks.alternate import machine
from jaxgpt.commands import probe, study_plots
from jaxgpt.commands.study import read_study
from jaxgpt.training import plots
from scripts import draw_learners, draw_memory

ROOT = pathlib.Path(__file__).parents[1]
RUNS = pathlib.Path("runs/figures")  # Made anew each time.
PAGE = """# Figures

What each picture was made with, by `make figures`, or by
`python -m scripts.figures NAME` where that takes longer than minutes; seconds are CPU
time, of all its commands. A picture that is not here was made by the same commands on
an earlier day. Beside a picture lies what it is drawn from, if that was recorded
(`--redraw` needs no run); of extrapolation, as the table of teenygpt.md has it.

| picture | name | machine | date | CPU s |
|---|---|---|---|---|
"""


@dataclasses.dataclass(frozen=True)
class Picture:
    """Where a command leaves a picture, what it drew it from, and how it does."""

    made: str
    record: str = ""
    draw: Callable[[pathlib.Path, pathlib.Path], None] | None = None

    def beside(self, name: str) -> pathlib.Path:
        """Returns where the record of a picture of docs/ is kept."""
        return (ROOT / "docs" / name).with_suffix(pathlib.Path(self.record).suffix)


@dataclasses.dataclass(frozen=True)
class Figure:
    """Commands, and their pictures; `{runs}` is the folder of runs."""

    commands: tuple[str, ...]
    pictures: dict[str, Picture]
    minutes: int  # of two CPU cores, roughly
    by_default: bool = False


def draw_losses(record: pathlib.Path, output: pathlib.Path) -> None:
    lines = record.read_text().splitlines()
    plots.plot_losses([json.loads(line) for line in lines], output)


def draw_positions(record: pathlib.Path, output: pathlib.Path) -> None:
    with open(record) as stream:
        names, *rows = csv.reader(stream)
    columns = zip(names, zip(*rows, strict=True), strict=True)
    curves = {name: list(map(float, values)) for name, values in columns}
    del curves["position"]
    plots.plot_positions(curves, output)


def draw_json(draw: Callable) -> Callable[[pathlib.Path, pathlib.Path], None]:
    return lambda record, output: draw(json.loads(record.read_text()), output)


def draw_parity(record: pathlib.Path, output: pathlib.Path) -> None:
    from parity_tests import certificate  # PyTorch is an extra.

    certificate.draw(certificate.read_losses(record), output)


def study(name: str, minutes: int) -> Figure:
    file, folder = f"studies/gssm_{name}.yaml", f"{{runs}}/gssm_{name}"

    def draw(record: pathlib.Path, output: pathlib.Path) -> None:
        of = read_study(str(ROOT / file))
        with open(record) as stream:
            study_plots.draw(of, list(csv.DictReader(stream)), output)

    return Figure(
        (f"jaxgpt.grid --study={file} --workdir={folder}",),
        {
            f"gssm_study_{name}.png": Picture(
                f"{folder}/results.png", f"{folder}/results.csv", draw
            )
        },
        minutes,
    )


def context(name: str, sequences: int) -> tuple[str, str]:
    run = f"--workdir={{runs}}/{name}"
    return (
        f"jaxgpt.train --config=configs/gssm.py:{name} {run}",
        f"jaxgpt.evaluate {run} --split=test --num_sequences={sequences} "
        f"--positions={{runs}}/{name}.png",
    )


def any_order_study() -> Figure:
    study = "benchmarks.any_order --workdir={runs}/any_order"
    commands = [
        f"{study} --data='{data}' {what}"
        for data in any_order.DATA
        for what in ("--speed", "--train --only judge", "--train", "--time")
    ]
    made = "{runs}/any_order.png"
    record = made.replace(".png", ".json")
    picture = Picture(made, record, draw_json(any_order.draw))
    commands.append(f"{study} --table --figure={made}")
    return Figure(tuple(commands), {"any_order.png": picture}, 75)


LAPTOP = "jaxgpt.train --config=configs/{}.py:laptop --workdir={{runs}}/{}"
FIGURES = {
    "quickstart": Figure(
        (
            "jaxgpt.train --config=configs/quickstart.py --workdir={runs}/quickstart",
            "jaxgpt.evaluate --workdir={runs}/quickstart --infill=0.33",
            "jaxgpt.sample --workdir={runs}/quickstart --order=left-to-right "
            "--template='<missing:24>my lord<missing:33>' --temperature=0.7 "
            "--num_samples=3",
            "jaxgpt.sample --workdir={runs}/quickstart --order=left-to-right "
            "--prompt=ROMEO: --temperature=0.7",
        ),
        {
            "quickstart.png": Picture(
                "{runs}/quickstart/loss.png",
                "{runs}/quickstart/metrics.jsonl",
                draw_losses,
            )
        },
        5,
        by_default=True,
    ),
    "playground": Figure(
        (
            "jaxgpt.train --config=configs/quickstart.py --workdir={runs}/playground",
            "jaxgpt.playground --workdir={runs}/playground "
            "--export=docs/playground_replay.html",
            "scripts.playground_picture --workdir={runs}/playground "
            "--output={runs}/playground.png",
        ),
        {"playground.png": Picture("{runs}/playground.png")},
        5,
    ),
    "gssm": Figure(
        (
            "jaxgpt.train --config=configs/gssm.py:easy --workdir={runs}/gssm",
            "scripts.draw_gssm_graph --graph=data/graphs/easy.yaml "
            "--output={runs}/gssm/graph.png",
            "jaxgpt.evaluate --workdir={runs}/gssm --split=test --num_sequences=65536 "
            "--positions={runs}/gssm/test.png",
        ),
        {
            "gssm_loss.png": Picture(
                "{runs}/gssm/loss.png", "{runs}/gssm/metrics.jsonl", draw_losses
            ),
            "gssm_position.png": Picture(
                "{runs}/gssm/test.png", "{runs}/gssm/test.csv", draw_positions
            ),
            "gssm_graph.png": Picture("{runs}/gssm/graph.png"),
        },
        1,
        by_default=True,
    ),
    "gssm_context": Figure(
        (
            *context("icl_chain", 4096),
            *context("icl_hmm", 1024),
            "jaxgpt.systems.gssm.entropy --config=configs/gssm.py:icl_hmm "
            "--config.gssm.nodes.X.kernel_type=product",
        ),
        {
            "gssm_context.png": Picture(
                "{runs}/icl_chain.png", "{runs}/icl_chain.csv", draw_positions
            )
        },
        4,
        by_default=True,
    ),
    "gssm_probe": Figure(
        (
            "jaxgpt.train --config=configs/gssm.py:two_chains --config.model.n_layer=4 "
            "--config.checkpoint_interval=150 --config.keep=8 "
            "--workdir={runs}/gssm-probe",
            "jaxgpt.systems.gssm.probe --workdir={runs}/gssm-probe --step=all "
            "--figure={runs}/probe.png",
        ),
        {
            "gssm_probe.png": Picture(
                "{runs}/probe.png", "{runs}/probe.json", draw_json(probe.plot)
            )
        },
        2,
        by_default=True,
    ),
    "timescales": Figure(
        (
            "benchmarks.timescales --workdir={runs}/timescales "
            "--figure={runs}/timescales.png",
        ),
        {
            "gssm_timescales.png": Picture(
                "{runs}/timescales.png",
                "{runs}/timescales.json",
                draw_json(timescales.draw),
            )
        },
        12,
    ),
    "learners": Figure(
        (
            "jaxgpt.grid --study=studies/gssm_learners.yaml "
            "--workdir={runs}/gssm_learners",
            "scripts.draw_learners --results={runs}/gssm_learners/results.csv "
            "--output={runs}/learners.png",
        ),
        {
            "gssm_study_learners.png": Picture(
                "{runs}/learners.png",
                "{runs}/gssm_learners/results.csv",
                draw_learners.draw,
            )
        },
        15,
    ),
    "sigma_calls": Figure(
        ("benchmarks.sigma_calls --figure={runs}/sigma_calls.png",),
        {
            "sigma_calls.png": Picture(
                "{runs}/sigma_calls.png",
                "{runs}/sigma_calls.json",
                draw_json(sigma_calls.draw_figure),
            )
        },
        3,
        by_default=True,
    ),
    "sigma_from_causal": Figure(
        (
            "benchmarks.sigma_from_causal --workdir={runs}/from_causal "
            "--figure={runs}/from_causal.png",
        ),
        {
            "sigma_from_causal.png": Picture(
                "{runs}/from_causal.png",
                "{runs}/from_causal.json",
                draw_json(sigma_from_causal.draw_figure),
            )
        },
        12,
    ),
    "parity": Figure(
        ("parity_tests.certificate",),
        {
            "parity.png": Picture(
                "docs/parity.png",
                "docs/parity.csv",
                draw_parity,
            )
        },
        10,
    ),
    "extrapolation": Figure(
        ("benchmarks.extrapolation",),
        {
            "extrapolation.png": Picture(
                "docs/extrapolation.png",
                "docs/extrapolation.json",
                draw_json(extrapolation.draw),
            )
        },
        20,
    ),
    "burst": Figure(
        (
            LAPTOP.format("sigma_plus_char", "burst"),
            "scripts.burst_gif --workdir={runs}/burst --output={runs}/burst.gif",
        ),
        {"sigma_burst.gif": Picture("{runs}/burst.gif")},
        5,
    ),
    "pareto": Figure(
        (
            LAPTOP.format("sigma_plus_char", "pareto"),
            LAPTOP.format("sigma_char", "judge") + " --config.system=causal",
            "benchmarks.sigma_pareto --workdir={runs}/pareto --judge={runs}/judge "
            "--num_samples=48 --figure={runs}/pareto.png",
        ),
        {
            "sigma_pareto.png": Picture(
                "{runs}/pareto.png",
                "{runs}/pareto.json",
                draw_json(sigma_pareto.draw_figure),
            )
        },
        20,
    ),
    "any_order": any_order_study(),
    "memory": Figure(
        (
            "scripts.plays",
            LAPTOP.format("memory_gpt2", "memory"),
            "jaxgpt.train --config=configs/memory_gpt2.py:laptop-off "
            "--workdir={runs}/memory-off",
            "scripts.draw_memory --workdir={runs}/memory --without={runs}/memory-off "
            "--output={runs}/memory.png",
        ),
        {
            "memory.png": Picture(
                "{runs}/memory.png", "{runs}/memory.json", draw_json(draw_memory.draw)
            )
        },
        10,
    ),
    "knn_lm": Figure(
        (
            "scripts.plays",
            LAPTOP.format("memory_gpt2", "plain")
            + " --config.memory.mode=output --config.memory.reading=off",
            "benchmarks.knn_lm --workdir={runs}/plain --output={runs}/knn_lm.png",
        ),
        {
            "knn_lm.png": Picture(
                "{runs}/knn_lm.png", "{runs}/knn_lm.json", draw_json(knn_lm.draw)
            )
        },
        10,
    ),
    "modes": study("modes", 30),
    "data": study("data", 30),
    "latents": study("latents", 30),
    "steps": study("steps", 3),
}


def make(name: str, figure: Figure) -> None:
    """Runs the commands, puts the pictures into docs/ and dates them.

    Raises:
      SystemExit: with the code of a command that failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for command in figure.commands:
        words = shlex.split(command.format(runs=RUNS))
        print(f"$ python -m {shlex.join(words)}", flush=True)
        ended = subprocess.run([sys.executable, "-m", *words], cwd=ROOT)
        if ended.returncode:
            sys.exit(ended.returncode)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    for file, picture in figure.pictures.items():
        copies = {ROOT / "docs" / file: picture.made}
        if picture.record:
            copies[picture.beside(file)] = picture.record
        for target, made in copies.items():
            source = ROOT / made.format(runs=RUNS)
            if source != target:
                shutil.copyfile(source, target)
        date(ROOT / "docs/figures.md", file, name, seconds)


def redraw(figure: Figure, folder: pathlib.Path) -> None:
    """Draws the pictures whose records docs/ has, into a folder."""
    for file, picture in figure.pictures.items():
        if picture.draw and picture.beside(file).exists():
            picture.draw(picture.beside(file), folder / file)


def date(page: pathlib.Path, picture: str, name: str, seconds: float) -> None:
    """Writes the row of a picture in the page, in place of the one it has."""
    text = page.read_text() if page.exists() else ""
    rows = re.findall(r"^\| .*\.(?:png|gif) .*$", text, re.M)
    cells = (picture, name, machine(), f"{datetime.date.today()}", f"{seconds:.0f}")
    rows = [row for row in rows if not row.startswith(f"| {picture} ")]
    rows.append(f"| {' | '.join(cells)} |")
    page.write_text(PAGE + "\n".join(sorted(rows)) + "\n")


def main() -> None:
    short = [name for name, figure in FIGURES.items() if figure.by_default]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"default: {' '.join(short)}"
    )
    parser.add_argument("--list", action="store_true", help="say which there are")
    parser.add_argument(
        "--redraw", action="store_true", help="from the records in docs/ (default: all)"
    )
    args = parser.parse_args()
    if args.list:
        for name, figure in FIGURES.items():
            print(f"{name:<14} ~{figure.minutes:>3} min  {', '.join(figure.pictures)}")
        return
    if unknown := sorted(set(args.names) - set(FIGURES)):
        parser.error(f"unknown '{unknown[0]}': there are {', '.join(FIGURES)}")
    if args.redraw:
        for name in args.names or FIGURES:
            redraw(FIGURES[name], ROOT / "docs")
        return
    shutil.rmtree(ROOT / RUNS, ignore_errors=True)
    (ROOT / RUNS).mkdir(parents=True)
    for name in args.names or short:
        make(name, FIGURES[name])


if __name__ == "__main__":
    main()
