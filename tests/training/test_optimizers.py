import os

import jax
import numpy as np
import optax
import pytest

from jaxgpt import config as configs
from jaxgpt.parallel import sharding
from jaxgpt.training import metrics, optimizers
from tests.faults import finish, saved_digests, start
from tests.training.muon import muon

STEPS = ("--config.optimizer.name=muon", "--config.optimizer.decay_steps=40")


def train(workdir, steps, devices, *options):
    """Trains with Muon in a process of its own; returns the losses."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    code, said = finish(
        start(
            workdir,
            *(*STEPS, f"--config.steps={steps}", "--config.log_interval=1", *options),
            module=("tests.training.muon",),
            env=os.environ | {"XLA_FLAGS": flags},
        )
    )
    assert code == 0, said
    return [row["loss"] for row in metrics.read_rows(workdir) if "loss" in row]


@pytest.mark.process
def test_muon_trains_on_1_and_8_devices_and_resumes(tmp_path):
    """Three steps, then three more: on one device, and on 8 that split the moments."""
    straight = train(tmp_path / "straight", 6, 1)
    one = tmp_path / "one"
    train(one, 3, 1)
    assert train(one, 6, 1) == straight
    assert saved_digests(one, 6) == saved_digests(tmp_path / "straight", 6)
    eight, split = (
        tmp_path / "eight",
        ("--config.mesh.fsdp=4", "--config.mesh.tensor=2"),
    )
    train(eight, 3, 8, *split)
    np.testing.assert_allclose(train(eight, 6, 8, *split), straight, atol=1e-4)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamw(1e-3, mask=optimizers.decay_mask),
        optax.chain(optax.clip(1.0), optax.contrib.muon(1e-3)),
        optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
        optax.adafactor(1e-3, min_dim_size_to_factor=2),
        optax.apply_if_finite(optax.lion(1e-3), 3),
    ],
    ids=["adamw", "muon", "injected", "factored", "wrapped"],
)
def test_a_moment_lives_with_its_parameter(optimizer):
    mesh = jax.sharding.AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    params = {"qkv": {"kernel": np.zeros((8, 4)), "bias": np.zeros(4)}}
    state = {"params": params, "opt_state": jax.eval_shape(optimizer.init, params)}
    layout = sharding.layout(state, mesh, 8)
    leaves = zip(
        jax.tree.leaves(state["opt_state"]),
        jax.tree.leaves(layout.state["opt_state"]),
        strict=True,
    )
    specs = {(8, 4): "P('fsdp', 'tensor')", (4,): "P('tensor',)"}
    found = {leaf.shape: str(place.spec) for leaf, place in leaves}
    for shape, spec in found.items():
        if shape in specs:
            assert spec == specs[shape]
        else:
            assert spec == "P()"
    assert specs.keys() & found.keys()


def test_an_unknown_optimizer_is_refused():
    config = configs.override(configs.base(), {"optimizer.name": "muon-2"})
    with pytest.raises(
        configs.UserError, match=r"optimizer\.name must be one of adamw"
    ):
        optimizers.make_optimizer(config)


def test_a_registered_optimizer_is_clipped_too(monkeypatch):
    monkeypatch.setitem(optimizers.OPTIMIZERS, "muon", muon)
    config = configs.override(configs.base(), {"optimizer.name": "muon"})
    params = {"kernel": np.ones((4, 4))}
    state = optimizers.make_optimizer(config).init(params)
    assert isinstance(state[0], optax.EmptyState) and len(state) == 2
