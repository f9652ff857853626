"""σ-GPT on Shakespeare's characters, generating in any order.

python -m jaxgpt.train --config=configs/sigma_char.py:laptop

variant   size                      hardware            time   validation loss, nats
                                                               random / left to right
(none)    6 layers, 384, block 256  a GPU or TPU        (not run yet)
:laptop   4 layers, 128, block 64   1 core, AMD EPYC    3 min  2.068 / 2.119 (seed 0)
:tiny     2 layers, 32, block 32    2 cores, Intel Xeon 5 s    3.639 / 3.635

The default is the original's character model, and its optimizer. The original reached
2.60 / 2.76 with the size of :laptop after 3,600 steps of AdamW; :laptop uses Muon.
"""

from jaxgpt.config import base, override, with_variant

SMALL = {
    "model.n_layer": 4,
    "model.n_head": 4,
    "model.n_embd": 128,
    "model.block_size": 64,
    "model.dropout": 0.0,
}


def get_config(variant=""):
    config = override(
        base(),
        {
            "system": "sigma",
            "steps": 5000,
            "batch_size": 64,
            "model.dropout": 0.2,
            "optimizer.learning_rate": 1e-3,
            "optimizer.min_learning_rate": 1e-4,
        },
    )
    variants = {
        "laptop": SMALL
        | {
            "steps": 3600,
            "batch_size": 16,
            "eval_interval": 400,
            "checkpoint_interval": 400,
            "log_interval": 50,
            "optimizer.name": "muon",
            "optimizer.learning_rate": 1.2e-2,
        },
        "tiny": SMALL
        | {
            "model.n_layer": 2,
            "model.n_embd": 32,
            "model.block_size": 32,
            "steps": 40,
            "batch_size": 8,
            "eval_interval": 20,
            "eval_sequences": 16,
            "checkpoint_interval": 20,
            "optimizer.warmup_steps": 5,
        },
    }
    return with_variant(config, variant, variants)
