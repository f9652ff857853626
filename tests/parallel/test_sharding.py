import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from jaxgpt import config as configs
from jaxgpt.parallel import sharding
from jaxgpt.systems.registry import build_system, system_class
from tests.devices import COUNTS

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))


@pytest.fixture(scope="module")
def device_losses():
    """What tests/devices.py prints, on 8 virtual devices."""
    flags = "--xla_force_host_platform_device_count=8"
    quiet = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.run(
        [sys.executable, "-m", "tests.devices"],
        cwd=ROOT,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "val_loss"])
@pytest.mark.parametrize(
    ("case", "one"),
    [
        ("sigma on 2", "sigma on 1"),
        ("sigma on 4", "sigma on 1"),
        ("sigma on 8", "sigma on 1"),
        ("recomputed", "sigma on 1"),
        ("scanned", "sigma on 1"),
        ("teeny on 8", "teeny on 1"),
        ("gssm on 8", "gssm on 1"),
        ("masked on 8", "masked on 1"),
        ("lstm on 8", "lstm on 1"),
    ],
)
def test_a_curve_is_the_same_on_any_mesh(device_losses, case, one, name):
    assert device_losses[case][name] == pytest.approx(
        device_losses[one][name], abs=1e-5
    )


@pytest.mark.parametrize("name", COUNTS)
def test_deterministic_runs_have_the_same_bits_on_any_number_of_devices(
    device_losses, name
):
    one = device_losses[f"deterministic {name} on 1"]
    for count in COUNTS[name][1:]:
        assert device_losses[f"deterministic {name} on {count}"] == one


def test_other_runs_have_not(device_losses):
    assert (
        device_losses["sigma on 1"]["digest"] != device_losses["sigma on 2"]["digest"]
    )


def test_parameters_and_moments_are_split(device_losses):
    whole = {"P('fsdp', 'tensor')", "P('tensor', 'fsdp')"}
    assert whole <= set(device_losses["teeny on 8"]["places"])


def test_muon_gathers_no_matrix(device_losses):
    """Each is sent to the device that orthogonalises it, and back."""
    found = device_losses["traffic"]
    assert not found["8x1x1"]
    for mesh in ("1x8x1", "1x4x2"):
        assert "all-to-all" in found[mesh] and "all-gather" not in found[mesh]


def test_an_lstm_gathers_no_array_at_every_token(device_losses):
    """Each once for the forward pass and once for the backward pass, at most."""
    found = device_losses["traffic"]["lstm of 64"]
    gathers, reduces = (found[kind][0] for kind in ("all-gather", "all-reduce"))
    assert 0 < gathers + reduces < 64
    assert gathers <= 2 * found["arrays"] and reduces <= found["arrays"]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_of_every_config_has_a_rule(name):
    config = configs.load(str(ROOT / "configs" / name), {"model.bias": "true"})
    system_class(config.system).resolve(config)
    config.model.vocab_size = config.model.vocab_size or 64
    params = jax.eval_shape(build_system(config).init, jax.random.key(0))
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = sharding.spec(path, leaf, mesh)
        if path.endswith(("kernel", "table")):
            assert any(axes), path


def test_a_parameter_without_a_rule_is_named():
    mesh = jax.sharding.AbstractMesh((1, 1, 1), ("data", "fsdp", "tensor"))
    with pytest.raises(LookupError, match="gates/alpha"):
        sharding.spec("gates/alpha", jax.ShapeDtypeStruct((2,), float), mesh)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh.fsdp": 2}, "number of devices is 1"),
        ({"mesh.data": 3}, "is 3 x 1 x 1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(changes, message):
    config = configs.override(configs.base(), changes)
    with pytest.raises(configs.UserError, match=message):
        sharding.make_mesh(config, jax.devices()[:1])


def test_deterministic_refuses_what_it_cannot_keep():
    config = configs.override(
        configs.base(), {"deterministic": True, "deterministic_groups": 7}
    )
    with pytest.raises(configs.UserError, match=r"deterministic_groups\D+7"):
        configs.validate(config)
