"""Makes the pictures of README.md and docs/ anew, and dates them in docs/figures.md.

python -m scripts.figures              # those that take minutes on two CPU cores
python -m scripts.figures pareto ...   # these; --list says which there are

Commands are run as a user runs them, and print the numbers that the pages quote.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import pathlib
import re
import resource
import shlex
import shutil
import subprocess
import sys

from benchmarks.alternate import machine

ROOT = pathlib.Path(__file__).parents[1]
RUNS = pathlib.Path("runs/figures")  # Made anew each time.
PAGE = """# Figures

What each picture was made with, by `make figures`, or by
`python -m scripts.figures NAME` where that takes longer than minutes; seconds are CPU
time, of all its commands. A picture that is not here was made by the same commands on
an earlier day.

| picture | name | machine | date | CPU s |
|---|---|---|---|---|
"""


@dataclasses.dataclass(frozen=True)
class Figure:
    """Commands, and where they leave each picture; `{runs}` is the folder of runs."""

    commands: tuple[str, ...]
    pictures: dict[str, str]
    minutes: int  # of two CPU cores, roughly
    by_default: bool = False


def study(name: str, minutes: int) -> Figure:
    made = f"{{runs}}/gssm_{name}/results.png"
    command = f"jaxgpt.grid --study=studies/gssm_{name}.yaml"
    return Figure(
        (f"{command} --workdir={{runs}}/gssm_{name}",),
        {f"gssm_study_{name}.png": made},
        minutes,
    )


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
        {"quickstart.png": "{runs}/quickstart/loss.png"},
        5,
        by_default=True,
    ),
    "gssm": Figure(
        (
            "jaxgpt.train --config=configs/gssm.py:easy --workdir={runs}/gssm",
            "scripts.draw_gssm_graph --graph=data/graphs/easy.yaml "
            "--output={runs}/gssm/graph.png",
        ),
        {
            "gssm_loss.png": "{runs}/gssm/loss.png",
            "gssm_position.png": "{runs}/gssm/position.png",
            "gssm_graph.png": "{runs}/gssm/graph.png",
        },
        1,
        by_default=True,
    ),
    "sigma_calls": Figure(
        ("benchmarks.sigma_calls --figure={runs}/sigma_calls.png",),
        {"sigma_calls.png": "{runs}/sigma_calls.png"},
        3,
        by_default=True,
    ),
    "parity": Figure(
        ("parity_tests.certificate",), {"parity.png": "docs/parity.png"}, 10
    ),
    "extrapolation": Figure(
        ("benchmarks.extrapolation",),
        {"extrapolation.png": "docs/extrapolation.png"},
        20,
    ),
    "burst": Figure(
        (
            LAPTOP.format("sigma_plus_char", "burst"),
            "scripts.burst_gif --workdir={runs}/burst --output={runs}/burst.gif",
        ),
        {"sigma_burst.gif": "{runs}/burst.gif"},
        5,
    ),
    "pareto": Figure(
        (
            LAPTOP.format("sigma_plus_char", "pareto"),
            LAPTOP.format("sigma_char", "judge") + " --config.system=causal",
            "benchmarks.sigma_pareto --workdir={runs}/pareto --judge={runs}/judge "
            "--num_samples=48 --figure={runs}/pareto.png",
        ),
        {"sigma_pareto.png": "{runs}/pareto.png"},
        20,
    ),
    "memory": Figure(
        (
            "scripts.plays",
            LAPTOP.format("memory_gpt2", "memory"),
            "jaxgpt.train --config=configs/memory_gpt2.py:laptop-off "
            "--workdir={runs}/memory-off",
            "scripts.draw_memory --workdir={runs}/memory --without={runs}/memory-off "
            "--output={runs}/memory.png",
        ),
        {"memory.png": "{runs}/memory.png"},
        10,
    ),
    "modes": study("modes", 30),
    "data": study("data", 30),
    "latents": study("latents", 30),
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
    for picture, made in figure.pictures.items():
        source, target = ROOT / made.format(runs=RUNS), ROOT / "docs" / picture
        if source != target:
            shutil.copyfile(source, target)
        date(ROOT / "docs/figures.md", picture, name, seconds)


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
    args = parser.parse_args()
    if args.list:
        for name, figure in FIGURES.items():
            print(f"{name:<14} ~{figure.minutes:>3} min  {', '.join(figure.pictures)}")
        return
    if unknown := sorted(set(args.names) - set(FIGURES)):
        parser.error(f"unknown '{unknown[0]}': there are {', '.join(FIGURES)}")
    shutil.rmtree(ROOT / RUNS, ignore_errors=True)
    (ROOT / RUNS).mkdir(parents=True)
    for name in args.names or short:
        make(name, FIGURES[name])


if __name__ == "__main__":
    main()
