"""See and touch a model in a browser: write, erase, fill, compare, score.

python -m jaxgpt.playground --workdir=runs/quickstart
python -m jaxgpt.playground --workdir=runs      # all runs in a folder
"""

from __future__ import annotations

import importlib

from jaxgpt import cli
from jaxgpt.errors import UserError, require
from jaxgpt.sampling.options import check_ranges

EXTRA = {"starlette", "uvicorn"}


def command(argv: list[str]) -> None:
    """Parses arguments and serves the page until it is interrupted."""
    parser = cli.Parser("jaxgpt.playground", __doc__)
    parser.add_argument("--workdir", required=True, help="folder of a run, or of runs")
    parser.add_step()
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one")
    parser.add_argument(
        "--host",
        type=str,
        default="127.0.0.1",
        help="address to listen on; unless it is this machine's own, the URL has a "
        "token that every request needs",
    )
    parser.add_argument(
        "--no_browser", action="store_true", help="only print the address"
    )
    parser.add_argument(
        "--export",
        help="write one HTML file that replays fillings without a server, and exit",
    )
    parser.add_argument(
        "--template",
        type=str,
        help="with --export: a text with gaps written <missing:12>, or @FILE",
    )
    parser.add_argument("--seed", type=int, default=0, help="with --export")
    args = parser.parse_args(argv)
    check_ranges({"seed": args.seed})
    if args.template is not None and not args.export:
        raise UserError("--template needs --export: add that, or type it on the page")
    require(0 <= args.port < 1 << 16, "--port", "in [0, 65535]", args.port)
    try:
        part = importlib.import_module(
            f"jaxgpt.web.{'export' if args.export else 'serve'}"
        )
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        raise UserError(
            f"the playground needs {error.name}: pip install 'jaxgpt[playground]'"
        ) from None
    part.execute(args)


if __name__ == "__main__":
    cli.main(command)
