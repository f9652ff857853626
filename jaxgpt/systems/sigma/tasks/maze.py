"""Mazes: a grid with walls, a start and a goal, then the same with a shortest path."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.systems.sigma.tasks import pictures
from jaxgpt.systems.sigma.tasks.base import Judgement, Task

EMPTY, WALL, START, GOAL, PATH = range(5)
# Attempts at placing a wall, for each wall of a maze, before it is dropped.
TRIES = 20
NO_PROGRESS = 50
FAR = np.int16(1 << 12)

WALL_GREY, PALE, BLUE = (110, 110, 110), (190, 215, 255), (60, 120, 220)
GREEN, PURPLE, ORANGE = (0, 100, 0), (140, 0, 140), (255, 160, 0)
LEGEND: tuple[pictures.Entry, ...] = (
    ("wall", WALL_GREY, True),
    ("S: start", GREEN, True),
    ("G: goal", PURPLE, True),
    ("generated path", BLUE, True),
    ("the known path where it differs", PALE, True),
    ("generated where it must not be", pictures.WRONG, True),
    ("right, a shortest path", pictures.RIGHT, False),
    ("right, longer", ORANGE, False),
    pictures.FRAMES[1],
)


class Maze(Task):
    """The maze, then the maze with its path: height x width tokens each.

    Walls are straight, begin and end on even cells, are three cells long or more and
    at most half the grid, and touch at most one cell of the walls before them, so that
    no cell is ever closed off.
    """

    shows = "a path through a given maze"
    rule = "one line from start to goal, and the maze as it was"
    legend = LEGEND
    words = " #SG·"

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        c = self.config
        h, w = self.shape = c.height, c.width
        self.prompt_length, self.length = h * w, 2 * h * w
        for field in ("height", "width"):
            self.check(c[field] % 2 == 1 and c[field] >= 3, field, "odd and >= 3")
        for field, most in (
            ("min_distance", h + w - 6),
            ("walls", (h - 1) * (w - 1) // 8),
        ):
            self.check(c[field] <= most, field, f"<= {most} in {h} x {w} cells")

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws mazes and, for each, one of its shortest paths."""
        c = self.config
        return self.collect(
            lambda: self.sample_problems(rng, self.sample_walls(rng, count)),
            count,
            NO_PROGRESS,
            f"hardly any maze of {c.height} x {c.width} has task.walls {c.walls} and "
            f"task.min_distance {c.min_distance}: lower one, or enlarge the grid",
        )

    def sample_walls(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Returns uint8 [N, H, W], N at most count: those that got all their walls."""
        h, w = self.shape
        border = np.ones((h, w), np.uint8)
        border[1:-1, 1:-1] = EMPTY
        grid = np.broadcast_to(border.ravel(), (count, h * w)).copy()
        upright = _segments(h, w).reshape(-1, h * w)
        flat = _segments(w, h).swapaxes(1, 2).reshape(-1, h * w)
        segments = np.concatenate([upright, flat])
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
            wall = segments[chosen]
            fits = (grid[rows] & wall).sum(1) <= 1
            grid[rows[fits]] |= wall[fits]
            missing[rows[fits]] -= 1
        return grid[missing == 0].reshape(-1, h, w)

    def sample_problems(
        self, rng: np.random.Generator, walls: np.ndarray
    ) -> np.ndarray:
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
        mazes, drawn = self.grids(tokens_NT)
        valid = valid_paths(mazes, drawn)
        steps = (drawn == PATH).sum((1, 2)) + 1
        shortest = distances(mazes == WALL, _places(mazes, GOAL))
        start = _places(mazes, START)
        needed = shortest.reshape(len(mazes), -1)[np.arange(len(mazes)), start]
        return {"accuracy": valid, "optimal": valid & (steps == needed)}

    def grids(self, tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mazes and the mazes with their paths, [N, H, W] each."""
        both = tokens_NT.reshape(-1, 2, *self.shape)
        return both[:, 0], both[:, 1]

    def text(self, tokens_T: np.ndarray) -> str:
        """Returns the grid with its path, # for walls."""
        _, drawn = self.grids(tokens_T[None])
        return "\n".join("".join(self.words[cell] for cell in row) for row in drawn[0])

    def tiles(self, verdict, tokens_NT, reference_NT) -> list[pictures.Tile]:
        """Returns the mazes with the generated paths."""
        mazes, drawn = self.grids(tokens_NT)
        _, target = self.grids(reference_NT)
        image = np.full((*mazes.shape, 3), 255)
        image[target == PATH] = PALE
        image[drawn == PATH] = BLUE
        image[mazes == WALL] = WALL_GREY
        image[mazes == START], image[mazes == GOAL] = GREEN, PURPLE
        image[(drawn != mazes) & ((drawn != PATH) | (mazes != EMPTY))] = pictures.WRONG
        letters = np.choose(mazes, ["", "", "S", "G", ""])
        shown = list(map(pictures.grid, image, verdict["accuracy"], letters))
        for tile, valid, optimal in zip(shown, *verdict.values(), strict=True):
            tile.frame = ORANGE if valid and not optimal else tile.frame
        return shown


def _segments(h: int, w: int) -> np.ndarray:
    """Returns every upright wall that can be in h x w cells: uint8 [M, h, w]."""
    walls = []
    for column in range(0, w, 2):
        for start in range(0, h, 2):
            for end in range(start + 2, min(h, start + h // 2 + 1), 2):
                wall = np.zeros((h, w), np.uint8)
                wall[start : end + 1, column] = 1
                walls.append(wall)
    # A grid too low for any gets one that never fits.
    return np.array(walls or [np.ones((h, w), np.uint8)])


def _places(mazes: np.ndarray, value: int) -> np.ndarray:
    """Returns the first cell [N] that has a value."""
    return (mazes.reshape(len(mazes), -1) == value).argmax(1)


def _neighbours(grid: np.ndarray, outside) -> list[np.ndarray]:
    """Returns the cells above, below, left and right of each cell of [N, H, W]."""
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
        step = reach & left
        count = step.sum((1, 2))
        valid_N &= count <= 1
        going = count > 0
        if not going.any():
            break
        head = np.where(going[:, None, None], step, head)
        left = left & ~step
    arrived = (reach & (mazes == GOAL)).any((1, 2))
    return valid_N & arrived & ~left.any((1, 2))
