"""Walks and changes on a grid: snake, mixing, greed."""

from __future__ import annotations

import pathlib

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.errors import UserError
from jaxgpt.systems.sigma.tasks import pictures
from jaxgpt.systems.sigma.tasks.base import Judgement, Task

# Rows and columns of a step north, east, south, west.
STEPS = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
COMPASS = "NESW"


class Snake(Task):
    """A walk over a coloured grid: a colour and a direction, `task.length` times.

    The first half is given, and all directions; asked for are the later colours of
    cells that were seen in the first half.
    """

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        c = self.config
        self.length = 2 * c.length
        self.vocab_size = 4 + c.colors
        if c.length < 4:
            raise UserError(f"task.length is at least 4 for snake: not {c.length}")

    def generate(self, rng: np.random.Generator, count: int, split: str):
        """Draws walks that never turn back; ahead is twice as likely as aside."""
        del split
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
            # Back only where nothing else is left: in a grid of one row.
            weight = inside * np.array([1, 2, 1, 1e-9])
            choice = (rng.random(weight.shape) * weight).argmax(1)
            heading, at = ways[row, choice], places[row, choice]
            tokens_NT[:, 2 * t + 1] = heading
        return tokens_NT, prompt_mask_NT

    def word(self, token: int) -> str:
        """Returns a direction's letter or a colour's number."""
        return COMPASS[token] if token < 4 else str(token - 3)


class Mixing(Task):
    """A grid of numbers with a row and a column blanked out, mixed move by move.

    A move turns a row or a column by one; `task.length` grids in all. Nothing is
    given: the judge asks whether the first is a beginning and all moves are moves.
    """

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        c = self.config
        self.cells = c.height * c.width
        self.length = self.cells * c.length
        self.vocab_size = self.cells + 1

    def generate(self, rng: np.random.Generator, count: int, split: str):
        """Draws what is blanked out, and every move."""
        del split
        c, row = self.config, np.arange(count)
        grid = np.broadcast_to(np.arange(self.cells), (count, self.cells))
        grid = grid.reshape(count, c.height, c.width).copy()
        grid[row, rng.integers(0, c.height, count)] = self.cells
        grid[row, :, rng.integers(0, c.width, count)] = self.cells
        grids = [grid]
        for _ in range(c.length - 1):
            every = self.moves(grid)
            grid = every[rng.integers(0, len(every), count), row]
            grids.append(grid)
        tokens_NT = np.stack(grids, 1).reshape(count, self.length)
        return tokens_NT, np.zeros(tokens_NT.shape, bool)

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
        del reference_NT, prompt_mask_NT
        c, N = self.config, len(tokens_NT)
        grids = tokens_NT.reshape(N, c.length, c.height, c.width)
        blank = grids[:, 0] == self.cells
        rows, columns = blank.all(2), blank.all(1)
        plain = np.arange(self.cells).reshape(c.height, c.width)
        begins = (rows.sum(1) == 1) & (columns.sum(1) == 1)
        cross = rows[:, :, None] | columns[:, None]
        begins &= (np.where(cross, self.cells, plain) == grids[:, 0]).all((1, 2))
        good = np.zeros((N, 0), bool)
        for t in range(c.length - 1):
            same = (self.moves(grids[:, t]) == grids[:, t + 1]).all((2, 3)).any(0)
            good = np.concatenate([good, same[:, None]], 1)
        moves = good.mean(1) if c.length > 1 else np.ones(N)
        return {"accuracy": begins & good.all(1), "begins": begins, "moves": moves}

    def word(self, token: int) -> str:
        """Returns a number, or a point for what is blanked out."""
        return "." if token == self.cells else str(token)

    def draw(self, path: pathlib.Path, tokens_NT, reference_NT, prompt_mask_NT) -> None:
        """Draws the grids of each sequence in a row, a shade a number, blanks white."""
        c = self.config
        right = self.judge(tokens_NT, reference_NT, prompt_mask_NT)["accuracy"]
        shade = np.linspace(0, 1, self.cells)[:, None]
        palette = (1 - shade) * (40, 20, 90) + shade * (250, 190, 60)
        grids = tokens_NT.reshape(-1, c.length, c.height, c.width)
        pictures.episodes(path, grids, np.vstack([palette, (255, 255, 255)]), right)


FLOOR, WALL, COIN, AGENT = range(4)
# The last one is that of tokens that are no cell.
CELLS = np.array(
    [(255, 255, 255), (90, 90, 90), (240, 190, 40), (40, 90, 220), (220, 0, 0)]
)
REWARDS = 2


class Greed(Task):
    """An agent collects coins: the reward that is to be had, then the episode.

    The total reward comes first, then `task.length` times the grid, a step, and
    whether there was a coin. Given are the reward and the first grid; asked for is an
    episode that is possible and earns it. Coins: as many as `task.colors`.
    """

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        c = self.config
        self.cells = c.height * c.width
        self.length = 1 + c.length * (self.cells + 2)
        # Cells, directions, no reward and one, and the totals.
        self.first_total = 4 + 4 + REWARDS
        self.vocab_size = self.first_total + c.colors + 1
        if c.walls + c.colors + 1 > self.cells:
            raise UserError(
                f"task.walls {c.walls} and task.colors {c.colors} coins do not fit a "
                f"grid of {c.height} x {c.width}: lower one"
            )

    def generate(self, rng: np.random.Generator, count: int, split: str):
        """Draws worlds and random walks in them; into walls the agent does not go."""
        del split
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
        tokens_NT = np.concatenate([self.first_total + total[:, None], *parts], 1)
        prompt_mask_NT = np.zeros(tokens_NT.shape, bool)
        prompt_mask_NT[:, : 1 + self.cells] = True
        return tokens_NT, prompt_mask_NT

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
        """Is the episode possible, and does it earn what it must."""
        del prompt_mask_NT
        c, N = self.config, len(tokens_NT)
        wanted = reference_NT[:, 0] - self.first_total
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
        return {"accuracy": possible & (earned == wanted), "possible": possible}

    def word(self, token: int) -> str:
        """Returns a cell's sign, a direction, a reward or the total."""
        signs = [*".#$@", *COMPASS, "-", "+"]
        return signs[token] if token < len(signs) else f"={token - self.first_total}"

    def draw(self, path: pathlib.Path, tokens_NT, reference_NT, prompt_mask_NT) -> None:
        """Draws the grids of each episode in a row: walls grey, coins yellow."""
        c = self.config
        right = self.judge(tokens_NT, reference_NT, prompt_mask_NT)["accuracy"]
        steps = tokens_NT[:, 1:].reshape(len(tokens_NT), c.length, -1)
        grids = steps[..., : self.cells].reshape(-1, c.length, c.height, c.width)
        pictures.episodes(path, grids, CELLS, right)
