"""`evaluate --judge`: what generated texts are worth to another run."""

import json
import math
from collections import Counter

import numpy as np
import pytest

import jaxgpt
from jaxgpt import evaluate, sample
from jaxgpt.commands import evaluate_samples
from tests.conftest import last_json, refusal


@pytest.fixture
def samples(trained, tmp_path):
    """Texts of the run, in a file of `sample --output`."""
    lines = [{"prompt": "a", "num_samples": 5}, {"prompt": "the ", "max_new_tokens": 9}]
    given, found = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    sample.command([f"--workdir={trained}", f"--input={given}", f"--output={found}"])
    return found


def test_figures_are_those_of_the_texts(trained, samples, capsys):
    capsys.readouterr()
    options = [f"--workdir={trained}", f"--judge={trained}", "--json=-"]
    evaluate.command([*options, f"--samples={samples}"])
    found = last_json(capsys)
    assert found["texts"] == 6 and set(found) >= {"samples", "real", "judge", "step"}
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    texts = [one["text"] for one in [*lines[0]["samples"], lines[1]]]
    nll_NT = jaxgpt.load(trained).score(texts)
    figures = found["samples"]
    assert figures["nll"] == pytest.approx(np.nanmean(nll_NT), 1e-5)
    per_character = np.nansum(nll_NT) / sum(map(len, texts))
    assert figures["nll_per_character"] == pytest.approx(per_character, 1e-5)
    letters = "".join(texts)
    share = np.array([letters.count(letter) for letter in set(letters)]) / len(letters)
    assert figures["entropy"] == pytest.approx(-(share * np.log(share)).sum())
    pairs = [text[i : i + 2] for text in texts for i in range(len(text) - 1)]
    assert figures["distinct_2"] == pytest.approx(len(set(pairs)) / len(pairs))


def test_repetition_and_errors_by_hand():
    rows = [np.array([1, 2, 3, 4] * 3), np.arange(12) + 10]
    grams = [evaluate_samples._ngrams(row, 4) for row in rows]
    assert [sum(g.values()) - len(g) for g in grams] == [5, 0]
    grams = [evaluate_samples._ngrams(row, 1) for row in rows]
    entropy = evaluate_samples._jackknife(
        "h",
        grams,
        lambda count: count * math.log(count) if count else 0.0,
        lambda total, size: math.log(size) - total / size,
    )
    # Left out one at a time they have log 12 and log 4.
    expected = math.sqrt(np.var([math.log(12), math.log(4)]))
    assert entropy["h_error"] == pytest.approx(expected)


def test_errors_of_distinct_grams_are_of_leaving_out_one_text_each():
    rows = np.random.default_rng(0).integers(0, 9, (7, 12))
    grams = [evaluate_samples._ngrams(row, 2) for row in rows]
    found = evaluate_samples._jackknife("d", grams, bool, lambda a, size: a / size)
    shares = []
    for left_out in range(7):
        kept = sum((g for n, g in enumerate(grams) if n != left_out), Counter())
        shares.append(len(kept) / kept.total())
    assert found["d_error"] == pytest.approx(math.sqrt(6 * np.var(shares)))


def test_errors_of_means_shrink_as_texts_do_not_differ(trained):
    run = jaxgpt.load(trained)
    same = [run.encode("the quick")] * 4
    figures = evaluate_samples.measure(same, run, run)
    assert figures["nll_error"] == pytest.approx(0, abs=1e-6)
    assert figures["distinct_1"] == pytest.approx(9 / 36)
    assert figures["repetition"] == 0
    one = evaluate_samples.measure(same[:1], run, run)
    assert one["nll_error"] is None and one["entropy_error"] is None


def test_it_generates_and_prints_a_table(trained, capsys):
    judged = [f"--workdir={trained}", f"--judge={trained}", "--num_samples=3"]
    evaluate.command(judged)
    printed = capsys.readouterr().out
    assert "samples" in printed and "real" in printed and "distinct_4" in printed


def test_wrong_input_is_one_line(trained, samples, tmp_path):
    refused = lambda *options: refusal(
        evaluate.command, [f"--workdir={trained}", *options]
    )
    judged = f"--judge={trained}"
    assert "needs --judge" in refused("--num_samples=3")
    assert "holds no run" in refused(f"--judge={tmp_path}")
    assert "--infill" in refused(judged, "--infill=0.5")
    assert "--split is incompatible with --judge" in refused(judged, "--split=val")
    assert ">= 1, got 0" in refused(judged, "--num_samples=0")
    assert "incompatible" in refused(judged, f"--samples={samples}", "--num_samples=2")
    assert "--samples='none'" in refused(judged, "--samples=none")
    bad = tmp_path / "bad.jsonl"
    for line in ("{", "[]", '{"text": "a"}', '{"tokens": [1]}', '{"tokens": "ab"}'):
        bad.write_text(samples.read_text() + line + "\n")
        assert "line 3: not a line" in refused(judged, f"--samples={bad}")
    bad.write_text("")
    assert "--output, got 'an empty file'" in refused(judged, f"--samples={bad}")
    bad.write_text('{"tokens": [1, 99]}\n')
    assert "ids < 65" in refused(judged, f"--samples={bad}")
