r"""Train; the same command resumes.

python -m jaxgpt.train --config=configs/quickstart.py
python -m jaxgpt.train --config=configs/quickstart.py \
    --config.data.path=my_text.txt --workdir=runs/mine
"""

from __future__ import annotations

import contextlib
import pathlib

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.errors import UserError

# Config fields that --help shows.
COMMON = (
    *("steps", "batch_size", "seed", "init_from", "data.path", "data.tokenizer"),
    *("model.n_layer", "model.n_head", "model.n_embd", "model.block_size"),
    *("model.dropout", "optimizer.learning_rate", "eval_interval", "sigma.order"),
)


def default_workdir(spec: str) -> str:
    """Returns runs/NAME or runs/NAME-variant for [configs/]NAME[.py][:variant]."""
    path, variant = configs.split_spec(spec)
    return f"runs/{pathlib.Path(path).stem}" + (f"-{variant}" if variant else "")


def smaller_variant(spec: str) -> str:
    """Returns a config's :laptop variant; "" if it has none or is as small."""
    path, variant = configs.split_spec(spec)
    if variant.endswith(("laptop", "tiny")):
        return ""
    for name in filter(None, (variant and f"{variant}-laptop", "laptop")):
        with contextlib.suppress(UserError):
            configs.load(f"{path}:{name}", {})
            return f"{path}:{name}"
    return ""


def command(argv: list[str]) -> int:
    """Parses arguments and config overrides, and trains."""
    options, overrides = cli.split_overrides(argv)
    parser = cli.Parser("jaxgpt.train", __doc__, configs.options(), COMMON)
    parser.add_argument(
        "--config",
        help=f"{cli.CONFIG}; without it, the run in --workdir resumes with its own",
    )
    parser.add_argument("--workdir", help="default: runs/NAME or runs/NAME-variant")
    parser.add_argument(
        "--allow",
        type=str,
        default="",
        help="config keys, separated by commas, that may differ from the run's",
    )
    parser.add_argument(
        "--replay",
        type=int,
        help="redo this step of the run in --workdir, changing nothing, and name the "
        "first tensor that is not finite",
    )
    parser.add_processes()
    args = parser.parse_args(options)
    smaller = ""
    if args.config:
        config = configs.load(args.config, overrides)
        smaller = smaller_variant(args.config)
        workdir = args.workdir or default_workdir(args.config)
    elif args.workdir:
        workdir = args.workdir
        frozen = configs.load_frozen(configs.user_path(workdir))
        config = configs.validate(configs.override(frozen, overrides))
    else:
        raise UserError(
            "pass --config=NAME or FILE.py, or --workdir of a run to resume"
        )
    allowed = [key for key in args.allow.split(",") if key]
    configs.check_allowed(allowed)
    # JAX, Flax and Orbax take seconds, which --help and wrong usage do not need.
    from jaxgpt.commands.train import execute

    return execute(args, config, workdir, allowed, overrides, smaller)


if __name__ == "__main__":
    cli.main(command)
