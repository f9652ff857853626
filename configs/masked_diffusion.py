"""Masked diffusion on Shakespeare's characters, of whole texts or block by block.

python -m jaxgpt.train --config=configs/masked_diffusion.py:laptop

variant   size                      validation loss, nats (an upper bound)
(none)    6 layers, 384, block 256  (not run yet)
:laptop   4 layers, 128, block 64   2.38 ± 0.03 after 850 steps (docs/diffusion.md)
:tiny     2 layers, 32, block 32

Each also as :blocks, :laptop-blocks and :tiny-blocks, with blocks of eight tokens,
which are unmasked one after another. The sizes of configs/sigma_char.py, with Muon and
with rotated queries and keys: in 700 steps of :laptop these reached 2.48, learned
positions 2.74 (seed 1337).
"""

from jaxgpt.config import load, override


def get_config(variant=""):
    size = variant.removesuffix("blocks").removesuffix("-")
    config = override(
        load(f"sigma_char:{size}", {}),
        {
            "system": "masked-diffusion",
            "model.positions": "rope",
            # Distances in a text of 64 need no slow rotations.
            "model.rope_theta": 1e4 if size == "" else 100.0,
            "optimizer.name": "muon",
            "optimizer.learning_rate": 8e-3,
        },
    )
    if variant.endswith("blocks"):
        override(config, {"diffusion.block_length": 8})
    return config
