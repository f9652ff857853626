"""σ-GPT beyond text: a task whose generated sequences are judged and drawn.

python -m jaxgpt.train --config=configs/sigma_task.py:maze-laptop

Variants: TASK has the original's size, data and schedule, for one accelerator; the
paper's accuracies were not available. TASK-laptop is a small one for two cores,
TASK-tiny is for tests. The original's sizes 17K, 4M, 37M, 122M and 352M are variants of
every task too: maze-122M.

Results of TASK-laptop on 2 cores (more in docs/sigma-tasks.md): accuracy on held-out
problems, generated in random order and in exact bursts; model calls per burst.

maze         0.907  0.918   8.3 for 63 tokens
product      1.00   1.00    8.0 for 64
step         0.969  0.969   5.6 for 16
permutation  0.84   0.83    8.1 for 16
vertical     0.758  0.750  10.9 for 60
twotargets   1.00   1.00    2.0 for 4
byheart      0.977  0.977   2.0 for 8
addition     0.953  0.953   2.0 for 4
memory       1.00   1.00    2.0 for 4
file         1.00   1.00    3.8 for 11
snake        1.00   1.00    2.0 for 4
stack        0.945  0.945   1.3 for 1.3
learnop      1.00   0.977   3.0 for 9
guessop      1.00   1.00    2.0 for 2
rpl          0.820  0.797   4.6 for 22
greed        0.813  0.805   4.3 for 13
picoclvr     0.734  0.742   5.4 for 16
expr         0.875  0.875   6.1 for 36
mixing       0.83   0.86    7.0 for 18; only 81 pairs of grids exist: memorised
mnist        0.953  0.961  12.4 for 64; digits of 8 x 8 of a class that is given
qmlp         0.203  0.172   4.6 for 9; they agree on 0.80 of the plane

grid and qmlp are unsolved: grid stays at chance.

file needs task.path=TRAIN,VAL; mnist task.path=FOLDER; vertical reads task.path=F.csv,
or draws flights without it.
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
    "optimizer.weight_decay": 0.0,
    "optimizer.grad_clip": 0.0,
    "optimizer.beta2": 0.999,
    "batch_size": 25,
    "eval_interval": 10000,
    "checkpoint_interval": 10000,
    "log_interval": 100,
    "task.learn": "all",
}
# n_layer, n_head, n_embd, key_width, feed_forward_width.
SIZES = {
    "17K": (2, 2, 32, 32, 32),
    "4M": (6, 4, 256, 32, 1024),
    "37M": (12, 8, 512, 64, 2048),
    "122M": (24, 8, 768, 64, 2048),
    "352M": (48, 8, 1024, 64, 2048),
}
FIELDS = ("n_layer", "n_head", "n_embd", "key_width", "feed_forward_width")
# Size, batch size, training sequences, epochs.
TASKS = {
    "maze": ("37M", 5, 100000, 25),
    "product": ("4M", 25, 250000, 25),
    "step": ("4M", 25, 250000, 25),
    "permutation": ("4M", 25, 250000, 25),
    "vertical": ("4M", 25, 250000, 25),
    "snake": ("37M", 25, 250000, 25),
    "mixing": ("37M", 25, 250000, 25),
    "greed": ("37M", 25, 25000, 25),
    "stack": ("37M", 25, 100000, 25),
    "expr": ("352M", 25, 2500000, 25),
    "rpl": ("352M", 5, 2500000, 25),
    "addition": ("352M", 25, 250000, 25),
    "twotargets": ("37M", 25, 50000, 25),
    "byheart": ("37M", 25, 50000, 25),
    "learnop": ("37M", 25, 50000, 25),
    "guessop": ("352M", 25, 1000000, 25),
    "memory": ("37M", 100, 25000, 25),
    "picoclvr": ("37M", 25, 250000, 25),
    "grid": ("37M", 25, 250000, 25),
    "qmlp": ("37M", 10, 100000, 25),
    "mnist": ("37M", 10, 60000, 25),
    "file": ("37M", 25, 250000, 25),
}
GRIDS = {
    "snake": {"task.height": 9, "task.width": 12, "task.length": 200},
    "mixing": {"task.height": 4, "task.width": 4, "task.length": 9},
    "greed": {
        "task.height": 5, "task.width": 7, "task.walls": 5, "task.colors": 2,
        "task.length": 25,
    },
    "stack": {"task.length": 100, "task.digits": 3},
    "expr": {"task.length": 40},
    "rpl": {"task.length": 6},
    "addition": {"task.digits": 10},
    "learnop": {"task.digits": 2},
    "guessop": {"task.digits": 5, "task.length": 8},
    "twotargets": {"task.length": 10},
    "memory": {"task.length": 25},
    "picoclvr": {"task.height": 12, "task.width": 16, "task.length": 6},
    "grid": {"task.height": 6, "task.width": 6, "task.length": 10},
    "qmlp": {"task.length": 100, "task.hidden": 8},
    "vertical": {"task.length": 500},
}  # fmt: skip
LAPTOP = {
    "system": "sigma-task",
    "model.n_layer": 4,
    "model.n_head": 4,
    "model.n_embd": 128,
    "batch_size": 64,
    "steps": 1500,
    "eval_interval": 250,
    "checkpoint_interval": 250,
    "eval_sequences": 128,
    "optimizer.learning_rate": 2e-3,
    "optimizer.warmup_steps": 50,
    "sigma.adaptive_norm": True,
    "task.train_sequences": 50000,
    "task.val_sequences": 1000,
}
# Learns sooner to look things up in what is given, where LAPTOP stays for thousands of
# steps at knowing which tokens there are.
NARROW = {
    "model.n_layer": 3,
    "model.n_embd": 64,
    "model.init": "fan_in",
    "batch_size": 128,
    "optimizer.learning_rate": 5e-3,
    "task.train_sequences": 200000,
}
# Learns in fewer steps where an answer is at a distance from what it depends on.
ROPE = {
    "model.positions": "rope",
    "model.rope_theta": 100.0,
    "optimizer.name": "muon",
    "optimizer.learning_rate": 5e-3,
}
SMALL = {
    "maze": ROPE | {
        "task.height": 7, "task.width": 9, "task.walls": 4, "task.min_distance": 4,
        "task.train_sequences": 200000, "batch_size": 32, "steps": 3000,
        "eval_interval": 500, "model.dtype": "bfloat16", "model.qk_norm": True,
        "optimizer.learning_rate": 3e-3,
    },
    "product": {"task.length": 64, "steps": 300},
    "step": {
        "task.length": 16, "task.step_length": 4, "model.n_layer": 3,
        "model.n_embd": 96, "batch_size": 128, "optimizer.learning_rate": 3e-3,
        "steps": 2500,
    },
    "permutation": {"task.length": 16, "steps": 1000},
    "vertical": {"task.length": 60, "steps": 1000},
    "snake": NARROW | {
        "task.height": 2, "task.width": 3, "task.length": 10, "steps": 1500,
    },
    "mixing": NARROW | {
        "task.height": 3, "task.width": 3, "task.length": 2, "steps": 4000,
        "task.train_sequences": 71, "task.val_sequences": 10,
    },
    "greed": NARROW | {
        "task.height": 3, "task.width": 3, "task.walls": 1, "task.colors": 2,
        "task.length": 2, "steps": 4000, "task.train_sequences": 20000,
    },
    "stack": NARROW | {
        "task.length": 6, "task.digits": 1, "model.init": "gpt2", "batch_size": 256,
        "optimizer.learning_rate": 2e-3, "steps": 3000,
    },
    # Few sequences are held out: distinct short ones are rare.
    "expr": NARROW | {
        "task.length": 8, "task.train_sequences": 150000, "task.val_sequences": 256,
        "steps": 2500,
    },
    "rpl": NARROW | {"task.length": 2, "task.train_sequences": 50000, "steps": 3000},
    "addition": {"task.digits": 3},
    "twotargets": {"task.length": 10, "steps": 1000},
    "byheart": {"steps": 500},
    "learnop": NARROW | {"task.digits": 1, "steps": 800},
    "guessop": NARROW | {
        "task.digits": 2, "task.length": 2, "model.n_layer": 4, "model.init": "gpt2",
        "batch_size": 256, "optimizer.learning_rate": 2e-3, "steps": 2000,
        "task.train_sequences": 15000,
    },
    "memory": {"task.length": 25, "steps": 4000},
    "picoclvr": NARROW | {
        "task.height": 4, "task.width": 4, "task.colors": 3, "task.length": 2,
        "steps": 4000, "optimizer.learning_rate": 1e-2,
    },
    "grid": NARROW | {
        "task.height": 4, "task.width": 4, "task.colors": 3, "task.length": 8,
        "model.positions": "rope", "model.rope_theta": 100.0,
    },
    "qmlp": ROPE | {
        "task.length": 32, "task.hidden": 2, "optimizer.learning_rate": 3e-3,
        "steps": 3000, "eval_interval": 500,
    },
    # Made for images of 8 x 8, of which scripts/prepare_digits.py has 1,500.
    "mnist": {
        "task.class_conditional": True, "batch_size": 32, "model.dropout": 0.2,
        "optimizer.name": "muon", "optimizer.learning_rate": 5e-3,
    },
    "file": {},
}  # fmt: skip
TINY = {
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.n_embd": 32,
    "steps": 40,
    "batch_size": 8,
    "eval_interval": 20,
    "checkpoint_interval": 20,
    "eval_sequences": 16,
    "task.train_sequences": 500,
    "task.val_sequences": 100,
    "task.eval_sequences": 8,
}


def size(name):
    return {f"model.{f}": v for f, v in zip(FIELDS, SIZES[name], strict=True)}


def full(task):
    """Returns the original's settings: Adam at 1e-4, and a fifth after 10 epochs."""
    name, batch_size, sequences, epochs = TASKS[task]
    epoch = sequences // batch_size
    return ORIGINAL | size(name) | GRIDS.get(task, {}) | {
        "task.name": task,
        "task.train_sequences": sequences,
        "batch_size": batch_size,
        "steps": epochs * epoch,
        "optimizer.rates": f"0:1e-4,{10 * epoch}:2e-5,{30 * epoch}:4e-6",
    }  # fmt: skip


def get_config(variant=""):
    variants = {}
    for task in TASKS:
        variants[task] = full(task)
        small = LAPTOP | {"task.name": task} | SMALL[task]
        variants[f"{task}-laptop"] = small
        variants[f"{task}-tiny"] = small | TINY
        variants |= {f"{task}-{name}": full(task) | size(name) for name in SIZES}
    return with_variant(override(base(), {}), variant or "maze", variants)
