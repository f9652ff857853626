"""Recall of facts beyond the context: learned with a memory, impossible without one.

python -m jaxgpt.train --config=configs/memory_recall.py

31 s of CPU time on 2 cores of an AMD EPYC: 0.0012 to 0.0013 nats after 400 steps
(three seeds). Chance is 4.16.
"""

from jaxgpt.config import base, override, with_variant


def get_config(variant=""):
    config = override(
        base(),
        {
            "system": "memory",
            "data.path": "",
            "steps": 400,
            "batch_size": 128,
            "model.n_layer": 2,
            "model.n_head": 4,
            "model.n_embd": 64,
            "model.block_size": 32,
            # Larger token embeddings: they, and with them addresses, change less per
            # step.
            "model.init": "fan_in",
            "memory.memory_size": 128,
            "memory.num_search_results": 4,
            "memory.context": 1,
            "memory.join_std": 0.02,
            "memory.budget": 0.3,
            "optimizer.learning_rate": 3e-3,
            "optimizer.min_learning_rate": 1e-3,
            "optimizer.warmup_steps": 20,
            "eval_interval": 100,
            "eval_sequences": 512,
            "checkpoint_interval": 400,
        },
    )
    variants = {
        "off": {"memory.reading": "off"},
        "tiny": {
            "batch_size": 8,
            "steps": 20,
            "eval_interval": 10,
            "eval_sequences": 32,
        },
    }
    return with_variant(config, variant, variants)
