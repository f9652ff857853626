"""Config fields of the tasks, and the list of tasks."""

from __future__ import annotations

import dataclasses

from jaxgpt.config import MAX_SEED, OptionGroup, option

# {name: module:class in this folder}. By name: this module may not import JAX.
TASKS = {
    "maze": "maze:Maze",
    "product": "toys:Product",
    "step": "toys:Step",
    "permutation": "toys:Permutation",
    "vertical": "vertical:Vertical",
    "snake": "grids:Snake",
    "mixing": "grids:Mixing",
    "greed": "grids:Greed",
    "stack": "programs:Stack",
    "expr": "programs:Expression",
    "rpl": "programs:RPL",
    "addition": "words:Addition",
    "twotargets": "words:TwoTargets",
    "byheart": "words:ByHeart",
    "learnop": "words:LearnOperator",
    "guessop": "words:GuessOperator",
    "memory": "words:Memory",
    "picoclvr": "images:Picoclvr",
    "mnist": "images:MNIST",
    "file": "lines:Lines",
}


@dataclasses.dataclass(frozen=True)
class TaskConfig(OptionGroup):
    """What a sigma-task learns; each task checks what it uses of these."""

    name: str = option(
        "maze", "the task; see docs/sigma-tasks.md", choices=tuple(TASKS)
    )
    train_sequences: int = option(100000, "sequences drawn to train on", min=1)
    val_sequences: int = option(10000, "sequences drawn for validation", min=1)
    data_seed: int = option(0, "seed of both", min=0, max=MAX_SEED)
    path: str = option(
        "",
        "file: two texts, TRAIN,VAL; mnist: a folder of IDX files; vertical: a CSV "
        "file of flights, empty to draw them",
    )
    learn: str = option(
        "rest",
        "what the loss counts: what follows the prompt; or all, the prompt shuffled "
        "too, as the original does",
        choices=("rest", "all"),
    )
    strategies: str = option(
        "left-to-right,shuffled,fractal,burst,exact-burst",
        "ways to generate at an evaluation; empty generates nothing",
    )
    eval_sequences: int = option(
        64, "sequences generated and judged in each way, per split and evaluation",
        min=1,
    )  # fmt: skip
    height: int = option(13, "rows of the grid: maze, snake, picoclvr, ...", min=2)
    width: int = option(21, "columns of the grid", min=2)
    walls: int = option(15, "walls in the grid: maze, greed", min=0)
    min_distance: int = option(
        10, "maze: minimum of rows plus columns from start to goal", min=1
    )
    length: int = option(
        100,
        "length of a sequence: tokens of the toy distributions, steps of stack and "
        "snake, properties of picoclvr, instructions of rpl, places of guessop, ...",
        min=1,
    )
    probability: float = option(0.1, "product: probability of a one", min=0)
    step_length: int = option(10, "step: ones in a row", min=1)
    colors: int = option(5, "snake, picoclvr: colours", min=1)
    digits: int = option(
        3, "digits of a number: stack, addition, learnop; of the source: guessop", min=1
    )
