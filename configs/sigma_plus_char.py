"""σ-GPT on Shakespeare's characters, with improvements since the paper.

python -m jaxgpt.train --config=configs/sigma_plus_char.py:laptop

variant   size                      validation loss, nats, random / left to right
(none)    6 layers, 384, block 256  (not run yet)
:laptop   4 layers, 128, block 64   2.059 / 1.880 (seed 0, 3,300 steps)
:tiny     2 layers, 32, block 32

configs/sigma_char.py and its variants, with Muon, norms that depend on the target
position (arXiv 2506.19935), averaged parameters, a tenth of the sequences read left to
right, and a begin token, so that it models whole texts and needs no prompt.
configs/quickstart.py is better left to right and at filling gaps.
"""

from jaxgpt.config import load, override


def get_config(variant=""):
    return override(
        load(f"sigma_char:{variant}", {}),
        {
            "sigma.adaptive_norm": True,
            "sigma.left_to_right_share": 0.1,
            "sigma.begin_token": True,
            "optimizer.name": "muon",
            "optimizer.learning_rate": 8e-3,
            "optimizer.ema_decay": 0.999,
        },
    )
