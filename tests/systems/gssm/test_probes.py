import json
import re

import numpy as np
import pytest

import jaxgpt
from jaxgpt import config as configs
from jaxgpt import gssm
from jaxgpt.commands.probe import table
from jaxgpt.commands.train import train
from jaxgpt.systems.gssm import probe, probes
from jaxgpt.systems.registry import build_system
from tests.conftest import ROOT, last_json, refusal
from tests.systems.gssm.conftest import MIXED
from tests.systems.gssm.test_dataset import TINY

pytestmark = pytest.mark.unoptimised


@pytest.fixture(scope="module")
def parts():
    """Sequences of a graph to fit probes to, and others to score them on."""
    graph = gssm.Graph(MIXED)

    def read(split):
        states = gssm.sample_states(graph, 40, 33, split=split)
        tokens_NT = states.pop("X")
        return probes.Sequences(tokens_NT, gssm.beliefs(graph, tokens_NT), states)

    return read("fit"), read("test")


def reader(parts, of):
    """Returns features of(sequences), [N, T, D], as a layer that reads tokens."""
    rows = {
        tokens_T.tobytes(): features_TD
        for part in parts
        for tokens_T, features_TD in zip(part.tokens_NT, of(part), strict=True)
    }
    return lambda tokens_BT: [np.stack([rows[t.tobytes()] for t in tokens_BT])]


def test_planted_features_are_recovered(parts):
    """All targets, mixed by a random matrix, among as many features of noise."""
    rng = np.random.default_rng(0)
    K = parts[0].targets()[0].shape[-1]
    mix_KD = rng.normal(size=(K, 2 * K))

    def planted(part):
        y_NTK, _ = part.targets()
        return y_NTK @ mix_KD + 7.0

    found = probes.measure(reader(parts, planted), *parts, rows=16)
    assert list(found) == ["Z1", "Z2", "Z3"]
    for values in found.values():
        assert values["r2"][0] > 0.999 and values["r2_error"][0] < 1e-3
        assert values["accuracy"] == [1.0] and values["accuracy_error"] == [0.0]


def test_random_features_say_nothing(parts):
    rng = np.random.default_rng(0)
    noise = lambda part: rng.normal(size=(*part.tokens_NT.shape, 20)).astype(np.float32)
    found = probes.measure(reader(parts, noise), *parts, rows=40)
    for name, values in found.items():
        assert abs(values["r2"][0]) < 0.05
        states_NT = parts[1].states[name]
        commonest = np.bincount(parts[0].states[name].ravel()).argmax()
        expected = (states_NT == commonest).mean()
        assert values["accuracy"][0] == pytest.approx(expected, abs=0.03)


def test_a_part_of_the_truth_explains_its_share(parts):
    """Features that are the belief and noise of the same variance: half of it."""
    rng = np.random.default_rng(0)

    def noisy(part):
        belief_NTS = part.beliefs["Z2"]
        spread = belief_NTS[..., 1:].std((0, 1))
        return belief_NTS[..., 1:] + rng.normal(size=belief_NTS[..., 1:].shape) * spread

    features = reader(parts, noisy)
    found = probes.measure(features, *parts, rows=16)["Z2"]
    # The noise of one state's belief is smoothed with the others': a half or more.
    assert 0.45 < found["r2"][0] < 0.8
    assert 0.0 < found["r2_error"][0] < 0.05
    again = probes.measure(features, *parts, rows=7)["Z2"]
    for name, values in found.items():
        np.testing.assert_allclose(again[name], values, atol=1e-9)


def test_ridge_is_least_squares_where_it_is_weak_and_the_mean_where_it_is_strong():
    rng = np.random.default_rng(1)
    x_ND, y_NK = rng.normal(size=(50, 3)) + 2, rng.normal(size=(50, 2))
    weights = list(probes.ridge(probes.Moments.of(x_ND, y_NK)))
    z = np.column_stack([np.ones(50), x_ND])
    expected, squares, *_ = np.linalg.lstsq(z, y_NK, rcond=None)
    np.testing.assert_allclose(weights[0], expected, atol=1e-6)
    found = probes.Moments.of(x_ND, y_NK).squared_error(weights[0])
    np.testing.assert_allclose(found, squares)
    sizes = [np.abs(w[1:]).sum() for w in weights]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 5


def test_a_belief_that_never_changes_has_no_r2():
    Z = {"name": "Z", "state_dim": 1, "alpha": 1}
    X = {"name": "X", "state_dim": 3, "alpha": 1, "parents": ["Z"]}
    graph = gssm.Graph([Z, X])
    states = gssm.sample_states(graph, 8, 9)
    tokens_NT = states.pop("X")
    part = probes.Sequences(tokens_NT, gssm.beliefs(graph, tokens_NT), states)
    constant = lambda tokens_BT: [np.ones((*tokens_BT.shape, 2))]
    found = probes.measure(constant, part, part, rows=8)["Z"]
    assert found["r2"] == found["r2_error"] == [None]
    assert found["accuracy"] == [1.0]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("probe") / "run"
    assert train(configs.load(TINY, {"checkpoint_interval": "10"}), workdir) == 0
    return workdir


@pytest.mark.trains
def test_the_command_probes_every_checkpoint_and_draws_them(
    run_folder, tmp_path, capsys
):
    figure = tmp_path / "p.png"
    options = [f"--workdir={run_folder}", "--num_sequences=32"]
    probe.command([*options, "--step=all", f"--figure={figure}", "--json=-"])
    found = last_json(capsys)
    assert list(found["models"]) == ["untrained", "10", "20"]
    assert found["layers"] == ["embedding", "block_0", "block_1"]
    assert found["sequences"] == 32
    for values in found["models"].values():
        for latent in ("Z1", "Z2"):
            of = values[latent]
            assert {len(of[name]) for name in of} == {3}
            assert all(r2 < 1 for r2 in of["r2"])
    for known in found["latents"].values():
        assert known["commonest"] < known["belief"] < 1 and known["states"] == 4
    assert figure.stat().st_size > 10_000
    assert json.loads(figure.with_suffix(".json").read_text()) == found
    lines = "\n".join(table(found))
    r2 = found["models"]["20"]["Z1"]["r2"][2]
    assert re.search(rf"\n +step 20 .*\n +R.2 of the belief, Z1 .* {r2:.3f}\n", lines)
    one = gssm.probe(jaxgpt.load(str(run_folder), step="last"), num_sequences=32)
    assert one["trained"] == found["models"]["20"]
    assert one["untrained"] == found["models"]["untrained"]


@pytest.mark.trains
def test_wrong_input_is_one_line(run_folder, tmp_path):
    def refused(*options, workdir=run_folder):
        return refusal(probe.command, [f"--workdir={workdir}", *options])

    assert "no checkpoint '7': there are best, last, " in refused("--step=7")
    assert "--num_sequences must be in [4, 1048576], got 3" in refused(
        "--num_sequences=3"
    )
    assert "must end in .png" in refused(f"--figure={tmp_path}/p.pdf")
    assert "holds no run" in refused(workdir=tmp_path)
    sigma = configs.load(f"{ROOT}/configs/sigma_char.py:tiny", {})
    configs.save(sigma, tmp_path / "config.json")
    assert "must be gssm, got 'sigma'" in refused(workdir=tmp_path)
    sigma.model.vocab_size = 8
    message = refusal(probes.Probes, build_system(sigma), 8)
    assert message == "probes need a run of a graph (system gssm), got system 'sigma'"
