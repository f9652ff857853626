"""nanollama: the transformer of GSSM's original, against golden numbers."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgpt import config as configs
from jaxgpt.commands import convert
from jaxgpt.commands.train import train
from jaxgpt.errors import UserError
from jaxgpt.interop import formats, rules
from jaxgpt.run import open_run
from jaxgpt.systems.registry import build_system
from jaxgpt.training import optimizers
from jaxgpt.training.step import init_state, make_step
from parity_tests.conftest import GOLDEN, relative, worst
from parity_tests.tolerances import FLOAT32, FLOAT64
from parity_tests.torch_nanollama import NanoLlama

SOURCE = GOLDEN / "gssm" / "transformer.npz"
ROOT = GOLDEN.parents[1]
SETTINGS = json.loads((GOLDEN / "gssm" / "transformer.json").read_text())


@pytest.fixture
def settings(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(SETTINGS["model"]))
    return str(file)


@pytest.fixture(scope="module")
def golden():
    with np.load(SOURCE) as archive:
        return dict(archive)


@pytest.fixture
def original(settings):
    return formats.get_format("nanollama").read(str(SOURCE), settings)


def tree_of(golden, prefix, original):
    table = formats.get_format("nanollama").rules(original.config.model)
    names = {rule.name: golden[f"{prefix}/{rule.name}"] for rule in table}
    return rules.to_jax(names, table, original.params, prefix)


def test_logits_loss_and_gradients(golden, original):
    system = build_system(original.config)

    def loss(params):
        model = system.model(params)
        nll = model.nll(golden["input"], golden["target"]).mean()
        return nll, model(golden["input"])[0]

    (nll, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        original.params
    )
    assert relative(logits, golden["logits"]) < 2 * FLOAT32["logits"]
    assert float(nll) == pytest.approx(float(golden["loss"]), abs=FLOAT32["loss"])
    expected = tree_of(golden, "grad", original)
    assert worst(grads, expected) < FLOAT32["gradient"]


def test_the_pytorch_twin_is_the_same_model(golden):
    twin = NanoLlama(SETTINGS["model"])
    names = {n.removeprefix("param/"): n for n in golden if n.startswith("param/")}
    state = {n: torch.tensor(golden[key]) for n, key in names.items()}
    table = twin.layers[0].attn.rope_modulator
    assert torch.equal(table, torch.tensor(golden["buffer/rope_modulator"]))
    twin.load_state_dict(state | dict(twin.named_buffers()))
    tokens = torch.tensor(golden["input"]).long()
    for dtype, name in ((torch.float32, "logits"), (torch.float64, "logits_f64")):
        with torch.no_grad():
            logits = twin.to(dtype)(tokens)
        assert relative(logits, golden[name]) < FLOAT32["logits"]
    assert relative(logits, golden["logits_f64"]) < FLOAT64["logits"]


def test_float64_against_its_float64(golden, settings):
    """Its float32 table of angles, which it also uses in float64, is ours to a bit."""
    with jax.enable_x64(True):
        config = formats.get_format("nanollama").read(str(SOURCE), settings).config
        configs.override(config, {"model.dtype": "float64"})
        system = build_system(config)
        abstract = jax.eval_shape(system.init, jax.random.key(0))
        table = formats.get_format("nanollama").rules(config.model)
        names = {rule.name: golden[f"param/{rule.name}"] for rule in table}
        params = rules.to_jax(names, table, abstract, "golden")
        logits = system.model(params)(golden["input"])[0]
    assert logits.dtype == np.float64
    # What was recorded was rounded to float32.
    assert relative(logits, golden["logits_f64"]) < 2e-7


def test_ten_optimizer_steps(golden, original):
    o = SETTINGS["optimizer"]
    config = original.config
    configs.override(
        config,
        {
            "steps": o["steps"],
            "batch_size": len(golden["input"]),
            "optimizer.learning_rate": o["lr"],
            "optimizer.min_learning_rate": o["lr"] * o["min_ratio"],
            "optimizer.warmup_steps": o["warmup"],
            "optimizer.warmup_from_zero": True,
            "optimizer.beta1": o["betas"][0],
            "optimizer.beta2": o["betas"][1],
            "optimizer.weight_decay": o["weight_decay"],
            "optimizer.decays": "all",
            "optimizer.grad_clip": 0.0,
        },
    )
    rate = optimizers.learning_rate_schedule(config)
    rates = [float(rate(step)) for step in range(o["steps"])]
    np.testing.assert_allclose(rates, golden["train/lr"], rtol=1e-6, atol=1e-12)
    system = build_system(config)
    advance = make_step(system, optimizers.make_optimizer(config))
    state = init_state(original.params, optimizers.make_optimizer(config), ema=False)
    tokens = np.concatenate([golden["input"], golden["target"][:, -1:]], 1)
    np.testing.assert_array_equal(tokens[:, 1:], golden["target"])
    losses = []
    for step in range(o["steps"]):
        state, metrics = advance(state, np.int32(step), jnp.asarray(tokens))
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, golden["train/loss"], atol=1e-4)
    expected = tree_of(golden, "train/param", original)
    assert worst(state["params"], expected) < 3e-3


def test_round_trip(golden, settings, tmp_path):
    done = convert.import_run("nanollama", str(SOURCE), tmp_path / "run", settings)
    assert done["n_layer"] == 2
    run = open_run(str(tmp_path / "run"))
    for name in ("out.npz", "out.pt"):
        convert.export_run("nanollama", run, tmp_path / name)
        back = formats.get_format("nanollama").read(str(tmp_path / name), settings)
        assert worst(back.params, run.params) == 0
    with np.load(tmp_path / "out.npz") as archive:
        assert set(archive) == {name for name in golden if name.startswith("param/")}
        for name in archive:
            np.testing.assert_array_equal(archive[name], golden[name])


def test_the_initial_distribution_is_its(original):
    config = original.config
    configs.override(config, {"model.init": "fan_in"})
    params = build_system(config).init(jax.random.key(0))
    for path, array in jax.tree_util.tree_leaves_with_path(params):
        if array.ndim == 1:
            assert (array == 1).all()
            continue
        # Tables lie [tokens, width], kernels [width in, width out].
        fan_in = array.shape[0 if path[-1].key == "kernel" else 1]
        assert np.abs(array).max() <= 3 / math.sqrt(fan_in)
        assert float(array.std()) == pytest.approx(0.987 / math.sqrt(fan_in), rel=0.05)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"emb_dim": None}, "does not give its emb_dim"),
        ({"emb_dim": 32}, "emb_dim is 32 in the configuration and 64 in the weights"),
        ({"ffn_dim": 128}, "ffn_dim is 128 in the configuration and 256"),
        ({"nb_layers": 3}, "nb_layers is 3 in the configuration and 2"),
        ({"nb_heads": 5}, "must be divisible by model.n_head 5"),
        ({"weight_tying": True}, "weight_tying must be False, got True"),
        ({"rope_theta": "large"}, "rope_theta must be a number, got 'large'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, change, expected):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(SETTINGS["model"] | change))
    with pytest.raises(UserError, match=expected):
        formats.get_format("nanollama").read(str(SOURCE), str(file))


def test_a_plain_gpt_is_no_nanollama(settings, tmp_path):
    convert.import_run("nanollama", str(SOURCE), tmp_path / "run", settings)
    run = open_run(str(tmp_path / "run"))
    configs.override(run.config, {"model.norm": "layer"})
    with pytest.raises(UserError, match=r"model\.norm must be 'rms', got 'layer'"):
        convert.export_run("nanollama", run, tmp_path / "out.npz")


@pytest.mark.trains
def test_imported_weights_learn_a_graph_and_go_out_again(settings, tmp_path):
    convert.import_run("nanollama", str(SOURCE), tmp_path / "imported", settings)
    changes = {
        "init_from": str(tmp_path / "imported"),
        "steps": "2",
        "batch_size": "4",
        "eval_sequences": "4",
    }
    config = configs.load(str(ROOT / "configs" / "gssm_easy.py"), changes)
    assert train(config, tmp_path / "run") == 0
    run = open_run(str(tmp_path / "run"), "last")
    assert run.config.model.vocab_size == 32
    convert.export_run("nanollama", run, tmp_path / "out.npz")
    back = formats.get_format("nanollama").read(str(tmp_path / "out.npz"), settings)
    assert worst(back.params, run.params) == 0
