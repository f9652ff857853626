"""Flights: an aircraft's type and cleared levels, then the levels it flies at.

A sequence is a token of the type, the cleared flight level (hundreds of feet) and the
flight level at `task.length` times. Levels are 0 .. 449; shorter flights are filled up
with a filler.
"""

from __future__ import annotations

import csv
import pathlib

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.config import user_path
from jaxgpt.errors import UserError, require
from jaxgpt.systems.sigma.tasks import pictures
from jaxgpt.systems.sigma.tasks.base import Judgement, Task

LEVELS, TYPES = 450, 129
FILLER = LEVELS + TYPES
COLUMNS = ("FLIGHT_ID", "AIRCRAFT_TYPE", "CFL", "TRACK_ALTITUDE")
# A profile that is right: nowhere a larger step, and no larger mean square error.
LARGEST_STEP = 5
LARGEST_ERROR = 50.0
NARROWEST = 30  # Levels of a picture: a flat flight is drawn flat.
SECONDS = 4  # Between two times of a drawn flight.
LEGEND: tuple[pictures.Entry, ...] = (
    ("cleared level, given", (190, 190, 190), True),
    ("flown", (0, 0, 0), True),
    ("generated, right", pictures.RIGHT, True),
    ("generated, wrong", pictures.WRONG, True),
)


class Vertical(Task):
    """Recorded flights of a CSV file, or simulated ones.

    The file has the columns COLUMNS, a line for each time of each flight, in order; a
    tenth of the flights, the last ones, are for validation.
    """

    shows = "the levels of a flight; its type and cleared levels are given"
    rule = (
        f"no jump above {LARGEST_STEP} levels, and a mean square error below "
        f"{LARGEST_ERROR:g}"
    )
    legend = LEGEND
    words = (*map(str, range(LEVELS)), *(f"type{n}" for n in range(TYPES)), "-")

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.times = self.config.length
        self.prompt_length = 1 + self.times
        self.length = 1 + 2 * self.times

    @property
    def files(self) -> tuple[pathlib.Path, ...]:
        """The CSV file, where there is one."""
        return (user_path(self.config.path),) if self.config.path else ()

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Simulates flights: clearances now and then, and climbs and descents to them.

        Each type has rates of climb and descent (800 to 3,800 feet a minute, less
        where the air is thin), and pilots react to a clearance after 5 to 40 seconds.
        """
        constants = self.constants()
        climb = constants.uniform(1500, 3800, TYPES)
        descent = constants.uniform(1200, 3000, TYPES)
        kind = rng.integers(0, TYPES, count)
        level = rng.integers(3, 36, count) * 10.0
        cleared, followed = level.copy(), level.copy()
        delay, pace = np.zeros(count), np.ones(count)
        given, flown = [], []
        for _ in range(self.times):
            new = rng.random(count) < 1 / 90
            wanted = cleared + 10 * rng.integers(-12, 13, count)
            cleared = np.where(new, wanted.clip(20, LEVELS - 50), cleared)
            delay = np.where(new, rng.integers(5, 41, count), delay - SECONDS)
            pace = np.where(new, rng.uniform(0.8, 1.1, count), pace)
            followed = np.where(delay <= 0, cleared, followed)
            feet = np.where(followed > level, climb[kind], -descent[kind])
            thin = np.where(feet > 0, 1.15 - 0.75 * level / LEVELS, 1)
            move = feet * thin * pace / 100 / 60 * SECONDS
            left = followed - level
            level = level + np.where(abs(left) <= abs(move), left, move)
            given.append(cleared)
            flown.append(level.round())
        return np.stack([LEVELS + kind, *given, *flown], 1).astype(np.int64)

    def read_split(self, split: str) -> np.ndarray | None:
        """Returns the flights of a split of the CSV file, where there is one."""
        if not self.config.path:
            return None
        flights = list(self.flights().values())
        kinds = list(dict.fromkeys(flight[0][0] for flight in flights))
        N, K = len(flights), len(kinds)
        self.check(N >= 2, "path", f"a file with at least 2 flights, not {N}")
        self.check(K <= TYPES, "path", f"a file with <= {TYPES} types, not {K}")
        end = N - max(1, N // 10)
        chosen = flights[:end] if split == "train" else flights[end:]
        tokens_NT = np.full((len(chosen), self.length), FILLER)
        for tokens_T, flight in zip(tokens_NT, chosen, strict=True):
            tokens_T[0] = LEVELS + kinds.index(flight[0][0])
            levels = np.array([line[1:] for line in flight[: self.times]]).T
            # The cleared levels, then those flown; a filler follows a short flight.
            tokens_T[1:].reshape(2, -1)[:, : levels.shape[1]] = levels
        return tokens_NT

    def flights(self) -> dict[str, list[tuple[str, int, int]]]:
        """Returns {FLIGHT_ID: (type, cleared level, level) at each time}."""
        name = self.config.path
        found: dict[str, list[tuple[str, int, int]]] = {}
        try:
            with open(user_path(name), newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                missing = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
                if missing:
                    raise UserError(
                        f"task.path '{name}' has no column {missing[0]}: it needs "
                        f"{', '.join(COLUMNS)}"
                    )
                for line in reader:
                    cleared, level = (
                        self.level(line[c], f"line {reader.line_num}: {c}")
                        for c in COLUMNS[2:]
                    )
                    flight = found.setdefault(line["FLIGHT_ID"], [])
                    flight.append((line["AIRCRAFT_TYPE"], cleared, level))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"task.path '{name}' cannot be read: {error}") from None
        return found

    def level(self, text: str | None, where: str) -> int:
        """Returns a flight level; UserError for anything else."""
        try:
            value = round(float(text or ""))
        except (ValueError, OverflowError):
            value = -1
        name = f"task.path '{self.config.path}', {where}"
        require(0 <= value < LEVELS, name, f"a flight level, 0 .. {LEVELS - 1}", text)
        return value

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Is the profile without jumps and near the one flown (accuracy).

        Its error is in flight levels squared, on average over the flight.
        """
        start = self.prompt_length
        flown, reference = tokens_NT[:, start:], reference_NT[:, start:]
        there = reference < LEVELS
        proper = np.where(there, flown < LEVELS, True).all(1)
        steps = abs(np.diff(flown, axis=1))
        pairs = there[:, 1:] & there[:, :-1]
        smooth = proper & np.where(pairs, steps <= LARGEST_STEP, True).all(1)
        difference = np.where(there, flown - reference, 0).astype(float)
        error = (difference**2).sum(1) / np.maximum(there.sum(1), 1)
        near = error < LARGEST_ERROR
        return {"accuracy": smooth & near, "continuous": smooth, "square_error": error}

    def plot(self, path: pathlib.Path, tokens_NT, reference_NT, prompt_mask_NT) -> None:
        """Plots cleared levels, the flight that was recorded, and the generated one."""
        verdict = self.judge(tokens_NT, reference_NT, prompt_mask_NT)
        start, caption = self.prompt_length, self.caption(verdict)
        figure, axes = pictures.axes(len(tokens_NT), 4, (300, 190), caption)
        for row, each in enumerate(axes):
            cleared, flown = reference_NT[row, 1:start], reference_NT[row, start:]
            right = verdict["accuracy"][row]
            for (_, colour, _), levels, width in (
                (LEGEND[0], cleared, 3),
                (LEGEND[1], flown, 1.2),
                (LEGEND[2 if right else 3], tokens_NT[row, start:], 1.2),
            ):
                levels = np.where(levels < LEVELS, levels, np.nan)
                each.plot(levels, color=np.divide(colour, 255), lw=width)
            low, high = each.get_ylim()
            room = max(0, NARROWEST - (high - low)) / 2
            each.set_ylim(low - room, high + room)
            each.locator_params(nbins=4, integer=True)
            each.tick_params(labelsize=7)
            each.spines[["top", "right"]].set_visible(False)
            error = verdict["square_error"][row]
            each.set_title(f"mean square error {error:,.1f}", size=8)
        figure.supxlabel(f"time, {SECONDS} seconds a step", size=9)
        figure.supylabel("flight level, hundreds of feet", size=9)
        figure.savefig(path, dpi=pictures.DPI)
