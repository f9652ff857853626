"""PyTorch weights in, as a run that sample, evaluate and train can use; and out.

python -m jaxgpt.convert --format=nanogpt --source=ckpt.pt --workdir=runs/imported
python -m jaxgpt.convert --format=gpt2 --workdir=runs/imported --output=folder
"""

from __future__ import annotations

from jaxgpt import cli
from jaxgpt.interop.formats import FORMATS


def command(argv: list[str]) -> None:
    """Parses arguments, then imports or exports."""
    parser = cli.Parser("jaxgpt.convert", __doc__)
    parser.add_argument("--format", required=True, choices=list(FORMATS))
    parser.add_argument("--workdir", required=True, help="folder of the run")
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--source", help="import from: .pt, .npz, .safetensors, folder")
    either.add_argument("--output", help="export to: a folder (gpt2), .pt or .npz")
    parser.add_argument(
        "--source_config", help="JSON with the original's configuration"
    )
    parser.add_argument(
        "--tokenizer", help="to add: tokenizer.json, meta.json, .model, or a folder"
    )
    parser.add_argument("--step", default="best", help="checkpoint to export")
    parser.add_json()
    args = parser.parse_args(argv)
    # JAX takes seconds, which --help and wrong usage do not need.
    from jaxgpt.commands.convert import execute

    execute(args)


if __name__ == "__main__":
    cli.main(command)
