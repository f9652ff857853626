"""The causal system beyond its block, and on texts of a split."""

import jax
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt import evaluate, sample
from jaxgpt.commands.train import train
from jaxgpt.errors import UserError
from jaxgpt.model.config import POSITIONS
from jaxgpt.sampling.state import SamplingParams
from jaxgpt.systems import scoring
from jaxgpt.systems.registry import build_system
from tests.conftest import ROOT, last_json

pytestmark = pytest.mark.unoptimised

BLOCK = 8


def system_with(**changes):
    fields = {
        "system": "causal",
        "model.n_layer": 2,
        "model.n_head": 2,
        "model.n_embd": 16,
        "model.block_size": BLOCK,
        "model.vocab_size": 7,
    }
    system = build_system(configs.override(configs.base(), fields | changes))
    params = system.init(jax.random.key(0))
    return system, jax.tree.map(lambda a: a * 8 if a.ndim > 1 else a, params)


def logits_of(system, params, tokens):
    return jax.jit(lambda params: system.model(params)(tokens)[0])(params)


def ask(system, params, T, given=3, **sampling):
    tokens = np.arange(2 * T, dtype=np.int32).reshape(2, T) % 7
    known = np.tile(np.arange(T) < given, (2, 1))
    key = jax.random.key(3)
    filled = system.sample(params, tokens, known, key, SamplingParams(**sampling))
    np.testing.assert_array_equal(filled.tokens_BT[known], tokens[known])
    return filled.tokens_BT


@pytest.mark.parametrize("name", POSITIONS)
def test_cached_generation_equals_the_naive_one(name):
    system, params = system_with(**{"model.positions": name})
    for T in (5, BLOCK):
        fast, slow = (ask(system, params, T, cached=c) for c in (True, False))
        np.testing.assert_array_equal(fast, slow)


@pytest.mark.parametrize("T, given", [(9, 3), (16, 3), (21, 3), (21, 13)])
def test_alibi_goes_on_past_its_block_from_the_beginning(T, given):
    system, params = system_with(**{"model.positions": "alibi"})
    fast = ask(system, params, T, given)
    np.testing.assert_array_equal(fast, ask(system, params, T, given, cached=False))
    greedy = ask(system, params, T, given, temperature=0.0)
    logits = logits_of(system, params, greedy)
    likeliest = np.asarray(logits.argmax(-1))[:, given - 1 : -1]
    np.testing.assert_array_equal(greedy[:, given:], likeliest)


def test_a_callback_past_the_block_sees_the_block_filled_once():
    system, params = system_with()
    tokens, known = np.zeros((1, 13), np.int32), np.arange(13) < 3
    shown = []

    def show(output):
        shown.append(output.decoded_BT.sum())
        assert len(shown) <= BLOCK
        return True

    key, length_B = jax.random.key(0), np.array([13])
    filled = system.sample(
        params, tokens, known[None], key, callback=show, length_B=length_B
    )
    assert shown == [*range(4, BLOCK + 1)] and filled.decoded_BT.all()


@pytest.mark.parametrize("name", ["learned", "rope"])
def test_others_move_one_block_over_the_text(name):
    system, params = system_with(**{"model.positions": name})
    greedy = ask(system, params, 13, temperature=0.0)
    window = greedy[:, 13 - 1 - BLOCK : -1]
    likeliest = np.asarray(logits_of(system, params, window)[:, -1].argmax(-1))
    np.testing.assert_array_equal(greedy[:, -1], likeliest)


def test_prompts_past_the_block_stay_and_are_continued_from_their_last_block():
    system, params = system_with(**{"model.positions": "learned"})
    tokens, given = np.arange(26, dtype=np.int32).reshape(2, 13) % 7, [11, 3]
    known, key = np.arange(13) < np.array(given)[:, None], jax.random.key(0)
    greedy = SamplingParams(temperature=0.0)
    both = system.sample(params, tokens, known, key, greedy)
    np.testing.assert_array_equal(both.tokens_BT[known], tokens[known])
    for end in (11, 12):
        window = both.tokens_BT[:, end - BLOCK : end]
        likeliest = np.asarray(logits_of(system, params, window)[:, -1].argmax(-1))
        np.testing.assert_array_equal(both.tokens_BT[:, end], likeliest)
    np.testing.assert_array_equal(both.num_forward_passes_B, [2, 10])
    for row in (slice(0, 1), slice(1, 2)):  # Each as it is alone.
        alone = system.sample(params, tokens[row], known[row], key, greedy)
        np.testing.assert_array_equal(both.tokens_BT[row], alone.tokens_BT)
        np.testing.assert_array_equal(both.decode_step_BT[row], alone.decode_step_BT)
        np.testing.assert_allclose(both.log_p_BT[row], alone.log_p_BT, atol=1e-5)
        assert (both.log_p_BT[row][known[row]] == 0).all()


def test_sigma_has_its_own_positions():
    config = configs.override(configs.base(), {"model.positions": "alibi"})
    with pytest.raises(
        UserError,
        match="must be one of learned, rope, sinusoidal for σ-GPT, got 'alibi'",
    ):
        configs.validate(config)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1x,2x,8x", [8, 16, 64]),
        ("8,16, 4", [4, 8, 16]),
        ("1x,8", [8]),
    ],
)
def test_lengths_are_tokens_or_blocks(text, expected):
    assert scoring.parse_lengths(text, BLOCK) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "x", "1.5x", "8;16", "9999999", "²", "9" * 5000]
)
def test_lengths_that_are_none(text):
    with pytest.raises(UserError, match="--eval_lengths must be token counts"):
        scoring.parse_lengths(text, BLOCK)


def test_every_length_is_scored_over_the_same_tokens():
    class Data:
        def eval_windows(self, split, length):
            assert (split, length) == ("val", 4 * BLOCK + 1)
            return np.random.default_rng(0).integers(0, 7, (5, length), np.int32)

    system, params = system_with(**{"model.positions": "none"})
    # Without positions and with one block of attention, each token's loss is of the
    # tokens before it; a length of one token sees only itself.
    found = scoring.losses_by_length(
        system, params, Data(), "val", [1, BLOCK, 4 * BLOCK]
    )
    windows = Data().eval_windows("val", 4 * BLOCK + 1)
    whole = system.nll(params, {"tokens": windows}).mean()
    assert found[str(4 * BLOCK)] == pytest.approx(float(whole), rel=1e-6)
    pairs = np.stack([windows[:, :-1], windows[:, 1:]], -1).reshape(-1, 2)
    alone = system.nll(params, {"tokens": pairs}).mean()
    assert found["1"] == pytest.approx(float(alone), rel=1e-6)


@pytest.fixture(scope="module")
def teeny(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teeny") / "run"
    config = configs.load(f"{ROOT}/configs/teeny_char.py:tiny", {"steps": "3"})
    assert train(config, workdir) == 0
    return f"--workdir={workdir}"


def test_evaluate_at_lengths_and_on_the_test_split(teeny, capsys):
    evaluate.command([teeny, "--eval_lengths", "--split=test", "--json=-"])
    figures = last_json(capsys)
    assert list(figures["loss_at_length"]) == ["32", "64", "128", "256"]
    assert figures["loss_at_length"]["32"] == pytest.approx(figures["loss"], abs=0.01)
    evaluate.command([teeny, "--eval_lengths=2x"])
    assert "loss at 64" in capsys.readouterr().out


def test_continuations_of_a_split(teeny, capsys):
    options = [teeny, "--split=test", "--num_samples=3", "--max_new_tokens=70"]
    sample.command([*options, "--json=-"])
    samples = last_json(capsys)["samples"]
    assert len({s["prompt"] for s in samples}) == 3
    for one in samples:
        assert one["prompt"] + one["continuation"] == one["text"]
        assert (len(one["prompt"]), len(one["continuation"])) == (16, 70)
        assert one["prompt"] in (ROOT / "data/shakespeare.txt").read_text()
    sample.command(options)
    printed = capsys.readouterr().out
    assert printed.count("--- prompt ") == printed.count("--- continuation ") == 3
    for one in samples:
        assert f"{one['prompt']}\n--- continuation" in printed


def test_a_prompt_longer_than_the_block(teeny, capsys):
    prompt = f"--prompt={'to be ' * 8}"
    sample.command([teeny, prompt, "--max_new_tokens=5", "--json=-"])
    assert len(last_json(capsys)["samples"][0]["text"]) == 53


def test_continuations_that_cannot_be(teeny):
    for options, expected in (
        (["--split=test", "--prompt=x"], "not allowed with"),
        (["--split=all"], "invalid choice"),
        (["--split=val", "--max_new_tokens=99999"], "65536 fit the model"),
    ):
        with pytest.raises(UserError, match=expected):
            sample.command([teeny, *options])


@pytest.mark.trains
def test_a_learned_table_is_refused_beyond_its_end(tmp_path, capsys):
    changes = {"steps": "2", "model.positions": "learned"}
    config = configs.load(f"{ROOT}/configs/teeny_char.py:tiny", changes)
    assert train(config, tmp_path / "run") == 0
    workdir = f"--workdir={tmp_path / 'run'}"
    sample.command([workdir, f"--prompt={'a' * 40}", "--max_new_tokens=2"])
    assert len(capsys.readouterr().out.removesuffix("\n")) == 42
    expected = "a text of 64 tokens is longer than the table of 32 positions"
    with pytest.raises(UserError, match=expected):
        evaluate.command([workdir, "--eval_lengths=1x,2x"])
    np.save(tmp_path / "tokens.npy", np.zeros((1, 33), np.int32))
    with pytest.raises(UserError, match="rows of 33 tokens: 2 to 32 fit"):
        evaluate.command([workdir, f"--tokens={tmp_path / 'tokens.npy'}"])


def test_sigma_is_not_evaluated_at_lengths(trained):
    with pytest.raises(UserError, match="--eval_lengths is for causal models"):
        evaluate.command([f"--workdir={trained}", "--eval_lengths"])
