"""teenyGPT: every position encoding, feed-forward and norm against golden numbers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jaxgpt import config as configs
from jaxgpt import convert, evaluate
from jaxgpt.data import text as texts
from jaxgpt.errors import UserError
from jaxgpt.interop import formats, rules
from jaxgpt.model.transformer import LanguageModel
from jaxgpt.sampling.autoregressive import decode_sliding_window
from jaxgpt.sampling.state import Draws, SamplingParams
from parity_tests import measures
from parity_tests.conftest import GOLDEN, follow, relative, worst
from parity_tests.measures import TEENY as COMBINATIONS
from parity_tests.measures import TEENY_SIZES as SIZES
from parity_tests.measures import recorded_tree, teeny_settings
from parity_tests.tolerances import FLOAT32
from parity_tests.torch_teeny import Teeny

FOLDER = GOLDEN / "teenygpt"
TRAINED = SIZES | {"n_dim": 32, "n_vocab": 65, "n_context_max": 24}


@pytest.fixture
def load(tmp_path):
    """See `measures.open_teeny`."""
    return lambda name, sizes=SIZES: measures.open_teeny(name, tmp_path, sizes)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_logits_loss_gradients_and_round_trip(load, tmp_path, name):
    for quantity, found in measures.teeny(name, tmp_path).items():
        tolerance = FLOAT32.get(f"{quantity} of teenyGPT", FLOAT32[quantity])
        assert found.value <= tolerance, quantity
    golden, system, params, table = load(name)
    if "logits_short" in golden:
        short = system.model(params)(golden["ids_short"])[0]
        assert relative(short, golden["logits_short"]) < FLOAT32["logits of teenyGPT"]
    back = rules.to_torch(params, table)
    names = {n.removeprefix("param/") for n in golden if n.startswith("param/")}
    assert names == set(back)
    for key, array in back.items():
        np.testing.assert_array_equal(array, golden[f"param/{key}"])


@pytest.mark.parametrize("name", ["ALIBI-CLASSIC-NONE", "ROPE-SWISH_GLU-RMS"])
def test_loss_and_parameters_of_60_training_steps(load, name):
    golden, system, params, table = load(f"train_{name}", TRAINED)
    # The original decays every parameter and clips nothing; its rates are recorded.
    chain = optax.chain(optax.scale_by_adam(0.9, 0.95), optax.add_decayed_weights(0.1))
    x, y = (golden[f"traj_{name}"].astype(np.int32) for name in "xy")
    loss = lambda params, batch: system.model(params).nll(*batch).mean()
    params = follow(golden, params, chain, loss, zip(x, y, strict=True))
    assert len(x) == 60
    there = recorded_tree(golden, "final__f64", system, table)
    assert worst(params, there) < FLOAT32["parameters after 60 steps"]


@pytest.mark.unoptimised
@pytest.mark.parametrize("name", [n for n in COMBINATIONS if "ROPE" not in n])
def test_greedy_text_token_for_token(load, name):
    # The original generates from a window as long as the prompt.
    golden, system, params, _ = load(name)
    prompt = golden["gen_prompt"]
    short = dataclasses.replace(system.model_config, block_size=prompt.shape[1])
    graphdef = nnx.split(nnx.eval_shape(lambda: LanguageModel(short, rngs=nnx.Rngs(0))))
    if short.positions == "learned":
        rows = params["positions"]["table"][: prompt.shape[1]]
        params = params | {"positions": {"table": rows}}
    missing = np.zeros((len(prompt), 12), np.int32)
    tokens = np.concatenate([prompt, missing], 1)
    whole = decode_sliding_window(
        graphdef[0],
        params,
        jnp.asarray(tokens),
        jnp.zeros(tokens.shape, bool),
        jnp.int32(prompt.shape[1]),
        SamplingParams(temperature=0.0).decode_params(
            0, Draws.of(jax.random.key(0), len(prompt))
        ),
    )[0]
    sure = golden["gen_gap"] > 1e-5
    found = np.asarray(whole)[:, prompt.shape[1] :]
    np.testing.assert_array_equal(found[sure], golden["gen_greedy"][sure])


@pytest.mark.parametrize("name", ["ALIBI-CLASSIC-CLASSIC", "ROPE-SWISH_GLU-RMS"])
def test_commands_import_score_and_export(tmp_path, capsys, name):
    golden = dict(np.load(FOLDER / f"{name}.npz"))
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(teeny_settings(name)))
    workdir = f"--workdir={tmp_path / 'run'}"
    convert.command(
        [
            "--format=teenygpt",
            f"--source={FOLDER / name}.npz",
            f"--source_config={settings}",
            workdir,
        ]
    )
    np.save(tmp_path / "tokens.npy", golden["ids"])
    logits = tmp_path / "logits.npy"
    options = [f"--tokens={tmp_path / 'tokens.npy'}", f"--logits={logits}", "--json=-"]
    evaluate.command([workdir, *options])
    assert relative(np.load(logits), golden["logits"]) < FLOAT32["logits of teenyGPT"]
    for suffix in ("npz", "pt"):
        output = tmp_path / f"out.{suffix}"
        convert.command(["--format=teenygpt", workdir, f"--output={output}"])
        if suffix == "npz":
            held = {n.removeprefix("param/"): a for n, a in np.load(output).items()}
        else:
            held = {
                n: t.numpy() for n, t in torch.load(output)["model_state_dict"].items()
            }
        names = {n for n in golden if n.startswith("param/")}
        assert {f"param/{n}" for n in held} == names
        for key, array in held.items():
            np.testing.assert_array_equal(array, golden[f"param/{key}"])
    with pytest.raises(UserError, match="is not a nanogpt model: model"):
        convert.command(["--format=nanogpt", workdir, f"--output={tmp_path / 'no.pt'}"])


def test_the_pytorch_twin_of_the_benchmarks_is_the_same_model(load):
    golden, _, params, table = load("ALIBI-SWISH_GLU-CLASSIC")
    twin = Teeny(2, 4, 16, 12, 23)
    exported = rules.to_torch(params, table)
    twin.load_state_dict({n: torch.tensor(a) for n, a in exported.items()})
    with torch.no_grad():
        logits = twin(torch.tensor(golden["ids"]).long())
    assert relative(logits, golden["logits"]) < FLOAT32["logits of teenyGPT"]


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            {"ffn_type": "GELU"},
            "ffn_type must be one of CLASSIC, SWISH_GLU, got 'GELU'",
        ),
        ({"n_dim": 32}, "n_dim is 32 in the configuration and 16 in the weights"),
        ({"n_attn_heads": 3}, "model.n_embd must be divisible by model.n_head 3"),
        ({"n_vocab": None}, "does not give its n_vocab"),
        (
            {"layer_norm_type": "NONE"},
            "has unknown attention_blocks.attention_0.norm_1",
        ),
        ({"ffn_type": "SWISH_GLU"}, "lacks attention_blocks.attention_0.ffn.w1.weight"),
    ],
)
def test_configurations_that_are_not_the_weights(tmp_path, changes, expected):
    settings = tmp_path / "settings.json"
    name = "ALIBI-CLASSIC-RMS"
    settings.write_text(json.dumps(teeny_settings(name) | changes))
    with pytest.raises(UserError) as caught:
        formats.get_format("teenygpt").read(str(FOLDER / f"{name}.npz"), str(settings))
    assert expected in str(caught.value)


def test_chunks_are_split_as_the_original_does():
    expected = json.loads((FOLDER / "dataset_split.json").read_text())[0]
    open_text = lambda changes: texts.open_text(
        configs.override(configs.base(), changes), 257
    )
    plain = open_text({})
    whole = np.concatenate([plain.splits["train"], plain.splits["val"]])
    data = open_text({"data.split": "chunks", "data.test_fraction": 0.1})
    for split in ("train", "val", "test"):
        chunks = data.splits[split].reshape(-1, 10_000)
        order = expected[f"{split}_chunks"]
        there = whole[: 111 * 10_000].reshape(-1, 10_000)[order]
        np.testing.assert_array_equal(chunks, there)
