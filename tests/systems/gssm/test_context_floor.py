"""The Bayes floor of context graphs: closed form, and bounds where there is none."""

import itertools
import json

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.integrate import quad
from scipy.special import gammaln
from scipy.stats import beta

from jaxgpt import config as configs
from jaxgpt.commands.train import train
from jaxgpt.errors import CheckError, UserError
from jaxgpt.systems.gssm import baselines, likelihood, particles
from jaxgpt.systems.gssm.process import Stream, make_process
from jaxgpt.systems.registry import build_system
from jaxgpt.training import metrics, plots
from tests.conftest import ROOT
from tests.systems.gssm.conftest import make
from tests.systems.gssm.test_context import LATENT, OF_PRODUCTS
from tests.systems.gssm.test_dataset import TINY, load

pytestmark = pytest.mark.unoptimised

IID = [{"name": "X", "state_dim": 3, "alpha": 0.7, "mode": "context"}]
CHAIN = [IID[0] | {"parents": ["X"]}]


def by_gamma_functions(node, tokens, first_token):
    """-log p of each token after the first, from p of all prefixes."""
    V, alpha = node["state_dim"], node["alpha"]
    tokens = [0, *tokens] if first_token == "drawn" else tokens

    def log_p(steps):
        counts = np.zeros((V, V))
        for old, new in itertools.islice(itertools.pairwise(tokens), steps):
            counts[old if node.get("parents") else 0, new] += 1
        rows = gammaln(V * alpha) - gammaln(V * alpha + counts.sum(1))
        return rows.sum() + (gammaln(alpha + counts) - gammaln(alpha)).sum()

    prefixes = [log_p(steps) for steps in range(len(tokens))]
    return -np.diff(prefixes)[int(first_token == "drawn") :]


@pytest.mark.parametrize("first_token", ["start", "drawn"])
@pytest.mark.parametrize("nodes", [IID, CHAIN], ids=["iid", "chain"])
@pytest.mark.parametrize("kernel_type", ["fullrank", "product"])
def test_the_closed_form_is_that_of_gamma_functions(nodes, first_token, kernel_type):
    # A product of one factor is that factor.
    nodes = [nodes[0] | {"kernel_type": kernel_type}]
    process = make(nodes, first_token=first_token)
    assert process.floor_name == "bayes"
    tokens = process.held_out(Stream(0, "val", 2), 5, 40)
    found = process.score(tokens)
    assert found.shape == (5, 39)
    for row, expected in zip(found, tokens, strict=True):
        wanted = by_gamma_functions(nodes[0], list(expected), first_token)
        np.testing.assert_allclose(row, wanted, rtol=0, atol=1e-11)
    p = process.score(tokens, wanted="predictive")
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-14)
    chosen = np.take_along_axis(p, tokens[:, 1:, None], 2)[..., 0]
    np.testing.assert_allclose(-np.log(chosen), found, atol=1e-12)


def test_the_closed_form_is_an_integral_over_kernels():
    process = make([IID[0] | {"state_dim": 2, "alpha": 0.4}])
    found = process.score(np.array([[0, 1, 1, 0, 1]]))[0].cumsum()
    density = beta(0.4, 0.4).pdf
    for steps, ones in ((1, 1), (2, 2), (3, 2), (4, 3)):
        # A substitution takes the poles at 0 and 1 away.
        integrand = lambda s, n=steps, k=ones: (
            density(np.sin(s) ** 2)
            * np.sin(s) ** (2 * k)
            * np.cos(s) ** (2 * (n - k))
            * np.sin(2 * s)
        )
        integral = quad(integrand, 0, np.pi / 2)[0]
        assert np.exp(-found[steps - 1]) == pytest.approx(integral, rel=1e-6)


def test_no_kernel_but_the_drawn_one_is_better_than_the_floor():
    """In expectation over kernels; with 4,000 of them beyond all doubt."""
    process = make(CHAIN, context="sequence")
    tokens = process.held_out(Stream(0, "val", 2000), 4000, 17)
    bounds = process.bounds(tokens, Stream(0, "val", 2000), "float64")
    assert list(bounds) == ["bayes", "known_kernels"]
    above = baselines.mean(bounds["bayes"] - bounds["known_kernels"])
    assert above.value > 10 * above.error
    # The posterior mean of another prior is worse.
    other = make([CHAIN[0] | {"alpha": 0.3}]).score(tokens)
    worse = baselines.mean(other - bounds["bayes"])
    assert worse.value > 4 * worse.error


HIDDEN = {
    "both unknown": LATENT,
    "unknown latent": [LATENT[0], LATENT[1] | {"alpha": 0.5, "state_dim": 3}],
    "known latent": [
        {"name": "Z", "state_dim": 2, "alpha": 0.4, "mode": "slow", "parents": ["X"]},
        {"name": "X", "state_dim": 3, "alpha": 0.4, "mode": "context",
         "parents": ["Z", "X"]},
    ],
    "two latents": [
        {"name": "A", "state_dim": 2, "alpha": 0.4},
        {"name": "B", "state_dim": 2, "alpha": 0.5, "parents": ["A", "X"],
         "mode": "context"},
        {"name": "X", "state_dim": 3, "alpha": 0.3, "parents": ["B"]},
    ],
}  # fmt: skip
HIDDEN["unknown latent"][1].pop("mode", None)


def every_path(process, tokens):
    """All paths of the latents, and log p of each with the tokens, kernels integrated.

    Kernels of context nodes by gamma functions of their counts, others by their tables.
    """
    graph = process.graph
    X, T = graph.observed.name, len(tokens)
    latents = [node.name for node in graph.latents]
    dims = [range(node.state_dim) for node in graph.latents]
    steps = list(itertools.product(*dims))
    paths, log_p = [], []
    for path in itertools.product(steps, repeat=T - 1):
        states = [dict.fromkeys(latents, 0) | {X: tokens[0]}]
        for z, x in zip(path, tokens[1:], strict=True):
            states.append(dict(zip(latents, z, strict=True)) | {X: x})
        total = 0.0
        for node in graph.order:
            counts = np.zeros(graph.shape(node))
            for old, new in itertools.pairwise(states):
                read = [
                    (old if name in (node.name, X) else new)[name]
                    for name in graph.inputs(node)
                ]
                counts[(*read, new[node.name])] += 1
            if node.mode == "context":
                d, alpha = node.state_dim, node.alpha
                rows = gammaln(d * alpha) - gammaln(d * alpha + counts.sum(-1))
                total += rows.sum() + (gammaln(alpha + counts) - gammaln(alpha)).sum()
            else:
                total += (counts * np.log(process.tables[node.name])).sum()
        paths.append(np.array(path).reshape(T - 1, -1))
        log_p.append(total)
    return np.array(paths), np.array(log_p)


@pytest.mark.parametrize("first_token", ["start", "drawn"])
@pytest.mark.parametrize("name", HIDDEN)
def test_the_filter_is_unbiased_on_both_sides(name, first_token):
    """Against all paths: the mean of Z is p, with the truth that of 1 / Z is 1 / p."""
    process = make(HIDDEN[name], first_token=first_token)
    graph, repeats = process.graph, 1000
    tokens = process.held_out(Stream(0, "val", 1), 5, 5 - (first_token == "drawn"))
    tokens = likelihood.from_time_0(tokens, first_token)
    generator = np.random.default_rng(0)
    exact, states = [], []
    for row in tokens:
        paths, log_p = every_path(process, row)
        exact.append(np.logaddexp.reduce(log_p))
        chosen = generator.choice(len(paths), repeats, p=np.exp(log_p - exact[-1]))
        states.append(np.pad(paths[chosen], ((0, 0), (1, 0), (0, 0))))
    paths = np.concatenate(states)
    given = {node.name: paths[..., i] for i, node in enumerate(graph.latents)}
    rows = np.repeat(tokens, repeats, 0)
    for sign, truth in ((1, None), (-1, given)):
        nll = particles.filtered(
            graph, process.tables, rows, 4, jax.random.key(3), truth
        )
        log_z = -nll.sum(1).reshape(5, repeats)
        ratio = np.exp(sign * (log_z - np.array(exact)[:, None]))
        error = ratio.std(1, ddof=1) / repeats**0.5
        assert error.max() < 0.1
        assert (np.abs(ratio.mean(1) - 1) < 4 * error).all()
        # Four particles are few: the bounds are apart.
        mean = log_z.mean(1) - exact
        assert (sign * mean).mean() < 0


def of_20(number):
    """A graph: ten chains of X, then ten with one or two latents, drawn by number."""
    rng = np.random.default_rng(number)
    alpha = lambda: float(rng.uniform(0.1, 1.5))
    X = {"name": "X", "state_dim": int(rng.integers(2, 6)), "alpha": alpha()}
    X["mode"] = "context"
    if number < 10:
        return [X | {"parents": ["X"] if number % 2 else []}]
    latents = [
        {"name": name, "state_dim": 2, "alpha": alpha(), "parents": parents,
         "mode": str(rng.choice(["default", "context"]))}
        for name, parents in (("A", []), ("B", ["A"]))[: 1 + number % 2]
    ]  # fmt: skip
    return [*latents, X | {"parents": [latents[-1]["name"]]}]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_bounds_hold_the_exact_floor_between_them(number):
    """Of chains kernels are the particles, as for products: their floor is exact."""
    process = make(of_20(number), context="sequence")
    chain, N = number < 10, 128 if number < 10 else 24
    names = tuple(node.name for node in process.graph.order)
    states = process.held_out_nodes(names, Stream(0, "val", N), N, 6)
    tokens = states["X"]
    if chain:
        exact = process.score(tokens).sum(1)
        known = process.score_held_out(tokens, Stream(0, "val", N), "float64")
        found = [
            particles.weighted(
                process.graph, {}, tokens, 64, jax.random.key(1), 1e-10, truth
            )
            for truth in (None, known)
        ]
    else:
        exact = np.array(
            [-np.logaddexp.reduce(every_path(process, row)[1]) for row in tokens]
        )
        found = [
            process.estimate(tokens, 0, "val", given, count=64)
            for given in (None, states)
        ]
    upper, lower = (baselines.mean((nll.sum(1) - exact)[:, None]) for nll in found)
    assert lower.value - 3 * lower.error <= 0 <= upper.value + 3 * upper.error
    # And not because they say nothing: less than 0.1 nats a token apart.
    assert upper.value - lower.value < 0.1 * 5


def test_the_filter_without_latents_is_the_closed_form():
    for first_token in ("start", "drawn"):
        process = make(CHAIN, first_token=first_token)
        tokens = process.held_out(Stream(0, "val", 3), 6, 30)
        found = process.estimate(tokens, 0, "val", count=1)
        np.testing.assert_allclose(found, process.score(tokens), atol=1e-5)


def test_kernels_as_particles_are_unbiased_on_both_sides():
    """On a chain, whose exact value is known, though they are for products."""
    process = make(CHAIN, context="sequence")
    N = 3000
    tokens = process.held_out(Stream(0, "val", 1000), N, 6)
    exact = process.score(tokens).sum(1)
    known = process.score_held_out(tokens, Stream(0, "val", 1000), "float64")
    for sign, truth in ((-1, None), (1, known)):
        nll = particles.weighted(
            process.graph, {}, tokens, 4, jax.random.key(0), 1e-10, truth
        )
        ratio = np.exp(sign * (nll.sum(1) - exact))
        error = ratio.std(ddof=1) / N**0.5
        assert error < 0.1
        assert abs(ratio.mean() - 1) < 4 * error


@pytest.mark.parametrize(
    ("nodes", "first_token"),
    [(LATENT, "start"), (OF_PRODUCTS, "drawn")],
    ids=["paths", "kernels"],
)
def test_bounds_lie_on_both_sides(nodes, first_token):
    process = make(nodes, first_token=first_token, context="sequence")
    process.particles = 4
    tokens = process.held_out(Stream(0, "val", 32), 64, 33)
    found = process.bounds(tokens, Stream(0, "val", 32), "float32")
    assert list(found) == ["bayes_estimate", "bayes_lower", "known_kernels"]
    assert all(bound.shape == (64, 32) for bound in found.values())
    apart = baselines.mean(found["bayes_estimate"] - found["bayes_lower"])
    assert apart.value > 4 * apart.error
    above = baselines.mean(found["bayes_estimate"] - found["known_kernels"])
    assert above.value > 4 * above.error
    known = process.score_held_out(tokens, Stream(0, "val", 32), "float32")
    np.testing.assert_allclose(found["known_kernels"], known, rtol=1e-5)


def test_bounds_meet_with_many_particles():
    process = make(LATENT, context="sequence")
    names = tuple(node.name for node in process.graph.order)
    states = process.held_out_nodes(names, Stream(0, "val", 32), 64, 33)
    apart = {}
    for count in (2, 128):
        upper = process.estimate(states["X"], 0, "val", count=count)
        lower = process.estimate(states["X"], 0, "val", states, count=count)
        apart[count] = baselines.mean(upper - lower)
    assert apart[2].value > 4 * apart[2].error
    assert -4 * apart[128].error < apart[128].value < apart[2].value / 4


def test_estimates_do_not_depend_on_how_many_rows_go_at_a_time(monkeypatch):
    process = make(LATENT, context="sequence")
    tokens = process.held_out(Stream(0, "val", 7), 7, 9)
    whole = process.estimate(tokens, 0, "val", count=8)
    assert (process.estimate(tokens, 1, "val", count=8) != whole).any()
    monkeypatch.setattr(particles, "LARGEST_PARTICLES", 500)
    parts = process.estimate(tokens, 0, "val", count=8)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_an_impossible_token_is_not_a_small_number():
    nodes = [LATENT[0], LATENT[1] | {"alpha": 0.02}]
    process = make(nodes, clip=0)
    table = np.array([[0.4, 0.2, 0.3, 0.1, 0]] * 3)
    process = process.with_tables(process.tables | {"X": table})
    found = process.estimate(np.array([[0, 1, 4, 1, 1]]), 0, "val", count=8)
    assert np.isfinite(found[0, 0])
    assert np.isinf(found[0, 1:]).all()


def test_particles_that_do_not_fit_are_refused_with_their_number():
    large = [LATENT[0], {"name": "X", "state_dim": 100, "alpha": 1,
                         "parents": ["Z", "X"], "mode": "context"}]  # fmt: skip
    tokens = np.zeros((1, 3), np.int32)
    for kernel_type in ("fullrank", "product"):
        process = make([large[0], large[1] | {"kernel_type": kernel_type}])
        with pytest.raises(UserError, match=r"gssm\.particles=1048576: each holds 30,"):
            process.estimate(tokens, 0, "val", count=1 << 20)


def system_of(nodes, **changes):
    vocab = next(n["state_dim"] for n in nodes if n["name"] == "X")
    changes = {"gssm__graph": json.dumps(nodes), "model__vocab_size": vocab} | changes
    system = build_system(load(**changes))
    return system, system.process.held_out(Stream(0, "val", 8), 64, 17)


def test_the_gap_is_to_the_floor_of_who_does_not_know_the_kernels():
    system, tokens = system_of(CHAIN)
    floor = system.process.score(tokens)
    found = system.gap_metrics(tokens, floor + 0.25)
    assert found["gap"] == pytest.approx(0.25)
    assert found["loss_bayes"] == floor.mean()
    assert found["loss_known_kernels"] < found["loss_bayes"] - 0.05
    assert not {"loss_exact", "loss_bayes_estimate", "gap_at_least"} & set(found)
    # A gap to the floor is over batches, whose rows share kernels.
    excess = np.repeat(np.arange(8.0), 8)[:, None] + np.zeros_like(floor)
    error = system.gap_metrics(tokens, floor + excess)["gap_error"]
    assert error == pytest.approx(np.std(np.arange(8), ddof=1) / 8**0.5)
    alone, tokens = system_of(CHAIN, gssm__context="sequence")
    floor = alone.process.score(tokens)
    error = alone.gap_metrics(tokens, floor + excess)["gap_error"]
    assert error == pytest.approx(baselines.mean(excess).error)


def test_a_floor_by_bounds_has_no_gap_but_two_bounds_of_it():
    system, tokens = system_of(LATENT, gssm__particles="16")
    bounds, _ = system.references(tokens)
    found = system.gap_metrics(tokens, bounds["bayes_estimate"] + 0.25)
    assert not {"gap", "kl", "loss_bayes", "loss_exact"} & set(found)
    assert found["gap_at_least"] == pytest.approx(0.25)
    between = found["loss_bayes_estimate"] - found["loss_bayes_lower"]
    assert found["gap_at_most"] == pytest.approx(0.25 + between)
    expected = baselines.mean(bounds["bayes_lower"], group=8).error
    assert found["loss_bayes_lower_error"] == pytest.approx(expected)


@pytest.mark.parametrize("by", ["batch", "sequence"])
def test_a_leak_shows_against_the_floor_or_the_known_kernels(by):
    noise = np.random.default_rng(0).normal(0, 0.1, (64, 16))
    system, tokens = system_of(CHAIN, gssm__context=by)
    bounds, _ = system.references(tokens)
    honest = system.gap_metrics(tokens, bounds["bayes"] + noise)
    assert abs(honest["gap"]) < 4 * honest["gap_error"]
    name = "bayes" if by == "sequence" else "known_kernels"
    with pytest.raises(CheckError, match=f"nats below {name}, a lower bound"):
        system.gap_metrics(tokens, bounds["known_kernels"] - 0.1 + noise)
    between = bounds["bayes"] - 0.03 + noise
    if by == "sequence":
        with pytest.raises(CheckError, match="below bayes, a lower bound"):
            system.gap_metrics(tokens, between)
    else:  # Eight batches are too few.
        assert system.gap_metrics(tokens, between)["gap"] < 0


@pytest.mark.trains
@pytest.mark.parametrize("nodes", [CHAIN, LATENT], ids=["closed form", "bounds"])
def test_a_run_of_a_context_graph(tmp_path, nodes):
    changes = {
        "gssm.graph": json.dumps(nodes),
        "gssm.context": "sequence",
        "gssm.particles": "16",
        "steps": "10",
    }
    assert train(configs.load(TINY, changes), tmp_path / "run") == 0
    row = metrics.read_rows(tmp_path / "run")[-1]
    header = (tmp_path / "run" / "position.csv").read_text().splitlines()[0]
    if nodes is CHAIN:
        assert row["val_gap"] == pytest.approx(row["val_loss"] - row["val_loss_bayes"])
        assert header == "position,model,bayes,known_kernels"
    else:
        least = row["val_loss"] - row["val_loss_bayes_estimate"]
        assert row["val_gap_at_least"] == pytest.approx(least)
        assert "val_gap" not in row
        assert header == "position,model,bayes_estimate,bayes_lower,known_kernels"
    assert "val_loss_exact" not in row


def test_bounds_are_drawn_as_a_band_and_what_is_below_the_floor_as_no_gap(
    tmp_path, monkeypatch
):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    row = {
        "val_loss": 1.5,
        "val_loss_bayes_estimate": 1.4,
        "val_loss_bayes_estimate_error": 0.01,
        "val_loss_bayes_lower": 1.2,
        "val_loss_bayes_lower_error": 0.01,
        "val_loss_known_kernels": 0.9,
        "val_loss_bigram": 2.0,
        "val_gap_at_least": 0.1,
        "val_gap_at_least_error": 0.02,
        "val_gap_at_most": 0.3,
        "val_gap_at_most_error": 0.02,
    }
    rows = [row | {"step": step} for step in (0, 10)]
    plots.plot_losses(rows, tmp_path / "loss.png")
    losses, gaps = drawn[0].axes
    assert "0.100 to 0.300 nats above the floor" in losses.get_title(loc="left")
    labels = {line.get_label() for line in losses.lines}
    assert {"bayes estimate, a bound", "bayes lower, a bound", "bigram",
            "known kernels"} <= labels  # fmt: skip
    assert not any("error" in label for label in labels)
    lines = {line.get_label(): line.get_ydata()[-1] for line in gaps.lines}
    assert lines["validation at least,\n± 2 standard errors"] == 0.1
    assert lines["validation at most,\n± 2 standard errors"] == 0.3
    assert lines["bigram"] == pytest.approx(0.6)
    assert "known kernels" not in lines
    curves = {"model": [1.5, 1.4], "bayes_estimate": [1.4, 1.3],
              "bayes_lower": [1.2, 1.1], "known_kernels": [0.9, 0.8]}  # fmt: skip
    plots.plot_positions(curves, tmp_path / "position.png")
    (axes,) = drawn[1].axes
    (band,) = axes.collections
    assert band.get_datalim(axes.transData).ymin == pytest.approx(1.1)
    assert band.get_datalim(axes.transData).ymax == pytest.approx(1.4)


@pytest.mark.parametrize(
    ("name", "floor"), [("icl_chain", "bayes"), ("icl_hmm", "bayes_estimate")]
)
def test_the_shipped_graphs_are_drawn_anew_for_every_sequence(name, floor, capfd):
    process = make_process(configs.load(f"{ROOT}/configs/gssm.py:{name}", {}))
    assert process.floor_name == floor and process.by_sequence
    assert "note:" not in capfd.readouterr()[1]
