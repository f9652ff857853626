"""Fits y = a x^-b, or a x^-b + c, to the results of a study."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.optimize import least_squares
from scipy.special import stdtrit

# {form: how many values of x it needs}: one more than it has parameters.
FORMS = {"power": 3, "power+constant": 4}
# Where the search for the constant begins, as shares of the least y.
STARTS = (0.0, 0.3, 0.6, 0.9)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A run: the replicate that it belongs to, x and y."""

    replicate: str
    x: float
    y: float


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = factor x^-exponent + constant.

    Attributes:
      error: standard error of the exponent.
      low, high: its 95 % interval.
      replicates: that the error is estimated from; with 1, from the residuals.
    """

    factor: float
    exponent: float
    constant: float
    error: float
    low: float
    high: float
    replicates: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Returns y."""
        return self.factor * x**-self.exponent + self.constant

    def __str__(self) -> str:
        end = f", constant {self.constant:.3g}" if self.constant else ""
        of = f"{self.replicates} seeds" if self.replicates > 1 else "its residuals"
        return (
            f"exponent {self.exponent:.3f} ± {self.error:.3f}, 95 % interval "
            f"{self.low:.3f} to {self.high:.3f} (from {of}), "
            f"factor {self.factor:.3g}{end}"
        )

    def text(self) -> str:
        """Returns the formula as shown in figures, with the exponent's interval."""
        end = f" + {self.constant:.3g}" if self.constant else ""
        formula = f"{self.factor:.3g} x^-{self.exponent:.2f}{end}"
        return f"{formula}\n95 %: -{self.low:.2f} to -{self.high:.2f}".replace("-", "−")


def fit(runs: Sequence[Measurement], form: str) -> PowerLaw | str:
    """Fits by least squares of log y; returns the reason where that is impossible.

    The error of the exponent is a jackknife over replicates, such as graphs: the runs
    of one replicate are not independent, so they are left out together. Without a
    constant it is the standard error of the mean of the replicates' own exponents. A
    single replicate has only its residuals. The interval is Student's t.
    """
    parts: dict[str, list[Measurement]] = {}
    for run in runs:
        if not 0 < run.y < np.inf:
            return f"y is {run.y:.4g} at x = {run.x:g}, and a power law is above 0"
        parts.setdefault(run.replicate, []).append(run)
    values = [sorted(run.x for run in part) for part in parts.values()]
    if any(one != values[0] for one in values):
        return "its seeds do not have runs at the same values of x"
    count = len(set(values[0])) if values else 0
    if count < FORMS[form]:
        return f"'{form}' takes {FORMS[form]} or more values of x, got {count}"
    constant, n = form != "power", len(parts)
    best, jacobian, residuals = _solve(runs, constant)
    if n > 1:
        others = [[r for r in runs if r.replicate != left] for left in parts]
        exponents = np.array([_solve(rest, constant)[0][1] for rest in others])
        freedom = n - 1
        error = np.sqrt(freedom * np.mean((exponents - exponents.mean()) ** 2))
    else:
        freedom = len(runs) - jacobian.shape[1]
        variance = residuals @ residuals / freedom
        error = np.sqrt(variance * np.linalg.pinv(jacobian.T @ jacobian)[1, 1])
    (log_factor, exponent, c), half = best, error * stdtrit(freedom, 0.975)
    return PowerLaw(
        factor=float(np.exp(log_factor)),
        exponent=float(exponent),
        constant=float(c),
        error=float(error),
        low=float(exponent - half),
        high=float(exponent + half),
        replicates=n,
    )


def _solve(
    runs: Sequence[Measurement], constant: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (log a, b, c), the Jacobian of the residuals of log y, and these."""
    log_x_N = np.log([run.x for run in runs])
    y_N = np.array([run.y for run in runs])
    design_N2 = np.stack([np.ones_like(log_x_N), -log_x_N], 1)

    def linear(c: float) -> np.ndarray:
        return np.linalg.lstsq(design_N2, np.log(y_N - c), rcond=None)[0]

    if not constant:
        found = linear(0.0)
        return np.append(found, 0.0), design_N2, design_N2 @ found - np.log(y_N)
    scale = y_N.min()

    def residuals(p: np.ndarray) -> np.ndarray:
        return np.logaddexp(design_N2 @ p[:2], _log(p[2] * scale)) - np.log(y_N)

    bounds = ([-np.inf, -np.inf, 0.0], [np.inf, np.inf, 1.0])
    fits = [
        least_squares(residuals, [*linear(start * scale), start], bounds=bounds)
        for start in STARTS
    ]
    best = min(fits, key=lambda one: one.cost)
    return best.x * [1, 1, scale], best.jac, best.fun


def _log(value: float) -> float:
    return np.log(value) if value > 0 else -np.inf
