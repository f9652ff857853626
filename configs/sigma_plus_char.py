"""σ-GPT on Shakespeare's characters, with improvements since the paper.

python -m jaxgpt.train --config=configs/sigma_plus_char.py:laptop

variant   size                      hardware            time   validation loss, nats
                                                               random / left to right
(none)    6 layers, 384, block 256  a GPU or TPU        (not run yet)
:laptop   4 layers, 128, block 64   2 cores, Intel Xeon 4 min  2.173 / 2.041 (seed 0)
:tiny     2 layers, 32, block 32    the same            5 s    3.636 / 3.636

configs/sigma_char.py and its variants, with norms that depend on the target
position (arXiv 2506.19935), averaged parameters, a tenth of the sequences read left to
right, and a begin token, so that it models whole texts and needs no prompt.
"""

import pathlib

from jaxgpt.config import load, override

PLAIN = pathlib.Path(__file__).with_name("sigma_char.py")


def get_config(variant=""):
    return override(
        load(f"{PLAIN}:{variant}", {}),
        {
            "sigma.adaptive_norm": True,
            "sigma.left_to_right_share": 0.1,
            "sigma.begin_token": True,
            "optimizer.name": "muon",
            "optimizer.learning_rate": 8e-3,
            "optimizer.ema_decay": 0.999,
        },
    )
