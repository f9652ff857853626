"""A transformer on a graph whose structure it can find within a minute.

python -m jaxgpt.train --config=configs/gssm_easy.py

A slow latent behind a faster one. After 900 steps (35 CPU seconds, 2 cores of an Intel
Xeon) the loss is 0.0092 ± 0.0011 nats above the exact 1.306; a bigram model stays 0.329
above, a unigram model 0.798. :tiny is the size of the tests.
"""

import math

from jaxgpt.config import base, override, with_variant

# The original's transformer.
NANOLLAMA = {
    "model.positions": "rope",
    "model.rope_frequency": 2 * math.pi,
    "model.rope_pairs": "neighbours",
    "model.norm": "rms",
    "model.activation": "swiglu",
    "model.tied_head": False,
    "model.init": "fan_in",
    "optimizer.beta2": 0.95,
    "optimizer.decays": "all",
}


def get_config(variant=""):
    config = override(
        base(),
        {
            "system": "gssm",
            "seed": 0,
            "steps": 900,
            "batch_size": 32,
            "data.path": "",
            "gssm.graph": "data/graphs/easy.yaml",
            "gssm.graph_seed": 1,
            "model.n_layer": 2,
            "model.n_head": 2,
            "model.n_embd": 64,
            "model.block_size": 64,
            "model.feed_forward_width": 256,
            **NANOLLAMA,
            "optimizer.learning_rate": 3e-3,
            "optimizer.min_learning_rate": 3e-5,
            "eval_interval": 150,
            "checkpoint_interval": 450,
        },
    )
    variants = {
        "tiny": {
            "model.n_embd": 16,
            "model.block_size": 16,
            "steps": 20,
            "batch_size": 8,
            "eval_interval": 10,
            "eval_sequences": 32,
            "checkpoint_interval": 10,
            "optimizer.warmup_steps": 5,
        },
    }
    return with_variant(config, variant, variants)
