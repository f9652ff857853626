"""σ-GPT of GPT-2's size on web text, with nanoGPT's schedule, for a TPU slice or GPUs.

python -m jaxgpt.train --config=configs/sigma_text.py \
    --config.data.path=data/openwebtext

variant   size                         hardware             time   validation loss
(none)    12 layers, 768, block 1025   TPU slice, 8 GPUs    (not run yet)
:tiny     2 layers, 32, block 32       2 cores, Intel Xeon  5 s    smoke test

Half a million tokens per step over all devices, 600,000 steps; raise `accumulation`
until a step fits (`python -m jaxgpt.plan` tells). The data folder is made by
`python -m scripts.prepare_text`; docs/scaling.md goes through it step by step. :tiny
reads the shipped Shakespeare.
"""

from jaxgpt.config import base, override, with_variant


def get_config(variant=""):
    config = override(
        base(),
        {
            "system": "sigma",
            "steps": 600_000,
            "batch_size": 512,
            "accumulation": 1,
            "model.n_layer": 12,
            "model.n_head": 12,
            "model.n_embd": 768,
            # The first token is not predicted: 1,024 are, a multiple of a TPU's tiles.
            # With 1,023 the step takes eight times as long to compile.
            "model.block_size": 1025,
            # 50257 rounded up: a multiple of 128 fills the units of a TPU.
            "model.vocab_size": 50304,
            "model.dtype": "bfloat16",
            "model.remat": "full",
            "model.scan_layers": True,
            "optimizer.learning_rate": 6e-4,
            "optimizer.min_learning_rate": 6e-5,
            "optimizer.warmup_steps": 2000,
            "optimizer.beta2": 0.95,
            "data.path": "data/openwebtext",
            "data.tokenizer": "gpt2",
            "eval_interval": 1000,
            "eval_sequences": 4096,
            "checkpoint_interval": 1000,
        },
    )
    variants = {
        "tiny": {
            "model.n_layer": 2,
            "model.n_head": 2,
            "model.n_embd": 32,
            "model.block_size": 32,
            "steps": 40,
            "batch_size": 8,
            "data.path": "data/shakespeare.txt",
            "eval_interval": 20,
            "eval_sequences": 16,
            "checkpoint_interval": 20,
            "optimizer.warmup_steps": 5,
        },
    }
    return with_variant(config, variant, variants)
