"""Mazes: a grid with walls, a start and a goal; the shortest path is to be drawn."""

from __future__ import annotations

import pathlib

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.errors import UserError
from jaxgpt.systems.sigma.tasks import pictures
from jaxgpt.systems.sigma.tasks.base import Judgement, Task

EMPTY, WALL, START, GOAL, PATH = range(5)
# Times the walls wanted that one is tried to be placed, before a maze starts over.
TRIES = 20
NO_PROGRESS = 50
FAR = np.int16(1 << 12)

GREY, RED, GREEN, BLUE = (128, 128, 128), (220, 0, 0), (0, 160, 0), (60, 120, 220)
ORANGE = (255, 160, 0)


class Maze(Task):
    """The maze, then the maze with its path: height x width tokens each.

    Walls are straight, begin and end on even cells, are three cells long or more and
    at most half the grid, and touch what stands at one cell at most: hence nothing is
    closed off.
    """

    vocab_size = 5

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        c = self.config
        self.height, self.width = h, w = c.height, c.width
        self.length = 2 * h * w
        if h % 2 == 0 or w % 2 == 0 or min(h, w) < 3:
            raise UserError(
                f"a maze of {h} x {w}: task.height and task.width are odd, 3 at least"
            )
        if c.min_distance > h + w - 6:
            raise UserError(
                f"task.min_distance {c.min_distance} does not fit a maze of {h} x {w}: "
                f"{h + w - 6} at most"
            )
        if c.walls > (h - 1) * (w - 1) // 8:
            raise UserError(
                f"task.walls {c.walls} do not fit a maze of {h} x {w}: "
                f"{(h - 1) * (w - 1) // 8} at most"
            )

    def generate(self, rng: np.random.Generator, count: int, split: str):
        """Draws mazes and, for each, one of its shortest paths."""
        del split
        found, parts = 0, []
        for _ in range(NO_PROGRESS):
            walls = self.draw_walls(rng, count)
            part = self.draw_problems(rng, walls)
            parts.append(part)
            found += len(part)
            if found >= count:
                tokens = np.concatenate(parts)[:count]
                return tokens, np.arange(self.length) < np.full(
                    (count, 1), self.length // 2
                )
        c = self.config
        raise UserError(
            f"hardly any maze of {self.height} x {self.width} has task.walls {c.walls} "
            f"and task.min_distance {c.min_distance}: lower one, or enlarge the grid"
        )

    def draw_walls(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Returns uint8 [N, H, W], N at most count: those that got all their walls."""
        h, w = self.height, self.width
        border = np.ones((h, w), np.uint8)
        border[1:-1, 1:-1] = EMPTY
        grid = np.broadcast_to(border.ravel(), (count, h * w)).copy()
        upright, flat = self._segments()
        missing = np.full(count, self.config.walls)
        for _ in range(TRIES * self.config.walls):
            rows = np.flatnonzero(missing)
            if not len(rows):
                break
            chosen = np.where(
                rng.random(len(rows)) < 0.5,
                rng.integers(0, len(upright), len(rows)),
                len(upright) + rng.integers(0, len(flat), len(rows)),
            )
            wall = np.concatenate([upright, flat])[chosen]
            fits = (grid[rows] & wall).sum(1) <= 1
            grid[rows[fits]] |= wall[fits]
            missing[rows[fits]] -= 1
        return grid[missing == 0].reshape(-1, h, w)

    def _segments(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns every wall that can be, upright and flat: uint8 [M, H W]."""

        def along(h, w):
            walls = []
            for at in range(0, w, 2):
                for start in range(0, h, 2):
                    for end in range(start + 2, h, 2):
                        if end - start <= h / 2:
                            wall = np.zeros((h, w), np.uint8)
                            wall[start : end + 1, at] = 1
                            walls.append(wall)
            # Of a grid too low for any, the one that never fits.
            return np.array(walls or [np.ones((h, w), np.uint8)])

        h, w = self.height, self.width
        upright, flat = along(h, w), along(w, h).swapaxes(1, 2)
        return upright.reshape(-1, h * w), flat.reshape(-1, h * w)

    def draw_problems(self, rng: np.random.Generator, walls: np.ndarray) -> np.ndarray:
        """Returns int8 tokens [M, T]: start, goal and path for those with room."""
        N, h, w = walls.shape
        flat = walls.reshape(N, h * w)
        start, goal = np.zeros(N, np.int64), np.zeros(N, np.int64)
        left = np.arange(N)
        for _ in range(NO_PROGRESS):
            cells = rng.integers(0, h * w, (2, len(left)))
            rows, columns = np.divmod(cells, w)
            distance = abs(rows[0] - rows[1]) + abs(columns[0] - columns[1])
            fits = distance >= self.config.min_distance
            fits &= (flat[left, cells[0]] == EMPTY) & (flat[left, cells[1]] == EMPTY)
            start[left[fits]], goal[left[fits]] = cells[0, fits], cells[1, fits]
            left = left[~fits]
            if not len(left):
                break
        good = np.setdiff1d(np.arange(N), left)
        walls, start, goal = walls[good], start[good], goal[good]
        path = shortest_paths(rng, walls, start, goal)
        maze, index = walls.reshape(len(good), -1).astype(np.int8), np.arange(len(good))
        drawn = np.where(path, PATH, maze).astype(np.int8)
        for grid in (maze, drawn):
            grid[index, start], grid[index, goal] = START, GOAL
        return np.concatenate([maze, drawn], 1)

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Is the path valid (accuracy), and is it a shortest one (optimal)."""
        del reference_NT, prompt_mask_NT
        mazes, drawn = self.grids(tokens_NT)
        valid = valid_paths(mazes, drawn)
        steps = (drawn == PATH).sum((1, 2)) + 1
        shortest = distances(mazes == WALL, _places(mazes, GOAL))
        start = _places(mazes, START)
        needed = shortest.reshape(len(mazes), -1)[np.arange(len(mazes)), start]
        return {"accuracy": valid, "optimal": valid & (steps == needed)}

    def grids(self, tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mazes and the mazes with their paths, [N, H, W] each."""
        both = tokens_NT.reshape(-1, 2, self.height, self.width)
        return both[:, 0], both[:, 1]

    def text(self, tokens_T: np.ndarray) -> str:
        """Returns the grid with its path, # for walls."""
        _, drawn = self.grids(tokens_T[None])
        signs = np.array(list(" #SG·"))
        return "\n".join("".join(row) for row in signs[drawn[0]])

    def draw(self, path: pathlib.Path, tokens_NT, reference_NT, prompt_mask_NT) -> None:
        """Draws targets (hollow) and paths: blue in a green frame where optimal.

        Valid but longer: orange frame; wrong: red, and cells that should not have been
        touched too.
        """
        tokens_NT, reference_NT = (
            array[: pictures.SHOWN] for array in (tokens_NT, reference_NT)
        )
        verdict = self.judge(tokens_NT, reference_NT, prompt_mask_NT)
        mazes, drawn = self.grids(tokens_NT)
        _, target = self.grids(reference_NT)
        image = np.full((*mazes.shape, 3), 255)
        image[target == PATH] = (190, 215, 255)
        image[drawn == PATH] = BLUE
        image[mazes == WALL] = GREY
        spoilt = (drawn != mazes) & ((drawn != PATH) | (mazes != EMPTY))
        image[spoilt] = RED
        image[mazes == START], image[mazes == GOAL] = (0, 100, 0), (140, 0, 140)
        frames = np.array([RED, ORANGE, GREEN])[
            verdict["accuracy"].astype(int) + verdict["optimal"]
        ]
        pictures.tiles(path, image, frames)


def _places(mazes: np.ndarray, value: int) -> np.ndarray:
    """Returns the first cell [N] that has a value."""
    return (mazes.reshape(len(mazes), -1) == value).argmax(1)


def _neighbours(grid: np.ndarray, outside) -> list[np.ndarray]:
    """Returns what stands above, below, left and right of each cell of [N, H, W]."""
    padded = np.pad(grid, ((0, 0), (1, 1), (1, 1)), constant_values=outside)
    return [
        padded[:, :-2, 1:-1], padded[:, 2:, 1:-1],
        padded[:, 1:-1, :-2], padded[:, 1:-1, 2:],
    ]  # fmt: skip


def distances(walls: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Returns steps to the goal, int16 [N, H, W]; FAR in walls and out of reach."""
    N = len(walls)
    dist = np.full(walls.shape, FAR)
    dist.reshape(N, -1)[np.arange(N), goal] = 0
    blocked = walls.astype(bool)
    while True:
        near = np.minimum.reduce(_neighbours(dist, FAR)) + 1
        near[blocked] = FAR
        near = np.minimum(dist, np.minimum(near, FAR))
        if np.array_equal(near, dist):
            return dist
        dist = near


def shortest_paths(
    rng: np.random.Generator, walls: np.ndarray, start: np.ndarray, goal: np.ndarray
) -> np.ndarray:
    """Returns where a shortest path runs, bool [N, H W], its two ends left out.

    Among equally short ways each step takes one at random.
    """
    N, h, w = walls.shape
    dist = distances(walls, goal).reshape(N, h * w)
    path = np.zeros((N, h * w), bool)
    at, rows = start.copy(), np.arange(N)
    step = np.array([-w, w, -1, 1])
    while len(rows):
        # The border is all wall, so that a neighbour is never off the grid.
        ways = at[rows, None] + step
        near = dist[rows[:, None], ways]
        choice = np.where(near == near.min(1, keepdims=True), rng.random(near.shape), 2)
        at[rows] = ways[np.arange(len(rows)), choice.argmin(1)]
        rows = rows[at[rows] != goal[rows]]
        path[rows, at[rows]] = True
    return path


def valid_paths(mazes: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Returns which drawings [N, H, W] lead from start to goal, bool [N].

    The maze must be as it was, and the path one line without branches or loose ends.
    """
    path = drawn == PATH
    valid = np.where(path, EMPTY, drawn) == mazes
    valid_N = valid.reshape(len(mazes), -1).all(1)
    head, left = mazes == START, path
    while True:
        reach = np.logical_or.reduce(_neighbours(head, False))
        next_ = reach & left
        count = next_.sum((1, 2))
        valid_N &= count <= 1
        going = count > 0
        if not going.any():
            break
        head = np.where(going[:, None, None], next_, head)
        left = left & ~next_
    arrived = (reach & (mazes == GOAL)).any((1, 2))
    return valid_N & arrived & ~left.any((1, 2))
