"""Run a study: a training run for every point of a grid, one CSV, one figure.

python -m jaxgpt.grid --study=studies/gssm_modes.yaml

A study is a YAML or JSON file: `config`, `overrides` of it, `grid` (a list of values
for each field: every combination is a point), `y` (a column of results.csv), `x` and
`lines` (fields of the grid; x also parameters, flops, flops_per_token or tokens), and
the `title` of the figure. `test: N` measures each run on N test sequences of its graph;
`fit: power` fits y = a x^-b, `fit: power+constant` a x^-b + c. Instead of a grid with x
and lines it can list its `points`: the changes of each run, {} for none. The same
command resumes.
"""

from __future__ import annotations

from jaxgpt import cli


def command(argv: list[str]) -> int:
    """Parses arguments, runs the points, and gathers."""
    parser = cli.Parser("jaxgpt.grid", __doc__)
    parser.add_argument("--study", required=True, help="YAML or JSON file")
    parser.add_argument("--workdir", help="default: runs/NAME of the study")
    parser.add_argument("--point", type=int, help="train only this one; no gathering")
    parser.add_argument(
        "--gather", action="store_true", help="train nothing: write CSV and figure"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="points to train at a time, each with its share of the cores and its own "
        "log file (default 1)",
    )
    args = parser.parse_args(argv)
    # Matplotlib takes a while, which --help does not need.
    from jaxgpt.commands.grid import execute

    return execute(args)


if __name__ == "__main__":
    cli.main(command)
