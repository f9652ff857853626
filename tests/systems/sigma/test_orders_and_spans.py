"""`evaluate --orders` and `--template`: losses in named orders, and of marked spans."""

import json

import numpy as np
import pytest

import jaxgpt
from jaxgpt import config as configs
from jaxgpt import evaluate
from jaxgpt.systems.registry import build_system
from jaxgpt.systems.sigma import orders
from jaxgpt.systems.sigma.config import ORDERS
from tests.conftest import last_json, refusal

NAMES = ["random", "left-to-right", "right-to-left", "fractal", "far-apart", "block"]


@pytest.mark.parametrize("name", ORDERS)
def test_each_named_order_trains(name):
    changes = {"model.block_size": 20, "model.vocab_size": 5, "sigma.order": name}
    changes |= {"model.n_layer": 1, "model.n_embd": 8, "model.n_head": 2}
    system = build_system(configs.override(configs.base(), changes))
    import jax

    batch = system.train_batch(np.zeros((3, 20), np.int32), jax.random.key(0), 5)
    order_BT = np.asarray(batch["order"])
    assert (np.sort(order_BT, 1) == np.arange(20)).all()
    if name not in ("random", "curriculum"):
        blank = np.zeros(20, bool)
        expected = orders.GENERATION[name](blank, None, orders.BLOCK_LENGTH)
        np.testing.assert_array_equal(order_BT, np.tile(expected, (3, 1)))


def test_losses_in_named_orders_are_those_of_the_api(trained, capsys):
    evaluate.command(
        [f"--workdir={trained}", f"--orders={','.join(NAMES)}", "--json=-"]
    )
    found = last_json(capsys)
    assert [*found["orders"]] == NAMES
    run = jaxgpt.load(trained)
    tokens_NT = run.open_data().eval_windows("val", 32, run.config.eval_sequences)
    assert found["windows"] == len(tokens_NT)
    for name in ("right-to-left", "far-apart"):
        order_T = orders.GENERATION[name](np.zeros(32, bool), None, 16)
        loss_N = np.nanmean(run.score(tokens_NT, order_T), 1)
        figures = found["orders"][name]
        assert figures["loss"] == pytest.approx(loss_N.mean(), 1e-6)
        error = loss_N.std(ddof=1) / len(loss_N) ** 0.5
        assert figures["error"] == pytest.approx(error, 1e-5)
    straight = found["orders"]["left-to-right"]["loss"]
    assert straight != found["orders"]["right-to-left"]["loss"]


def test_marked_spans_have_the_probability_of_the_api(trained, capsys, tmp_path):
    text, spans = "To be, [[or not]] to be[[.]]", ["or not", "."]
    options = [f"--workdir={trained}", "--json=-", "--num_orders=3"]
    evaluate.command([*options, f"--template={text}"])
    found = last_json(capsys)
    run = jaxgpt.load(trained)
    tokens = run.encode("To be, or not to be.")
    given = np.ones(len(tokens), bool)
    given[7:13], given[19] = False, False
    expected = run.log_prob(tokens, given, num_orders=3)
    one = found["templates"][0]
    assert (one["scored"], one["tokens"], found["tokens"]) == (spans, 7, 7)
    assert one["log_prob"] == pytest.approx(float(expected.mean))
    assert one["log_prob_error"] == pytest.approx(float(expected.standard_error))
    assert one["log_prob_mixture"] == pytest.approx(float(expected.mixture))
    assert found["loss"] == one["loss"] == pytest.approx(-one["log_prob"] / 7)
    lines = [text, "a [[b]]"]
    file = tmp_path / "t.jsonl"
    file.write_text("".join(f"{json.dumps({'template': line})}\n" for line in lines))
    evaluate.command([*options, f"--template=@{file}"])
    several = last_json(capsys)
    assert several["templates"][0] == one and several["tokens"] == 8
    (tmp_path / "t.txt").write_text(text)
    evaluate.command([*options, f"--template=@{tmp_path / 't.txt'}"])
    assert last_json(capsys)["templates"] == [one]
    evaluate.command([options[0], f"--template={text}"])
    assert "'or not … .':" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("nothing", "nothing is marked"),
        ("a [[b", "'[[' (at 2) marks nothing"),
        ("a]] b", "']]' (at 1) marks nothing"),
        ("a [[b [[c]]", "'[[' (at 6) marks nothing"),
        ("a [[]] b", "'[[]]' (at 4) marks nothing"),
        ("[[all]]", "cannot predict the token it reads first"),
        ("☃ [[b]]", "'☃' (at 0)"),
        ("a [[☃]]", "'☃' (at 4)"),
        ("a" * 40 + "[[b]]", "in [2, 32]"),
        ("@none.jsonl", "--template='@none.jsonl'"),
    ],
)
def test_a_template_that_cannot_be_scored_is_one_line(trained, template, expected):
    options = [f"--workdir={trained}", f"--template={template}"]
    assert expected in refusal(evaluate.command, options)


def test_wrong_options_are_one_line(trained, tmp_path):
    refused = lambda *options: refusal(
        evaluate.command, [f"--workdir={trained}", *options]
    )
    assert "--orders must be among random" in refused("--orders=random,sideways")
    assert "--infill" in refused("--template=a [[b]]", "--infill=0.5")
    assert "--orders" in refused("--tokens=t.npy", "--orders=random")
    (tmp_path / "t.jsonl").write_text('{"template": "a [[b]]"}\n{"text": "a"}\n')
    assert "line 2: must be like" in refused(f"--template=@{tmp_path / 't.jsonl'}")


@pytest.mark.trains
def test_with_a_beginning_token_the_first_token_counts(tmp_path, capsys):
    config = jaxgpt.config("configs/sigma_plus_char.py:tiny", steps=1)
    run = jaxgpt.train(config, tmp_path / "run")
    T = config.model.block_size
    tokens_NT = np.random.default_rng(0).integers(0, 60, (2, T)).astype(np.int32)
    order_NT = np.random.default_rng(1).permuted(np.tile(np.arange(T), (2, 1)), axis=1)
    nll_NT = run.score(tokens_NT, order_NT)
    batch = {"tokens": tokens_NT, "order": order_NT}
    read_NT = np.asarray(run.system.token_nll(run.params, batch))
    np.testing.assert_allclose(
        np.take_along_axis(nll_NT, order_NT, 1), read_NT, rtol=1e-5
    )
    for name, array in batch.items():
        np.save(tmp_path / f"{name}.npy", array)
    files = [f"--tokens={tmp_path}/tokens.npy", f"--order={tmp_path}/order.npy"]
    evaluate.command([f"--workdir={tmp_path / 'run'}", *files, "--json=-"])
    found = last_json(capsys)
    np.testing.assert_allclose(found["nll"], read_NT[:, 1:], rtol=1e-5)
    np.testing.assert_allclose(found["first_nll"], read_NT[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found["log_prob"], -read_NT.sum(1), rtol=1e-5)
    assert found["loss"] == pytest.approx(read_NT[:, 1:].mean(), 1e-5)
