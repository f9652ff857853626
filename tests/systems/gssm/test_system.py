import itertools
import json

import jax
import numpy as np
import pytest

from jaxgpt import config as configs
from jaxgpt import run
from jaxgpt.commands.evaluate import evaluate_split
from jaxgpt.commands.train import train
from jaxgpt.errors import CheckError
from jaxgpt.systems.gssm import baselines, dataset
from jaxgpt.systems.gssm.process import Stream, make_process
from jaxgpt.systems.registry import build_system
from jaxgpt.training import metrics, plots
from tests.conftest import ROOT
from tests.systems.gssm.conftest import make
from tests.systems.gssm.test_dataset import TINY, load

pytestmark = pytest.mark.unoptimised


@pytest.mark.parametrize("size", ["", "tiny"])
@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("gssm_*.py")))
def test_a_config_by_its_own_name_is_a_variant_of_the_one_file(file, size):
    name = file.stem.removeprefix("gssm_")
    variant = f"{name}-{size}" if size else name
    alias = configs.load(f"{file}:{size}", {})
    assert alias == configs.load(f"{ROOT}/configs/gssm.py:{variant}", {})
    assert alias.gssm.graph == f"data/graphs/{name}.yaml"
    assert alias.model.n_embd == (16 if size else 64)


@pytest.fixture(scope="module")
def trained_gssm(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("gssm") / "run"
    assert train(configs.load(TINY, {}), workdir) == 0
    return workdir


@pytest.mark.trains
def test_a_run_shows_its_gap_to_the_floor_and_the_baselines(trained_gssm):
    names = {path.name for path in trained_gssm.iterdir()}
    assert {"loss.png", "position.csv", "position.png"} <= names
    assert "tokenizer.json" not in names
    rows = [r for r in metrics.read_rows(trained_gssm) if "val_gap" in r]
    assert [row["step"] for row in rows] == [0, 10, 20]
    assert rows[-1]["val_gap"] < rows[0]["val_gap"]
    for row in rows:
        gap = row["val_loss"] - row["val_loss_exact"]
        assert row["val_gap"] == pytest.approx(gap, abs=1e-9)
        assert row["val_gap_error"] > 0
        assert row["val_loss_exact"] < row["val_loss_bigram"] < row["val_loss_unigram"]
    lines = (trained_gssm / "position.csv").read_text().splitlines()
    assert lines[0] == "position,model,exact"
    assert len(lines) == 17
    exact = np.array([float(line.split(",")[2]) for line in lines[1:]])
    assert exact.mean() == pytest.approx(rows[-1]["val_loss_exact"])


def test_the_gap_is_drawn_below_the_floor_and_the_baselines(trained_gssm, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    rows = metrics.read_rows(trained_gssm)
    plots.plot_losses(rows, trained_gssm / "loss.png")
    losses, gaps = drawn[0].axes
    lines = {line.get_label(): list(line.get_ydata()) for line in losses.lines}
    last = [row for row in rows if "val_gap" in row][-1]
    for label, name in (
        ("exact, the floor", "exact"), ("unigram", "unigram"), ("bigram", "bigram"),
    ):  # fmt: skip
        assert set(lines[label]) == {last[f"val_loss_{name}"]}
    lines = {line.get_label(): list(line.get_ydata()) for line in gaps.lines}
    assert lines["validation,\n± 2 standard errors"][-1] == last["val_gap"]
    assert "exact, the floor" not in lines
    for name in ("unigram", "bigram"):
        above = last[f"val_loss_{name}"] - last["val_loss_exact"]
        assert lines[name][-1] == pytest.approx(above)
    shown = [text.get_text() for text in gaps.texts]
    assert f"{last['val_gap']:.3f} validation,\n± 2 standard errors" in shown


def test_a_run_keeps_its_graph_and_needs_no_file(trained_gssm):
    config = json.loads((trained_gssm / "config.json").read_text())
    assert json.loads(config["gssm"]["graph"])["nodes"][0]["name"] == "Z1"
    assert config["model"]["vocab_size"] == 16


@pytest.mark.trains
def test_the_same_command_resumes_and_another_graph_is_refused(trained_gssm):
    assert train(configs.load(TINY, {}), trained_gssm) == 0
    with pytest.raises(configs.UserError, match=r"gssm\.graph_seed: 1 there, 4 now"):
        train(configs.load(TINY, {"gssm.graph_seed": "4"}), trained_gssm)


@pytest.mark.trains
@pytest.mark.parametrize("offline", [False, True], ids=["online", "hdf5"])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, offline):
    changes = {}
    if offline:
        config = load()
        changes["data.path"] = str(tmp_path / "f.h5")
        made = make_process(config)
        dataset.write_dataset(tmp_path / "f.h5", config, made, (50, 17), 50)
    digests = []
    for name, stops in (("straight", [20]), ("stopped", [10, 20])):
        for steps in stops:
            more = {"steps": str(steps), "optimizer.decay_steps": "20"}
            assert train(configs.load(TINY, changes | more), tmp_path / name) == 0
        folder = tmp_path / name / "checkpoints" / "20" / "digests"
        digests.append((folder / "metadata").read_text())
    assert digests[0] == digests[1]


def test_evaluate_and_sample_know_the_system(trained_gssm):
    opened = run.open_run(str(trained_gssm))
    figures = evaluate_split(opened, "val")
    row = [r for r in metrics.read_rows(trained_gssm) if "val_gap" in r][-1]
    assert figures["gap"] == pytest.approx(row["val_gap"], abs=1e-6)
    assert figures["loss_exact"] == row["val_loss_exact"]
    losses = {s: evaluate_split(opened, s)["loss"] for s in ("train", "val", "test")}
    assert len(set(losses.values())) == 3, "the splits hold other sequences each"
    assert losses["test"] == pytest.approx(losses["val"], abs=0.2)
    tokens, known = np.zeros((3, 9), np.int32), np.arange(9) < np.full((3, 1), 1)
    filled = opened.system.sample(opened.params, tokens, known, jax.random.key(0))
    assert filled.tokens_BT.shape == (3, 9)
    assert filled.tokens_BT.min() >= 0 and filled.tokens_BT.max() < 16


def test_evaluate_reports_the_divergence_beside_the_gap(
    trained_gssm, tmp_path, monkeypatch
):
    opened = run.open_run(str(trained_gssm))
    picture = tmp_path / "positions.png"
    many = evaluate_split(opened, "test", 3000, picture)
    assert many["tokens"] == 3000 * 16
    assert picture.stat().st_size > 10_000
    header, *rows = picture.with_suffix(".csv").read_text().splitlines()
    assert header == "position,model,exact,kl"
    divergences = [float(row.split(",")[3]) for row in rows]
    assert divergences == many["kl_by_position"]
    assert many["loss_exact"] == pytest.approx(many["loss"] - many["gap"], abs=1e-9)
    few = evaluate_split(opened, "test", 50)
    assert many["gap_error"] < few["gap_error"] / 5
    difference = abs(many["kl"] - many["gap"])
    assert 0 < difference < 4 * many["gap_error"]
    assert many["kl_error"] < many["gap_error"]
    assert np.mean(many["kl_by_position"]) == pytest.approx(many["kl"])
    assert len(many["kl_by_position"]) == 16
    assert "gap" not in evaluate_split(opened, "train")
    small = configs.override(load(), {"gssm.sequences": 8, "model.vocab_size": 16})
    data = build_system(small).open_data()
    monkeypatch.setattr(type(opened), "open_data", lambda self: data)
    with pytest.raises(configs.UserError, match="<= 8, all that the train split has"):
        evaluate_split(opened, "train", 9)


def test_the_curves_of_an_evaluation_are_in_two_panels(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    curves = {"model": [2.0, 1.5], "exact": [1.9, 1.3], "kl": [0.08, 0.21]}
    plots.plot_positions(curves, tmp_path / "positions.png")
    losses, below = drawn[0].axes
    assert [line.get_label() for line in losses.lines] == ["model", "exact"]
    gap, kl = below.lines
    np.testing.assert_allclose(gap.get_ydata(), [0.1, 0.2])
    assert list(kl.get_ydata()) == curves["kl"]


SMALL = [
    {"name": "A", "state_dim": 2, "alpha": 0.5, "mode": "slow"},
    {"name": "X", "state_dim": 3, "alpha": 0.4, "parents": ["A", "X"]},
]


def every_sequence(process):
    """All tokens [81, 5], and the probability of each sequence [81]."""
    tokens = np.array([(0, *rest) for rest in itertools.product(range(3), repeat=4)])
    nll = process.score(tokens, "float64")
    return tokens, nll, np.exp(-nll.sum(1))


def test_the_expected_gap_is_the_expected_divergence():
    """Summed over all sequences: an identity, whatever the model."""
    process = make(SMALL)
    tokens, nll, p_N = every_sequence(process)
    assert p_N.sum() == pytest.approx(1, abs=1e-12)
    log_q = np.empty((81, 4, 3))
    for t in range(4):  # Any function of the tokens before is a model.
        logits = np.random.default_rng(t).normal(size=[3] * (t + 1))
        log_q[:, t] = logits[tuple(tokens[:, 1 : t + 1].T)]
    log_q -= np.log(np.exp(log_q).sum(-1, keepdims=True))
    model = -np.take_along_axis(log_q, tokens[:, 1:, None], 2)[..., 0]
    kl = baselines.divergence(process.score(tokens, "float64", "predictive"), log_q)
    assert (kl > 0).all()
    gap_T, kl_T = p_N @ (model - nll), p_N @ kl
    np.testing.assert_allclose(gap_T, kl_T, rtol=0, atol=1e-12)


def test_a_models_expected_gap_is_its_expected_divergence():
    changes = {
        "gssm.graph": json.dumps(SMALL),
        "model.vocab_size": 3,
        "model.block_size": 4,
    }
    system = build_system(configs.override(load(), changes))
    params = system.init(jax.random.key(0))
    params = jax.tree.map(lambda array: 3 * array, params)
    tokens, nll, p_N = every_sequence(system.process)
    model = system.eval_nll(params, tokens.astype(np.int32), 16, 0)[""]
    kl = system.divergence(params, tokens.astype(np.int32), 16)
    assert kl.shape == (81, 4)
    gap_T, kl_T = p_N @ (model - nll), p_N @ kl
    assert kl_T.min() > 0.01
    np.testing.assert_allclose(gap_T, kl_T, rtol=0, atol=1e-6)


def test_no_state_that_is_impossible_costs():
    p, log_q = np.array([0.5, 0.5, 0.0]), np.log([0.5, 0.25, 0.25])
    with np.errstate(all="raise"):
        assert baselines.divergence(p, log_q) == pytest.approx(np.log(2) / 2)
        log_q = np.array([np.log(0.5), np.log(0.5), -np.inf])
        assert baselines.divergence(p, log_q) == 0


def test_nodes_that_do_not_matter_are_named(capfd):
    make_process(load(gssm__graph=json.dumps([*SMALL, SMALL[0] | {"name": "B"}])))
    assert "note: B of the graph: no path leads to X" in capfd.readouterr()[1]
    make_process(load(gssm__graph=json.dumps(SMALL)))
    assert not capfd.readouterr()[1]


def test_a_loss_below_the_floor_is_a_leak():
    system = build_system(configs.override(load(), {"model.vocab_size": 16}))
    tokens = system.process.held_out(Stream(0, "val", 8), 64, 17)
    floor = system.process.score(tokens)
    noise = np.random.default_rng(0).normal(0, 0.1, floor.shape)
    honest = system.gap_metrics(tokens, floor + noise)
    assert abs(honest["gap"]) < 3 * honest["gap_error"]
    assert system.gap_metrics(tokens, floor)["gap"] == 0
    with pytest.raises(CheckError, match="targets leak into the inputs"):
        system.gap_metrics(tokens, floor - 0.05 + noise)


def test_a_few_sequences_prove_no_leak():
    system = build_system(configs.override(load(), {"model.vocab_size": 16}))
    tokens = system.process.held_out(Stream(0, "val", 8), 1, 17)
    figures = system.gap_metrics(tokens, system.process.score(tokens) - 0.1)
    assert figures["gap"] < 0
    assert "gap_error" not in figures, "one sequence has none"
