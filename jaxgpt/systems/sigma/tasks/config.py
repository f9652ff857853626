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
    "memory": "words:Recall",
    "qmlp": "networks:QuantizedMLP",
    "grid": "scenes:Scene",
    "picoclvr": "images:Picoclvr",
    "mnist": "images:MNIST",
    "file": "lines:Lines",
}


@dataclasses.dataclass(frozen=True)
class TaskConfig(OptionGroup):
    """What a sigma-task learns; each task checks the fields that it uses."""

    name: str = option("maze", "see docs/sigma-tasks.md", choices=TASKS)
    train_sequences: int = option(100000, "sequences drawn to train on", min=1)
    val_sequences: int = option(10000, "sequences drawn for validation", min=1)
    data_seed: int = option(0, "seed of both", min=0, max=MAX_SEED)
    path: str = option(
        "", "file: TRAIN,VAL texts; mnist: folder of IDX files; vertical: CSV, or empty"
    )
    # The original learns all, with the prompt shuffled too.
    learn: str = option(
        "rest", "what the loss counts: without or with prompts", choices=("rest", "all")
    )
    strategies: str = option(
        "left-to-right,shuffled,fractal,burst,exact-burst",
        "ways to generate at an evaluation; empty generates nothing",
    )
    eval_sequences: int = option(
        64, "sequences generated in each way, per split and evaluation", min=1
    )
    height: int = option(13, "rows of the grid: maze, snake, grid, ...", min=2)
    width: int = option(21, "columns of the grid", min=2)
    walls: int = option(15, "walls in the grid: maze, greed", min=0)
    min_distance: int = option(10, "maze: rows plus columns to the goal", min=1)
    length: int = option(
        100,
        "toys: tokens; stack, snake, greed: steps; picoclvr: properties; grid: "
        "statements; qmlp: points; rpl: instructions; guessop: places; ...",
        min=1,
    )
    probability: float = option(0.1, "product: probability of a one", min=0)
    step_length: int = option(10, "step: ones in a row", min=1)
    stacks: int = option(3, "stack: how many stacks", min=1)
    variables: int = option(5, "expr: how many variables", min=1, max=26)
    runs: int = option(5, "rpl: stacks that a program is shown on", min=1)
    inputs: int = option(3, "rpl: numbers on a stack before the program", min=1)
    largest_number: int = option(9, "rpl, expr: largest number to begin with", min=0)
    largest_result: int = option(99, "expr: largest value of a variable", min=0)
    unseen: bool = option(
        False,
        "stack, picoclvr: validation has what training never shows, numbers or where "
        "green is",
    )
    colors: int = option(5, "snake, grid, picoclvr: colours", min=1)
    hidden: int = option(4, "qmlp: hidden units of the network", min=1, max=64)
    class_conditional: bool = option(False, "mnist: the class of an image is given")
    digits: int = option(3, "of a number; guessop: of the source", min=1)
