"""σ-GPT beyond text.

python -m jaxgpt.train --config=configs/sigma_task.py:maze-laptop
"""

from jaxgpt.config import base, override, with_variant

ORIGINAL = {
    "system": "sigma-task",
    "model.positions": "sinusoidal",
    "model.sinusoid_scale": 1.0,
    "model.activation": "relu",
    "model.bias": True,
    "model.attention_bias": False,
    "model.final_norm": False,
    "model.tied_head": False,
    "model.dropout": 0.1,
}
TINY = {
    "model.n_layer": 2, "model.n_head": 2, "model.n_embd": 32, "model.key_width": 16,
    "task.train_sequences": 1000, "task.val_sequences": 100, "task.eval_sequences": 16,
    "steps": 40, "batch_size": 8, "eval_interval": 20, "checkpoint_interval": 20,
    "eval_sequences": 16,
}


def get_config(variant=""):
    config = override(base(), ORIGINAL)
    variants = {"maze": {"task.name": "maze"}}
    for task in ("maze", "product", "step", "permutation"):
        variants[task + "-tiny"] = TINY | {"task.name": task, "task.height": 7, "task.width": 9, "task.walls": 4, "task.min_distance": 4, "task.length": 20}
    return with_variant(config, variant, variants)
