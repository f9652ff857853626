"""Walks and changes on a grid: snake, mixing, greed."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.systems.sigma.tasks import pictures
from jaxgpt.systems.sigma.tasks.base import Judgement, Task

# Rows and columns of a step north, east, south, west.
STEPS = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
COMPASS = "NESW"


class Snake(Task):
    """A walk over a coloured grid: a colour and a direction, `task.length` times.

    The first half is given, and all directions; what is missing are the later colours
    of cells that were seen in the first half.
    """

    shows = "the colours of cells that a walk has seen before"
    rule = "every one of these colours"

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        c = self.config
        self.check(c.length >= 4, "length", ">= 4")
        self.length = 2 * c.length
        self.words = [*COMPASS, *map(str, range(1, c.colors + 1))]

    def sample(
        self, rng: np.random.Generator, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws walks that never turn back; ahead is twice as likely as aside."""
        c, row = self.config, np.arange(count)
        world = rng.integers(0, c.colors, (count, c.height, c.width))
        seen = np.zeros(world.shape, bool)
        at = np.stack([rng.integers(0, n, count) for n in (c.height, c.width)], 1)
        heading = rng.integers(0, 4, count)
        tokens_NT = np.zeros((count, self.length), np.int64)
        prompt_mask_NT = np.ones((count, self.length), bool)
        for t in range(c.length):
            cell = (row, at[:, 0], at[:, 1])
            tokens_NT[:, 2 * t] = 4 + world[cell]
            if t < c.length // 2:
                seen[cell] = True
            else:
                prompt_mask_NT[:, 2 * t] = ~seen[cell]
            ways = (heading[:, None] + np.array([-1, 0, 1, 2])) % 4
            places = at[:, None] + STEPS[ways]
            inside = ((places >= 0) & (places < (c.height, c.width))).all(-1)
            # Back only if nothing else is left, as in a grid of one row.
            weight = inside * np.array([1, 2, 1, 1e-9])
            choice = (rng.random(weight.shape) * weight).argmax(1)
            heading, at = ways[row, choice], places[row, choice]
            tokens_NT[:, 2 * t + 1] = heading
        return tokens_NT, prompt_mask_NT


class Mixing(Task):
    """A grid of numbers with a row and a column blanked out, mixed move by move.

    A move turns a row or a column by one; `task.length` grids in all. Nothing is
    given: the judge asks whether the first grid is a beginning and all moves are moves.
    """

    shows = "a grid that is mixed move by move, from nothing"
    legend = pictures.FRAMES
    rule = (
        "numbers in order but for a blank row and column, then each time a row or a "
        "column turned by one"
    )

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        c = self.config
        self.cells = c.height * c.width
        self.length = self.cells * c.length
        self.words = [*map(str, range(self.cells)), "."]  # "." is a blank.

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws what is blanked out, and every move."""
        c, row = self.config, np.arange(count)
        grid = np.broadcast_to(np.arange(self.cells), (count, self.cells))
        grid = grid.reshape(count, c.height, c.width).copy()
        grid[row, rng.integers(0, c.height, count)] = self.cells
        grid[row, :, rng.integers(0, c.width, count)] = self.cells
        grids = [grid]
        for _ in range(c.length - 1):
            every = self.moves(grids[-1])
            grids.append(every[rng.integers(0, len(every), count), row])
        return np.stack(grids, 1).reshape(count, self.length)

    def moves(self, grid_NHW: np.ndarray) -> np.ndarray:
        """Returns what each move makes of grids, [moves, N, H, W]."""
        results = []
        for axis in (1, 2):
            for line in range(grid_NHW.shape[axis]):
                for shift in (-1, 1):
                    moved = grid_NHW.copy()
                    where = (slice(None), line) if axis == 1 else (..., line)
                    moved[where] = np.roll(moved[where], shift, 1)
                    results.append(moved)
        return np.stack(results)

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Is the first grid a beginning, and every next one a move away."""
        c, N = self.config, len(tokens_NT)
        grids = tokens_NT.reshape(N, c.length, c.height, c.width)
        blank = grids[:, 0] == self.cells
        rows, columns = blank.all(2), blank.all(1)
        plain = np.arange(self.cells).reshape(c.height, c.width)
        begins = (rows.sum(1) == 1) & (columns.sum(1) == 1)
        cross = rows[:, :, None] | columns[:, None]
        begins &= (np.where(cross, self.cells, plain) == grids[:, 0]).all((1, 2))
        good = [
            (self.moves(grids[:, t]) == grids[:, t + 1]).all((2, 3)).any(0)
            for t in range(c.length - 1)
        ]
        good_NM = np.reshape(good, (c.length - 1, N)).T
        moves = good_NM.mean(1) if c.length > 1 else np.ones(N)
        return {"accuracy": begins & good_NM.all(1), "begins": begins, "moves": moves}

    def tiles(self, verdict, tokens_NT, reference_NT) -> list[pictures.Tile]:
        """Returns each sequence's grids in a row, a shade a number, blanks white."""
        c = self.config
        shade = np.linspace(0, 1, self.cells)[:, None]
        palette = (1 - shade) * (70, 70, 160) + shade * (250, 200, 90)
        palette = np.vstack([palette, (255, 255, 255)])
        numbers, shown = np.array([*self.words[:-1], ""]), []
        for row, tokens_T in enumerate(tokens_NT):
            grids = tokens_T.reshape(c.length, c.height, c.width)
            right = verdict["accuracy"][row]
            parts = [pictures.grid(palette[g], right, numbers[g]) for g in grids]
            shown.append(pictures.strip(parts))
        return shown


FLOOR, WALL, COIN, AGENT = range(4)
CELLS: tuple[pictures.Entry, ...] = (
    ("floor", (255, 255, 255), True),
    ("wall", (110, 110, 110), True),
    ("coin", (240, 190, 40), True),
    ("agent", (40, 90, 220), True),
    ("no cell", pictures.WRONG, True),
)


class Greed(Task):
    """An agent collects coins: the reward to be earned, then the episode.

    The total reward comes first, then `task.length` times the grid, a step, and
    whether there was a coin. Given the reward and the first grid, an episode must be
    possible and earn it. There are `task.colors` coins.
    """

    shows = "an episode; given are the reward and the first grid"
    rule = "every step, + with a coin, is possible, and they earn the reward"
    legend = (*CELLS, *pictures.FRAMES)

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        c = self.config
        self.cells = c.height * c.width
        self.length = 1 + c.length * (self.cells + 2)
        self.prompt_length = 1 + self.cells
        totals = [f"={n}" for n in range(c.colors + 1)]
        self.words = [*".#$@", *COMPASS, "-", "+", *totals]
        self.first_total = self.codes["=0"]
        room = self.cells - 1 - c.colors
        self.check(
            c.walls <= room,
            "walls",
            f"<= {room} on a grid of {c.height} x {c.width} with {c.colors} coins",
        )

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws worlds and random walks in them; into walls the agent does not go."""
        c, row = self.config, np.arange(count)
        place = rng.random((count, self.cells)).argsort(1)
        grid = np.zeros((count, self.cells), np.int64)
        grid[row[:, None], place[:, : c.walls]] = WALL
        grid[row[:, None], place[:, c.walls : c.walls + c.colors]] = COIN
        at = place[:, c.walls + c.colors]
        grid[row, at] = AGENT
        parts, total = [], np.zeros(count, np.int64)
        for _ in range(c.length):
            heading = rng.integers(0, 4, count)
            after, at, reward = self.advance(grid, at, heading)
            total += reward
            parts += [grid, 4 + heading[:, None], 8 + reward[:, None]]
            grid = after
        return np.concatenate([self.first_total + total[:, None], *parts], 1)

    def advance(
        self, grid: np.ndarray, at: np.ndarray, heading: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns grids [N, H W], places [N] and rewards [N] after a step each."""
        c, row = self.config, np.arange(len(grid))
        place = np.stack(np.divmod(at, c.width), 1) + STEPS[heading]
        inside = ((place >= 0) & (place < (c.height, c.width))).all(1)
        goal = np.where(inside, place[:, 0] * c.width + place[:, 1], at)
        goal = np.where(grid[row, goal] == WALL, at, goal)
        reward = (grid[row, goal] == COIN).astype(np.int64)
        result = grid.copy()
        result[row, at] = FLOOR
        result[row, goal] = AGENT
        return result, goal, reward

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Is the episode possible, and does it earn the reward."""
        c, N = self.config, len(tokens_NT)
        target = reference_NT[:, 0] - self.first_total
        steps = tokens_NT[:, 1:].reshape(N, c.length, self.cells + 2)
        grids, heading = steps[..., : self.cells], steps[..., -2] - 4
        rewards = steps[..., -1] - 8
        grid = reference_NT[:, 1 : 1 + self.cells]
        at = (grid == AGENT).argmax(1)
        possible, earned = np.ones(N, bool), np.zeros(N, np.int64)
        for t in range(c.length):
            possible &= (grids[:, t] == grid).all(1)
            possible &= (heading[:, t] >= 0) & (heading[:, t] < 4)
            grid, at, reward = self.advance(grid, at, heading[:, t].clip(0, 3))
            possible &= rewards[:, t] == reward
            earned += reward
        return {"accuracy": possible & (earned == target), "possible": possible}

    def tiles(self, verdict, tokens_NT, reference_NT) -> list[pictures.Tile]:
        """Returns the grids of each episode in a row, and below them its steps."""
        c, palette = self.config, np.array([colour for _, colour, _ in CELLS])
        shown = []
        for row, tokens_T in enumerate(tokens_NT):
            steps = tokens_T[1:].reshape(c.length, -1)
            cells = np.minimum(steps[:, : self.cells], len(CELLS) - 1)
            grids = palette[cells].reshape(c.length, c.height, c.width, 3)
            right = verdict["accuracy"][row]
            made = pictures.strip([pictures.grid(grid, right) for grid in grids])
            total = self.words[reference_NT[row, 0]]
            note = f"reward {total[1:]}: {self.text(steps[:, self.cells :].ravel())}"
            made.notes = [(note, (0, 0, 0))]
            shown.append(made)
        return shown
