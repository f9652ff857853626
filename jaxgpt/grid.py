"""Run a study: a training run for every point of a grid, one CSV, one figure.

python -m jaxgpt.grid --study=studies/gssm_modes.yaml

A study is a YAML or JSON file: `config`, `overrides` of it, `grid` (a list of values
for each field: every combination is a point), `y` (a name in metrics.csv), `x` and
`lines` (fields of the grid), and the `title` of the figure. Instead of a grid with x
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
    args = parser.parse_args(argv)
    # Matplotlib takes a while, which --help does not need.
    from jaxgpt.commands.grid import execute

    return execute(args)


if __name__ == "__main__":
    cli.main(command)
