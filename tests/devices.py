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


def losses(file, changes, mesh=None, steps=3):
    """Losses of a few steps, held-out loss after them, a digest of the parameters."""
    config = configs.load(str(CONFIGS / file), {})
    if mesh:
        axes = zip(("data", "fsdp", "tensor"), mesh, strict=True)
        changes = changes | {f"mesh.{axis}": size for axis, size in axes}
    configs.validate(configs.override(config, SIZE | changes))
    system, optimizer = build_system(config), optimizers.make_optimizer(config)

    def init(key):
        return init_state(system.init(key), optimizer, ema=False)

    key = rng.stream(config.seed, "params")
    devices = jax.devices()[: np.prod(mesh or (1, 1, 1))]
    layout = sharding.layout(
        jax.eval_shape(init, key),
        sharding.make_mesh(config, devices),
        config.batch_size,
    )
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


def update_traffic(mesh):
    """Bytes that each kind of collective sends in Muon's update on a mesh."""
    axes = zip(("data", "fsdp", "tensor"), mesh, strict=True)
    changes = {f"mesh.{axis}": size for axis, size in axes}
    changes |= {"optimizer.name": "muon", "model.vocab_size": 64}
    config = configs.override(configs.load(str(CONFIGS / "sigma_char.py"), {}), SIZE)
    configs.override(config, changes)
    system, optimizer = build_system(config), optimizers.make_optimizer(config)
    shapes = jax.eval_shape(
        lambda key: init_state(system.init(key), optimizer, ema=False),
        jax.random.key(0),
    )
    layout = sharding.layout(shapes, sharding.make_mesh(config), config.batch_size)
    state = layout.abstract(shapes)
    update = jax.jit(
        sharding.under(layout.mesh, optimizer.update),
        out_shardings=(layout.state["params"], layout.state["opt_state"]),
    )
    lowered = update.lower(state["params"], state["opt_state"], state["params"])
    found = hlo.collectives(lowered.compile().as_text())
    return {kind: traffic.bytes for kind, traffic in found.items()}


def cases():
    for name, (file, changes) in SYSTEMS.items():
        for count in COUNTS[name]:
            exact = changes | {"deterministic": True, "model.n_layer": 1}
            yield f"deterministic {name} on {count}", (file, exact, (count, 1, 1))
    file, changes = SYSTEMS["sigma"]
    jax.config.update("jax_disable_most_optimizations", True)
    for name, places in {
        "sigma": {"1": ONE, "2": (2, 1, 1), "4": (2, 2, 1), "8": (2, 2, 2)},
        "teeny": {"1": ONE, "8": (1, 4, 2)},
        "gssm": {"1": ONE, "8": (8, 1, 1)},
        "masked": {"1": ONE, "8": (2, 2, 2)},
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
    print(json.dumps(found | {"traffic": traffic}))
