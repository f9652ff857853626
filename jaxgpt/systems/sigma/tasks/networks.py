"""The weights of a small network from points that it has labelled."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.systems.sigma.tasks import pictures
from jaxgpt.systems.sigma.tasks.base import Judgement, Task

# Weights are -1, -0.9, ... 1, each a token; so are the coordinates of the plane, whose
# every point is a token if its class is "-", and another if it is "+".
LEVELS = 21
VALUES = np.linspace(-1, 1, LEVELS)
PLANE = np.stack([axis.ravel() for axis in np.meshgrid(VALUES, VALUES)], 1)
# Each class has at least this share of the plane.
LEAST = 0.25
RIGHT_SHARE = 0.9
NO_PROGRESS = 200
# Of class - and +: points that are given, and the rest of the plane.
GIVEN, REST = ((60, 60, 60), (20, 60, 160)), ((225, 225, 225), (190, 215, 255))
LEGEND: tuple[pictures.Entry, ...] = (
    ("given: -", GIVEN[0], True),
    ("given: +", GIVEN[1], True),
    ("generated weights say -", REST[0], True),
    ("generated weights say +", REST[1], True),
    ("not so for the true ones", (255, 150, 140), True),
    *pictures.FRAMES,
)


class QuantizedMLP(Task):
    """`task.length` points with their classes, then the network that has drawn them.

    A point with its class is a token. A network has two inputs, `task.hidden` rectified
    units and the sign of one output; its weights are quantised. Units come in ascending
    order of their weights, as another order is the same network.
    """

    shows = "weights of a network from points that it has labelled"
    legend = LEGEND
    rule = f"generated and true weights agree on {RIGHT_SHARE} of the plane"
    words = (
        *(f"{value:g}" for value in VALUES.round(1) + 0.0),
        *(f"({x:g},{y:g}){c}" for x, y in PLANE.round(1) + 0.0 for c in "-+"),
    )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.prompt_length = self.config.length
        self.length = self.prompt_length + 4 * self.config.hidden + 1

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws weights uniformly, and points in the plane."""

        def networks() -> np.ndarray:
            units = rng.integers(0, LEVELS, (count, self.config.hidden, 4))
            key = units @ LEVELS ** np.arange(3, -1, -1)
            units = np.take_along_axis(units, key.argsort(1)[..., None], 1)
            bias = rng.integers(0, LEVELS, (count, 1))
            weights = np.concatenate([units.reshape(count, -1), bias], 1)
            share = self.classes(weights).mean(1)
            return weights[(share >= LEAST) & (share <= 1 - LEAST)]

        failure = (
            f"hardly any network of task.hidden {self.config.hidden} units has both "
            "classes: raise it"
        )
        weights = self.collect(networks, count, NO_PROGRESS, failure)
        point = rng.integers(0, len(PLANE), (count, self.config.length))
        label = np.take_along_axis(self.classes(weights), point, 1)
        return np.concatenate([LEVELS + 2 * point + label, weights], 1)

    def classes(self, weights_NW: np.ndarray) -> np.ndarray:
        """Returns the class, 0 or 1, of each point of the plane: [N, LEVELS ** 2]."""
        value_NW = VALUES[weights_NW]
        unit_NH4 = value_NW[:, :-1].reshape(len(weights_NW), -1, 4)
        hidden_NHP = unit_NH4[..., :2] @ PLANE.T + unit_NH4[..., 2:3]
        output_NP = (unit_NH4[..., 3:] * hidden_NHP.clip(0)).sum(1) + value_NW[:, -1:]
        return (output_NP > 0).astype(int)

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Do the weights label the plane as the true ones do (accuracy); on what share.

        `agreement` is of the whole plane, `points_right` of the given points.
        """
        weights_NW = tokens_NT[:, self.prompt_length :]
        proper = (weights_NW < LEVELS).all(1)
        said_NP = self.classes(weights_NW.clip(0, LEVELS - 1))
        true_NP = self.classes(reference_NT[:, self.prompt_length :])
        agreement = (said_NP == true_NP).mean(1) * proper
        point_NK, label_NK = self.points(reference_NT)
        points_right = (np.take_along_axis(said_NP, point_NK, 1) == label_NK).mean(1)
        return {
            "accuracy": agreement >= RIGHT_SHARE,
            "agreement": agreement,
            "points_right": points_right * proper,
        }

    def points(self, tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns which points of the plane are given, and their classes: [N, K]."""
        return np.divmod(tokens_NT[:, : self.prompt_length] - LEVELS, 2)

    def tiles(self, verdict, tokens_NT, reference_NT) -> list[pictures.Tile]:
        """Returns the plane as generated weights label it, with the given points."""
        weights, true = (a[:, self.prompt_length :] for a in (tokens_NT, reference_NT))
        said_NP = self.classes(weights.clip(0, LEVELS - 1))
        cells_NPC = np.array(REST)[said_NP]
        cells_NPC[said_NP != self.classes(true)] = LEGEND[4][1]
        point_NK, label_NK = self.points(reference_NT)
        np.put_along_axis(cells_NPC, point_NK[..., None], np.array(GIVEN)[label_NK], 1)
        cells = cells_NPC.reshape(-1, LEVELS, LEVELS, 3)
        shown = [
            pictures.grid(plane, right, size=10)
            for plane, right in zip(cells, verdict["accuracy"], strict=True)
        ]
        for tile, agreement in zip(shown, verdict["agreement"], strict=True):
            tile.notes.append((f"agreement {agreement:.3f}", (0, 0, 0)))
        return shown
