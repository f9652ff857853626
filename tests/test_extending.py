"""A new system, sampler and position encoding: this file, and a line in a registry.

docs/extending.md shows what is defined here.
"""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt import sample
from jaxgpt.commands.train import train
from jaxgpt.errors import UserError
from jaxgpt.model import layers
from jaxgpt.model.config import POSITIONS
from jaxgpt.model.positions import Encoding
from jaxgpt.run import open_run
from jaxgpt.sampling.autoregressive import autoregress
from jaxgpt.sampling.state import SamplingParams
from jaxgpt.systems.causal import CausalLM
from jaxgpt.systems.registry import SYSTEMS, build_system
from jaxgpt.systems.sigma import orders
from jaxgpt.systems.sigma.config import SAMPLERS
from jaxgpt.training import metrics
from tests.conftest import last_json, refusal

ROOT = pathlib.Path(__file__).parents[1]
TEENY = f"{ROOT}/configs/teeny_char.py:tiny"
SIGMA = f"{ROOT}/configs/sigma_char.py:tiny"


class ZLossLM(CausalLM):
    """A causal model with PaLM's z-loss, which keeps logits from drifting."""

    def objective(self, params, batch, carried, dropout_key):
        tokens_BT = batch["tokens"]
        model = self.model(params)
        logits_BTV, _ = model(tokens_BT[:, :-1], dropout_key=dropout_key)
        nll_BT = layers.cross_entropy(logits_BTV, tokens_BT[:, 1:])
        log_z_BT = jax.nn.logsumexp(logits_BTV, -1)
        return nll_BT.mean() + 1e-2 * (log_z_BT**2).mean(), carried


def make_greedy(sampling, max_draft_length):
    """One token a forward pass, always the likeliest, whatever the temperature."""

    def advance(decoder, params, state, decode_params, limit):
        greedy = dataclasses.replace(decode_params, temperature=jnp.float32(0))
        return autoregress(decoder, params, state, greedy, limit)

    return advance


def every_other(prompt_mask_T, noise_T, block_length):
    """Every other missing position, then those between them."""
    missing = np.flatnonzero(~prompt_mask_T).astype(np.int32)
    return np.concatenate([missing[::2], missing[1::2]])


def clipped_distance(query_BT, key_BS, config):
    """Scores fall with the distance, but no further than eight tokens away."""
    distance_B1TS = query_BT[..., None, :, None] - key_BS[..., None, None, :]
    return -0.25 * jnp.minimum(jnp.abs(distance_B1TS), 8)


CLIPPED = Encoding(bias=clipped_distance, extrapolates=True)


def trained_and_resumed(workdir, config, **changes):
    """Trains three steps, then two more from the checkpoint."""
    for steps in (3, 5):
        fields = {"steps": str(steps), "eval_sequences": "8", **changes}
        assert train(configs.load(config, fields), workdir) == 0
    rows = metrics.read_rows(workdir)
    evaluated = [row["step"] for row in rows if "val_loss" in row]
    assert evaluated == [0, 3, 5]
    return rows


def sampled(capsys, workdir, *options):
    """Returns the JSON objects that jaxgpt.sample prints for two samples."""
    arguments = ["--num_samples=2", "--max_new_tokens=12", "--json=-", *options]
    capsys.readouterr()
    sample.command([f"--workdir={workdir}", "--prompt=ROMEO:", *arguments])
    return last_json(capsys)["samples"]


@pytest.mark.trains
@pytest.mark.unoptimised
def test_a_system(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(SYSTEMS, "z-loss", f"{__name__}:ZLossLM")
    rows = trained_and_resumed(tmp_path, TEENY, system="z-loss")
    texts = [s["text"] for s in sampled(capsys, tmp_path)]
    assert all(text.startswith("ROMEO:") and len(text) == 18 for text in texts)
    run = open_run(str(tmp_path))
    assert type(run.system) is ZLossLM and run.config.system == "z-loss"
    # Evaluation still reports the likelihood: only what is minimised has the new term.
    first = rows[0]
    assert first["val_loss"] == pytest.approx(np.log(65), abs=0.1)
    tokens = {"tokens": jnp.zeros((1, run.system.window), jnp.int32)}
    loss, _ = run.system.objective(run.params, tokens, {}, None)
    extra = loss - run.system.nll(run.params, tokens).mean()
    assert extra == pytest.approx(1e-2 * np.log(65) ** 2, rel=0.1)


@pytest.mark.trains
@pytest.mark.unoptimised
def test_a_sampler_and_an_order(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(SAMPLERS, "greedy", f"{__name__}:make_greedy")
    monkeypatch.setitem(orders.GENERATION, "every-other", every_other)
    trained_and_resumed(tmp_path, SIGMA)
    options = ("--sampler=greedy", "--order=every-other")
    greedy = sampled(capsys, tmp_path, *options, "--temperature=5")
    known = sampled(
        capsys, tmp_path, "--sampler=ar", "--order=every-other", "--temperature=0"
    )
    assert greedy == known and greedy[0]["text"] == greedy[1]["text"]
    assert greedy[0]["model_calls"] == 12
    # --help and refusals read the registries.
    with pytest.raises(SystemExit):
        sample.command(["--help"])
    assert "ar, greedy, auto. ar:" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="ar, greedy, auto, got 'beam'"):
        sampled(capsys, tmp_path, "--sampler=beam")
    with pytest.raises(UserError, match="every-other"):
        sampled(capsys, tmp_path, "--order=sideways")


@pytest.mark.trains
@pytest.mark.unoptimised
def test_a_position_encoding(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(POSITIONS, "clipped", f"{__name__}:CLIPPED")
    changes = {"model.positions": "clipped"}
    trained_and_resumed(tmp_path, TEENY, **changes)
    # Past the block of 32, from the cache.
    samples = sampled(capsys, tmp_path, "--max_new_tokens=34")
    assert all(len(s["text"]) == 40 for s in samples)
    run = open_run(str(tmp_path))
    assert "positions" not in run.params
    prompt_mask_BT = np.arange(20) < np.array([[3], [3]])
    tokens_BT = np.full((2, 20), 7, np.int32)
    found = [
        run.system.sample(
            run.params,
            tokens_BT,
            prompt_mask_BT,
            jax.random.key(0),
            SamplingParams(cached=cached),
        ).tokens_BT
        for cached in (True, False)
    ]
    np.testing.assert_array_equal(*found)
    assert "alibi, rope, none, clipped" in refusal(
        configs.override, configs.base(), {"model.positions": "absolute"}
    )


@pytest.mark.parametrize(
    "changes, expected",
    [
        (
            {"system": "any-order"},
            "must be one of learned, rope, sinusoidal for σ-GPT, got 'spin'",
        ),
        ({"system": "causal", "model.key_width": 8}, "incompatible with model.qk_norm"),
        ({"system": "memory", "memory.mode": "attention"}, "model.positions=spin"),
    ],
)
def test_checks_look_at_what_a_thing_does_not_at_its_name(
    monkeypatch, changes, expected
):
    monkeypatch.setitem(POSITIONS, "spin", POSITIONS["rope"])
    monkeypatch.setitem(SYSTEMS, "any-order", SYSTEMS["sigma"])
    fields = {"model.positions": "spin", "model.vocab_size": 65, **changes}
    config = configs.validate(configs.override(configs.base(), fields))
    with pytest.raises(UserError, match=expected):
        build_system(config)


def test_a_system_without_samplers_refuses_their_names():
    config = configs.override(configs.base(), {"system": "causal"})
    config.model.vocab_size = 65
    with pytest.raises(UserError, match="--sampler must be ar for this model, got"):
        build_system(config).sampler(SamplingParams(sampler="exact-burst"))


def test_what_the_page_shows_is_what_is_tested():
    tested = [__file__, ROOT / "tests/test_config.py", ROOT / "tests/training/lion.py"]
    source = "\n".join(pathlib.Path(path).read_text() for path in tested)
    page = (ROOT / "docs/extending.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        assert block in source
