import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt import config as configs
from jaxgpt.parallel import sharding
from jaxgpt.systems.registry import build_system
from jaxgpt.training import metrics, muon, optimizers
from tests.faults import finish, saved_digests, start
from tests.training.lion import lion


def train(workdir, steps, devices, *options, module="jaxgpt.train", name="muon"):
    """Trains in a process of its own; returns the losses."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    code, said = finish(
        start(
            workdir,
            f"--config.optimizer.name={name}",
            "--config.optimizer.decay_steps=40",
            f"--config.steps={steps}",
            "--config.log_interval=1",
            *options,
            module=(module,),
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


@pytest.mark.process
def test_a_registered_optimizer_trains_and_resumes(tmp_path):
    lion = {"module": "tests.training.lion", "name": "lion"}
    straight = train(tmp_path / "straight", 4, 1, **lion)
    train(tmp_path / "parts", 2, 1, **lion)
    assert train(tmp_path / "parts", 4, 1, **lion) == straight


def matrices(shape, ill_conditioned=False):
    """Three random matrices."""
    draw = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    if ill_conditioned:
        u, s, v = np.linalg.svd(draw, full_matrices=False)
        draw = u * np.geomspace(1, 1e-7, s.shape[-1]) @ v
    return jnp.asarray(draw, jnp.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(24, 24), (24, 96)], ids=["square", "wide"])
@pytest.mark.parametrize("ill", [False, True], ids=["random", "ill-conditioned"])
def test_orthogonalised_as_optax_does(shape, ill, dtype):
    x_NAB = matrices(shape, ill)
    by_shape = optax.contrib.MuonDimensionNumbers(1, 2)
    theirs = optax.contrib.scale_by_muon(
        beta=0.0, nesterov=False, weight_dimension_numbers=by_shape
    )
    wanted, _ = theirs.update(x_NAB, theirs.init(x_NAB))
    found = muon.orthogonalise(x_NAB, dtype)
    if dtype == "float32":
        np.testing.assert_allclose(found, wanted, atol=1e-3)
    largest = np.linalg.svd(np.asarray(found), compute_uv=False).max()
    assert largest < 1.25
    if not ill:
        np.testing.assert_allclose(found, wanted, atol=0.02)


def test_nothing_to_orthogonalise_stays_zero():
    assert not np.any(muon.orthogonalise(jnp.zeros((2, 4, 8)), "float32"))


def test_updates_of_muon_have_the_size_of_adamw():
    tree = {"up": matrices((16, 64))[0], "down": matrices((64, 16))[1]}
    found = muon.orthogonalise_tree(tree, "float32")
    for name, update in found.items():
        assert update.shape == tree[name].shape
        assert np.sqrt((update**2).mean()) == pytest.approx(muon.UPDATE_RMS, rel=0.3)


@pytest.mark.parametrize(
    "file", ["sigma_plus_char", "teeny_char", "memory_gpt2", "gssm_easy"]
)
def test_muon_takes_the_matrices_of_blocks(file):
    config = configs.load(f"configs/{file}.py:tiny", {"model.vocab_size": 7})
    params = jax.eval_shape(build_system(config).init, jax.random.key(0))
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    found = {
        sharding.path_name(path[-3:])
        for path in paths
        if optimizers.kind_of(path) == "muon"
    }
    ends = ("attn/qkv", "attn/out", "mlp/up", "mlp/down")
    assert found == {f"{end}/kernel" for end in ends}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(32, 32), (32, 128)])
def test_flops_are_those_of_the_compiled_program(shape, dtype):
    x_NAB = jax.ShapeDtypeStruct((3, *shape), jnp.float32)
    lowered = jax.jit(muon.orthogonalise, static_argnums=1).lower(x_NAB, dtype)
    counted = lowered.compile().cost_analysis()["flops"]
    found = muon.orthogonalise_flops([shape] * 3, 1, dtype)
    assert found == pytest.approx(counted, rel=0.1)
    assert muon.orthogonalise_flops([shape] * 3, 2, dtype) == pytest.approx(
        found * 2 / 3
    )


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
        configs.UserError, match=r"optimizer\.name must be one of adamw, muon"
    ):
        optimizers.make_optimizer(config)


def test_a_registered_optimizer_is_clipped_too(monkeypatch):
    monkeypatch.setitem(optimizers.OPTIMIZERS, "lion", lion)
    config = configs.override(configs.base(), {"optimizer.name": "lion"})
    params = {"kernel": np.ones((4, 4))}
    state = optimizers.make_optimizer(config).init(params)
    assert isinstance(state[0], optax.EmptyState) and len(state) == 2
