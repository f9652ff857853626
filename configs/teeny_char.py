"""teenyGPT on Shakespeare's characters: the causal system with another config.

python -m jaxgpt.train --config=configs/teeny_char.py:laptop

variant   size                      hardware             time    validation loss, nats
(none)    4 layers, 256, block 256  a GPU or TPU         (not run yet)
:laptop   4 layers, 128, block 128  2 cores, Intel Xeon  12 min  1.386
:tiny     2 layers, 32, block 32    the same             5 s     3.628

:laptop shared the machine with three other jobs and took 8.6 minutes of CPU time, so
about five alone; its loss was 1.887 after 250 of 2,500 steps.

Layers, heads, width, block, steps, optimizer and split are those of the original. ALiBi
extrapolates past the block it was trained on; other encodings, feed-forwards and norms
are --config.model.positions, .activation and .norm.
"""

from jaxgpt.config import base, override, with_variant


def get_config(variant=""):
    config = override(
        base(),
        {
            "system": "causal",
            "steps": 5000,
            "batch_size": 64,
            "model.n_layer": 4,
            "model.n_head": 8,
            "model.n_embd": 256,
            "model.block_size": 256,
            "model.positions": "alibi",
            "model.activation": "swiglu",
            "model.norm": "rms",
            "optimizer.learning_rate": 1e-3,
            "optimizer.min_learning_rate": 1e-5,
            "optimizer.warmup_steps": 0,
            "data.split": "chunks",
            "data.test_fraction": 0.1,
        },
    )
    variants = {
        "laptop": {
            "model.n_embd": 128,
            "model.block_size": 128,
            "steps": 2500,
            "batch_size": 16,
            "log_interval": 50,
            "optimizer.learning_rate": 3e-3,
            "optimizer.warmup_steps": 100,
        },
        "tiny": {
            "model.n_layer": 2,
            "model.n_head": 4,
            "model.n_embd": 32,
            "model.block_size": 32,
            "data.chunk_tokens": 1000,  # Enough of them in a short text.
            "steps": 40,
            "batch_size": 8,
            "eval_interval": 20,
            "eval_sequences": 16,
            "checkpoint_interval": 20,
        },
    }
    return with_variant(config, variant, variants)
