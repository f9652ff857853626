"""Power laws are found again, with intervals that hold what they say."""

import numpy as np
import pytest

from jaxgpt.commands.power_law import FORMS, Measurement, fit

X = (128, 512, 2048, 8192, 32768)


def runs(exponent=0.5, seeds=3, noise=0.0, spread=0.0, x=X, seed=0):
    """Runs whose seeds differ in factor and exponent, and that differ by themselves."""
    rng = np.random.default_rng(seed)
    return [
        Measurement(str(s), n, factor * n**-own * np.exp(noise * rng.normal()))
        for s in range(seeds)
        for factor, own in [(np.exp(rng.normal()), exponent + spread * rng.normal())]
        for n in x
    ]  # fmt: skip


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    ("form", "constant"), [("power", 0.0), ("power+constant", 0.01)]
)
def test_an_exact_law_is_found(form, constant, seeds):
    exact = [
        Measurement(str(s), x, 3 * x**-0.5 + constant) for s in range(seeds) for x in X
    ]
    law = fit(exact, form)
    assert law.exponent == pytest.approx(0.5, abs=1e-4)
    assert law.factor == pytest.approx(3, rel=1e-3)
    assert law.constant == pytest.approx(constant, abs=1e-5)
    assert law.error < 1e-4
    assert law.low <= law.exponent <= law.high
    assert law(np.array([100.0]))[0] == pytest.approx(0.3 + constant, rel=1e-3)


def test_the_error_is_that_of_the_mean_of_the_seeds_own_exponents():
    all_runs = runs(noise=0.1)
    own = [
        fit([r for r in all_runs if r.replicate == s], "power").exponent for s in "012"
    ]
    law = fit(all_runs, "power")
    assert law.exponent == pytest.approx(np.mean(own))
    assert law.error == pytest.approx(np.std(own, ddof=1) / np.sqrt(3))
    half = 4.302653 * law.error  # Student's t of two degrees of freedom.
    assert (law.low, law.high) == pytest.approx(
        (law.exponent - half, law.exponent + half)
    )


def test_the_error_of_a_single_seed_is_that_of_a_line_through_logarithms():
    one = runs(seeds=1, noise=0.1)
    x, y = np.log([(r.x, r.y) for r in one]).T
    _, covariance = np.polyfit(x, y, 1, cov=True)
    law = fit(one, "power")
    assert law.error == pytest.approx(np.sqrt(covariance[0, 0]))
    assert law.high - law.exponent == pytest.approx(3.182446 * law.error)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_holds_the_exponent_19_times_of_20(seeds):
    """1,000 studies: the standard error of the share is 0.007."""
    spread = 0.05 if seeds > 1 else 0.0
    laws = [fit(runs(seeds=seeds, noise=0.1, spread=spread, seed=i), "power")
            for i in range(1000)]  # fmt: skip
    inside = [law.low < 0.5 < law.high for law in laws]
    assert 0.925 < np.mean(inside) < 0.975


@pytest.mark.parametrize("form", FORMS)
def test_too_few_values_of_x_are_refused(form):
    few = runs(x=X[: FORMS[form] - 1])
    assert fit(few, form).endswith(f"or more values of x, got {FORMS[form] - 1}")
    assert fit([], form).endswith("got 0")
    assert fit(runs(x=X[: FORMS[form]]), form).error < 1e-3


def test_what_is_no_power_law_is_not_fitted():
    below = [*runs(), Measurement("0", 128.0, -0.001)]
    assert fit(below, "power") == "y is -0.001 at x = 128, and a power law is above 0"
    missing = "its seeds do not have runs at the same values of x"
    assert fit(runs()[:-1], "power") == missing
