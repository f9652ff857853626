"""Losses of a few steps on meshes of 8 virtual devices, as JSON: {case: {name: [...]}}.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.devices
"""

import hashlib
import json
import pathlib

import jax
import numpy as np

from jaxgpt import config as configs
from jaxgpt.model import rng
from jaxgpt.parallel import hlo, sharding
from jaxgpt.systems.registry import build_system
from jaxgpt.training import optimizers
from jaxgpt.training.step import init_state, make_step

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SIZE = {
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.n_embd": 16,
    "model.block_size": 16,
    "model.dropout": 0.1,
    "batch_size": 8,
    "steps": 100,
    "optimizer.warmup_steps": 0,
}
SYSTEMS = {
    "sigma": ("sigma_plus_char.py", {"model.vocab_size": 64}),
    "teeny": ("teeny_char.py", {"model.vocab_size": 65}),
    "gssm": ("gssm_easy.py", {"model.vocab_size": 64}),
    "masked": (
        "masked_diffusion.py",
        {"model.vocab_size": 64, "diffusion.block_length": 4},
    ),
    "lstm": (
        "gssm_easy.py",
        {"model.vocab_size": 64, "model.mixer": "lstm", "model.positions": "learned"},
    ),
}
ONE = (1, 1, 1)
MESHES_OF_MUON = ((8, 1, 1), (1, 8, 1), (1, 4, 2))
# Numbers of devices for deterministic runs. The two causal systems share all code.
COUNTS = {
    "sigma": (1, 2, 4, 8),
    "teeny": (1, 8),
    "gssm": (1, 2, 8),
    "masked": (1, 2),
}


def prepare(file, changes, mesh=ONE):
    """(config, system, optimizer, key -> state, layout) of a config on a mesh."""
    config = configs.load(str(CONFIGS / file), {})
    axes = zip(("data", "fsdp", "tensor"), mesh, strict=True)
    changes = SIZE | changes | {f"mesh.{axis}": size for axis, size in axes}
    configs.validate(configs.override(config, changes))
    system, optimizer = build_system(config), optimizers.make_optimizer(config)

    def init(key):
        return init_state(system.init(key), optimizer, ema=False)

    layout = sharding.layout(
        jax.eval_shape(init, jax.random.key(0)),
        sharding.make_mesh(config, jax.devices()[: np.prod(mesh)]),
        config.batch_size,
    )
    return config, system, optimizer, init, layout


def losses(file, changes, mesh=ONE, steps=3):
    """Losses of a few steps, held-out loss after them, a digest of the parameters."""
    config, system, optimizer, init, layout = prepare(file, changes, mesh)
    key = rng.stream(config.seed, "params")
    state = jax.jit(init, out_shardings=layout.state)(key)
    advance = make_step(system, optimizer, layout)
    generator = np.random.default_rng(0)
    shape, found = (8, system.window), []
    for index in range(steps):
        tokens = generator.integers(0, config.model.vocab_size, shape).astype(np.int32)
        state, metrics = advance(state, np.int32(index), layout.put_rows(tokens))
        found.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    nll = system.eval_nll(state["params"], tokens, 8, config.seed, layout)
    places = {str(a.sharding.spec) for a in jax.tree.leaves(state)}
    weights = b"".join(np.asarray(a).tobytes() for a in jax.tree.leaves(state))
    return {
        "loss": [loss for loss, _ in found],
        "grad_norm": [norm for _, norm in found],
        "val_loss": [float(array.mean()) for array in nll.values()],
        "digest": hashlib.sha256(weights).hexdigest(),
        "places": sorted(places),
    }


def collectives(lowered):
    """{kind: [times, bytes]} of a lowered program."""
    found = hlo.collectives(lowered.compile().as_text())
    return {kind: [traffic.count, traffic.bytes] for kind, traffic in found.items()}


def update_traffic(mesh):
    """What Muon's update sends on a mesh."""
    changes = {"optimizer.name": "muon", "model.vocab_size": 64}
    _, _, optimizer, init, layout = prepare("sigma_char.py", changes, mesh)
    state = layout.abstract(jax.eval_shape(init, jax.random.key(0)))
    update = jax.jit(
        sharding.under(layout.mesh, optimizer.update),
        out_shardings=(layout.state["params"], layout.state["opt_state"]),
    )
    return collectives(
        update.lower(state["params"], state["opt_state"], state["params"])
    )


def step_traffic(file, changes, mesh):
    """What a training step sends on a mesh, and the number of its parameter arrays."""
    config, system, optimizer, init, layout = prepare(file, changes, mesh)
    state = layout.abstract(jax.eval_shape(init, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct(
        (config.batch_size, system.window), np.int32, sharding=layout.rows
    )
    step = make_step(system, optimizer, layout)
    found = collectives(step.lower(state, np.int32(0), tokens))
    return found | {"arrays": len(jax.tree.leaves(state["params"]))}


def cases():
    for name, counts in COUNTS.items():
        file, changes = SYSTEMS[name]
        for count in counts:
            exact = changes | {"deterministic": True, "model.n_layer": 1}
            yield f"deterministic {name} on {count}", (file, exact, (count, 1, 1))
    file, changes = SYSTEMS["sigma"]
    jax.config.update("jax_disable_most_optimizations", True)
    for name, places in {
        "sigma": {"1": ONE, "2": (2, 1, 1), "4": (2, 2, 1), "8": (2, 2, 2)},
        "teeny": {"1": ONE, "8": (1, 4, 2)},
        "gssm": {"1": ONE, "8": (8, 1, 1)},
        "masked": {"1": ONE, "8": (2, 2, 2)},
        "lstm": {"1": ONE, "8": (2, 4, 1)},
    }.items():
        for mesh, shape in places.items():
            yield f"{name} on {mesh}", (*SYSTEMS[name], shape)
    yield "accumulated", (file, changes | {"accumulation": 2}, (2, 2, 1))
    dots = changes | {"model.remat": "dots"}
    yield "recomputed", (file, dots, (2, 1, 1))
    scan = changes | {"model.scan_layers": True, "model.remat": "full"}
    yield "scanned", (file, scan, (2, 2, 2))


if __name__ == "__main__":
    traffic = {"x".join(map(str, m)): update_traffic(m) for m in MESHES_OF_MUON}
    found = {case: losses(*arguments) for case, arguments in cases()}
    file, changes = SYSTEMS["lstm"]
    long = changes | {"model.block_size": 64}
    traffic["lstm of 64"] = step_traffic(file, long, (1, 8, 1))
    print(json.dumps(found | {"traffic": traffic}))
