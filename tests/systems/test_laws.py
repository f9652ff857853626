"""What a user is given has the model's law: batches of many samples, lines of a file.

The samplers themselves are tested in test_samplers.py; here all that lies between them
and the user: orders drawn for every row, chunks of --num_samples, rows of other lengths
and seeds beside each other. The laws come from enumerating all texts.
"""

import itertools
import json
import pathlib

import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt import sample
from jaxgpt.commands import sample_lines
from jaxgpt.data.tokenizers import CharTokenizer
from jaxgpt.inference import Run
from jaxgpt.sampling.state import SamplingParams
from jaxgpt.systems import batches
from tests.systems.sigma.test_samplers import agreement, tiny_sigma

T, V = 4, 3
CHUNK = 4096
SAMPLES = 3 * CHUNK - 1000  # The last chunk is not full.


def run_of(system, params):
    """A run of texts of at most 4 characters, a to c."""
    folder = pathlib.Path("a run")
    tokenizer = CharTokenizer("abc")
    return Run(folder, system.config, system, params, 0, tokenizer, configs.base())


@pytest.fixture(scope="module")
def run():
    """A random σ-GPT."""
    return run_of(*tiny_sigma(T, V))


@pytest.fixture(scope="module")
def causal_run():
    """A random causal model."""
    fields = {"system": "causal", "sigma.begin_token": False}
    return run_of(*tiny_sigma(T, V, **fields))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(batches, "ROWS_AT_ONCE", CHUNK)


def read(run, text):
    """A template, or for a causal model a prompt that it continues."""
    return run.reader.template(text) if "<" in text else run.reader.prompt(text)


def law(run, template, order):
    """The law [V^n] of the n missing tokens, from all texts in all orders there are."""
    given = read(run, template)
    missing, known = np.flatnonzero(~given.known), np.flatnonzero(given.known)
    fillings = np.array([*itertools.product(range(V), repeat=len(missing))], np.int32)
    texts = np.tile(given.tokens, (len(fillings), 1))
    texts[:, missing] = fillings
    orders = [missing] if order == "left-to-right" else itertools.permutations(missing)
    causal = run.system.config.system == "causal"
    laws = [
        np.exp(-run.score(texts, reading)[:, missing].sum(1))
        for rest in orders
        for reading in [None if causal else np.array([*known, *rest])]
    ]
    assert np.sum(laws, 1) == pytest.approx(1, abs=1e-4)
    expected = np.mean(laws, 0)
    return expected / expected.sum()


def has_law(run, template, order, tokens_NT):
    given = read(run, template)
    kept = np.broadcast_to(given.tokens, tokens_NT.shape)[:, given.known]
    np.testing.assert_array_equal(tokens_NT[:, given.known], kept)
    expected = law(run, template, order)
    ratio, p = agreement(tokens_NT[:, ~given.known], V, expected)
    assert ratio <= 1.2
    assert p > 0.01


@pytest.mark.parametrize("order", ["random", "left-to-right"])
@pytest.mark.parametrize("sampler", ["ar", "exact-burst"])
def test_many_samples_have_the_law(run, sampler, order):
    template = "<missing:2>b<missing:1>"
    given = run.reader.template(template)
    filled = run.fill(given, SamplingParams(sampler, order), SAMPLES, seed=1)
    assert len(filled.tokens_BT) == SAMPLES
    has_law(run, template, order, filled.tokens_BT)


def test_many_samples_of_a_causal_model_have_the_law(causal_run):
    given = causal_run.reader.prompt("b")
    filled = causal_run.fill(given, SamplingParams(), SAMPLES, seed=1)
    assert len(filled.tokens_BT) == SAMPLES
    has_law(causal_run, "b", "left-to-right", filled.tokens_BT)


def lines_have_their_laws(run, tmp_path, texts, order, sampler):
    kind = "prompt" if run.system.config.system == "causal" else "template"
    lines = [
        {kind: text, "seed": seed, "num_samples": 20}
        for seed in range(200)
        for text in texts
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    options = ["--workdir=unused", f"--input={source}", f"--output={output}"]
    args = sample._parse(options, run.system.config.system)
    sample_lines.execute(run, args, SamplingParams(sampler))
    found = [json.loads(line)["samples"] for line in output.read_text().splitlines()]
    for text in texts:
        tokens = [
            one["tokens"]
            for line, samples in zip(lines, found, strict=True)
            if line[kind] == text
            for one in samples
        ]
        has_law(run, text, order, np.array(tokens))


@pytest.mark.parametrize("sampler", ["ar", "exact-burst"])
def test_lines_of_a_file_have_their_laws(run, tmp_path, sampler):
    templates = ["<missing:4>", "a<missing:2>", "<missing:1>c<missing:1>b"]
    lines_have_their_laws(run, tmp_path, templates, "random", sampler)


def test_lines_for_a_causal_model_have_their_laws(causal_run, tmp_path):
    lines_have_their_laws(causal_run, tmp_path, ["a", "cb"], "left-to-right", "")


def test_the_same_test_tells_another_order_apart(run):
    """Or it would not see an order that is not drawn for every row."""
    template = "<missing:2>b<missing:1>"
    filled = run.fill(
        run.reader.template(template), SamplingParams("ar", "left-to-right"), SAMPLES
    )
    missing = ~run.reader.template(template).known
    expected = law(run, template, "random")
    assert agreement(filled.tokens_BT[:, missing], V, expected)[1] < 1e-6
