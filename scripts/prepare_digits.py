"""Write scikit-learn's handwritten digits as the IDX files that the task mnist reads.

pip install scikit-learn
python -m scripts.prepare_digits --output=data/digits
python -m jaxgpt.train --config=configs/sigma_task.py:mnist-laptop \
    --config.task.path=data/digits

1,797 images of 8 x 8 pixels, of which the last 297 are held out. The package carries
them along, and is needed for nothing else. Also says how often the task's judge names
the class of a held-out image.
"""

from __future__ import annotations

import pathlib
import struct

import numpy as np

from jaxgpt import cli
from jaxgpt import config as configs
from jaxgpt.config import user_path
from jaxgpt.errors import UserError, atomic_write, log
from jaxgpt.systems.sigma.tasks.system import make_task

HELD_OUT = 297


def write_idx(path: pathlib.Path, values: np.ndarray) -> None:
    """Writes an array as an IDX file of bytes."""
    header = struct.pack(f">{1 + values.ndim}i", 0x800 + values.ndim, *values.shape)
    with atomic_write(path, "wb") as stream:
        stream.write(header + values.astype(np.uint8).tobytes())


def write_splits(
    folder: pathlib.Path, greys_NHW: np.ndarray, labels_N: np.ndarray, held_out: int
) -> float:
    """Writes images whose greys are 0 .. 16, and their classes.

    Returns:
      the judge's accuracy on the last `held_out` images, which are not learned from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels_NHW = np.minimum(greys_NHW * 16, 255)
    train, val = slice(-held_out), slice(-held_out, None)
    for split, rows in (("train", train), ("t10k", val)):
        write_idx(folder / f"{split}-images-idx3-ubyte", pixels_NHW[rows])
        write_idx(folder / f"{split}-labels-idx1-ubyte", labels_N[rows])
    changes = {"task.path": str(folder), "task.class_conditional": "true"}
    task = make_task(configs.load("sigma_task:mnist", changes))
    tokens_NT = task.read_split("val")
    verdict = task.judge(tokens_NT, tokens_NT, task.prompt_mask(tokens_NT))
    return float(verdict["accuracy"].mean())


def command(argv: list[str]) -> None:
    """Parses arguments and writes the four files."""
    parser = cli.Parser("scripts.prepare_digits", __doc__)
    parser.add_argument("--output", required=True, help="folder to write")
    args = parser.parse_args(argv)
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "the package sklearn is missing: pip install scikit-learn"
        ) from None
    digits = load_digits()
    folder = user_path(args.output)
    right = write_splits(folder, digits.images, digits.target, HELD_OUT)
    log(
        f"{args.output}: {len(digits.target)} images, {HELD_OUT} of them held out; of "
        f"those the judge names {right:.3f} right"
    )


if __name__ == "__main__":
    cli.main(command)
