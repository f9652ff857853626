"""Run by test_devices.py in a process of its own: a memory over several devices.

Prints one JSON object. `python -m tests.systems.memory.devices FOLDER STEPS`, with
XLA_FLAGS asking for the devices.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from jaxgpt import backend
from jaxgpt import config as configs
from jaxgpt.commands.setup import open_setup
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.train_state import TrainState

# As many that a shard's queries have 256 KB: with fewer threads XLA waits for ever.
FIELDS = {
    "system": "memory",
    "data.path": "",
    "batch_size": 32,
    "model.n_layer": 1,
    "model.n_head": 2,
    "model.n_embd": 128,
    "model.block_size": 32,
    "model.vocab_size": 128,
    "memory.memory_size": 96,
    "memory.num_search_results": 2,
    "memory.context": 2,
    "memory.join_std": 0.02,
    "memory.forgetfulness_factor": 0.01,
}


def main(folder: str, steps: int) -> None:
    backend.set_up_jax()
    config = configs.validate(configs.override(configs.base(), FIELDS))
    setup = open_setup(config, pathlib.Path(folder))
    system = setup.system
    train_state = TrainState(setup, Checkpoints(setup.workdir))
    losses = [train_state.run_step()["loss"] for _ in range(3)]
    found = {"devices": jax.device_count()}

    store = system.host.stores[0]
    before = store.searches
    batch = system.train_batch(train_state.batch(3), jax.random.key(0), np.int32(3))
    gradients = jax.jit(jax.value_and_grad(system.objective, has_aux=True))
    params, carried = train_state.arrays["params"], train_state.arrays["carried"]
    with jax.set_mesh(setup.mesh):
        (split_loss, written), split = gradients(params, batch, carried, None)
        jax.block_until_ready(split)
    found["searches"] = store.searches - before
    kept = written["entries"]["key"].sharding.spec
    found["split_by"] = kept[0] if kept else None

    whole = jax.device_put((params, batch, carried), jax.devices()[0])
    (loss, _), single = gradients(*whole, None)
    found["loss"] = [float(split_loss), float(loss)]
    far = lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max())
    found["gradient"] = max(jax.tree.leaves(jax.tree.map(far, split, single)))

    for _ in range(steps):
        losses.append(train_state.run_step()["loss"])
    found["losses"] = [float(loss) for loss in losses]
    found["version"] = [int(v) for v in np.asarray(store.version)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
