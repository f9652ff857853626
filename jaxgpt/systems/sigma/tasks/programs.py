"""Programs: stacks, the values of expressions, and a program from what it does."""

from __future__ import annotations

import copy
import string
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.systems.sigma.tasks.base import Judgement, Task
from jaxgpt.systems.sigma.tasks.words import LONGEST_NUMBER, digits_of


class Stack(Task):
    """Numbers of `task.digits` digits pushed to stacks and popped from them.

    What is pushed is given, and what is popped generated. There are `task.stacks`
    stacks and `task.length` operations. With `task.unseen` a quarter of the numbers is
    only in validation, where there are no others.
    """

    shows = "the numbers popped from stacks"
    rule = "every number popped"
    can_be_unseen = True
    numbers: np.ndarray | None = None  # That are pushed, where not all are.

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        c = self.config
        self.check(c.digits <= LONGEST_NUMBER, "digits", f"<= {LONGEST_NUMBER}")
        if c.unseen:
            self.check(c.digits <= 4, "digits", "<= 4 with task.unseen")
        self.length = c.length * (1 + c.digits)
        stacks = range(1, c.stacks + 1)
        operations = [f"{name}{n}" for n in stacks for name in ("push", "pop")]
        self.words = [*operations, *map(str, range(10))]

    def for_split(self, split: str) -> Task:
        """See `Task.for_split`."""
        if not self.config.unseen:
            return self
        made = copy.copy(self)
        numbers = self.constants().permutation(10**self.config.digits)
        held_out = -(-len(numbers) // 4)
        made.numbers = numbers[held_out:] if split == "train" else numbers[:held_out]
        return made

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws operations; an empty stack is always pushed to."""
        steps, digits, stacks = (self.config[k] for k in ("length", "digits", "stacks"))
        stack = np.zeros((count, stacks, steps + 1), np.int64)
        height = np.zeros((count, stacks), np.int64)
        row, parts = np.arange(count), []
        for _ in range(steps):
            which = rng.integers(0, stacks, count)
            pops = (rng.random(count) < 0.5) & (height[row, which] > 0)
            if self.numbers is None:
                pushed = rng.integers(0, 10**digits, count)
            else:
                pushed = rng.choice(self.numbers, count)
            top = stack[row, which, height[row, which] - 1]
            value = np.where(pops, top, pushed)
            stack[row, which, height[row, which]] = pushed
            height[row, which] += np.where(pops, -1, 1)
            operation = 2 * which + pops
            parts += [operation[:, None], 2 * stacks + digits_of(value, digits)]
        return np.concatenate(parts, 1)

    def prompt_mask(self, tokens_NT: np.ndarray) -> np.ndarray:
        """Asks for the digits after "pop", whose tokens are odd."""
        steps = tokens_NT.reshape(len(tokens_NT), self.config.length, -1)
        popped = np.broadcast_to(steps[..., :1] % 2 == 1, steps.shape).copy()
        popped[..., 0] = False
        return ~popped.reshape(tokens_NT.shape)


class Expression(Task):
    """Assignments to `task.variables` variables, then what each holds in the end.

    A program has `task.length` characters or a few more; half of them are shorter. An
    expression has no more than that, and 20 at most. Numbers in it are no larger than
    `task.largest_number`, values no larger than `task.largest_result`.
    """

    shows = "the values of variables after a program"
    rule = "every value"
    separator, marker = "", " "

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        c = self.config
        rule = f"<= task.largest_result {c.largest_result}"
        self.check(c.largest_number <= c.largest_result, "largest_number", rule)
        self.variables = string.ascii_uppercase[: c.variables]
        self.words = f"0123456789+*()=;: #{self.variables}"
        self.budget = min(20, c.length)
        self.longest = c.length + self.budget + 4
        result = len(f"A:{c.largest_result};")
        self.length = self.longest + 1 + result * c.variables

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws programs until there are enough whose values are small enough."""
        most, largest = self.config.length, self.config.largest_result
        texts: list[str] = []
        while len(texts) < count:
            length = min(most, int(rng.integers(1, 2 * most + 1)))
            program, values = self.program(rng, length)
            if len(program) <= self.longest and max(values.values()) <= largest:
                results = "".join(f"{v}:{values[v]};" for v in sorted(values))
                texts.append(f"{program} {results}".ljust(self.length, "#"))
        return np.array([[self.codes[c] for c in text] for text in texts])

    def program(
        self, rng: np.random.Generator, length: int
    ) -> tuple[str, dict[str, int]]:
        """Returns assignments and the values of the variables after them."""
        text = ""
        values: dict[str, int] = {}
        while len(text) < length:
            name = self.variables[rng.integers(len(self.variables))]
            expression, value, _ = self.expression(rng, values, self.budget)
            text += f"{name}={expression};"
            values[name] = value
        return text, values

    def expression(
        self, rng: np.random.Generator, values: dict[str, int], budget: int
    ) -> tuple[str, int, bool]:
        """Returns an expression, its value, and whether it is a sum."""
        if budget <= 5 or rng.random() < 1 / 3:
            if values and rng.random() < 0.5:
                name = sorted(values)[rng.integers(len(values))]
                return name, values[name], False
            number = int(rng.integers(self.config.largest_number + 1))
            return str(number), number, False
        left_budget = int(rng.integers(2, budget - 3))
        left = self.expression(rng, values, left_budget)
        right = self.expression(rng, values, budget - left_budget - 1)
        if rng.random() < 0.5:
            return f"{left[0]}+{right[0]}", left[1] + right[1], True
        factors = [f"({e})" if is_sum else e for e, _, is_sum in (left, right)]
        return "*".join(factors), left[1] * right[1], False


# {name: (numbers taken from the stack, what is put there instead)}.
OPERATIONS: dict[str, tuple[int, Callable[..., list[int]]]] = {
    "add": (2, lambda a, b: [a + b]),
    "min": (2, lambda a, b: [min(a, b)]),
    "max": (2, lambda a, b: [max(a, b)]),
    "swp": (2, lambda a, b: [b, a]),
    "rep": (2, lambda a, b: [a] * b),
    "dup": (1, lambda a: [a, a]),
    "del": (1, lambda a: []),
}


def run(program: list[str], stack: list[int]) -> list[int]:
    """Returns a stack after a program; without enough numbers an operation is void."""
    for name in program:
        takes, operation = OPERATIONS[name]
        if len(stack) >= takes:
            stack = [*stack[:-takes], *operation(*stack[-takes:])]
    return stack


class RPL(Task):
    """Stacks before and after a program, then a program that does this.

    It has at most `task.length` instructions. There are `task.runs` stacks, with
    `task.inputs` numbers of at most `task.largest_number` each.
    """

    shows = "a program, given stacks before and after it"
    rule = "the program does that on every stack"
    outputs = 6
    # Longer ones hardly ever leave stacks that are short and numbers that are small.
    longest = 12
    largest = 39
    words = (
        *map(str, range(largest + 1)),
        *OPERATIONS,
        *("<in>", "<out>", "<prg>", "<end>", "<nul>"),
    )
    marker = "<prg>"

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        c = self.config
        self.check(c.length <= self.longest, "length", f"<= {self.longest}")
        self.check(c.inputs <= self.outputs, "inputs", f"<= {self.outputs}")
        rule = f"<= {self.largest}"
        self.check(c.largest_number <= self.largest, "largest_number", rule)
        self.length = c.runs * (2 + c.inputs + self.outputs) + 1 + c.length + 1

    def sample_tokens(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws programs, half of them as long as can be, until there are enough."""
        c, names = self.config, list(OPERATIONS)
        most = c.length
        rows: list[list[int]] = []
        while len(rows) < count:
            size = min(most, int(rng.integers(1, 2 * most)))
            program = [names[i] for i in rng.integers(0, len(names), size)]
            stacks = rng.integers(0, c.largest_number + 1, (c.runs, c.inputs)).tolist()
            results = [run(program, stack) for stack in stacks]
            if all(
                1 <= len(result) <= self.outputs and max(result) <= self.largest
                for result in results
            ):
                rows.append(self.encode(stacks, results, program))
        return np.array(rows)

    def encode(self, stacks, results, program) -> list[int]:
        """Returns a problem and its program as tokens, filled up at the end."""
        words: list[str] = []
        for stack, result in zip(stacks, results, strict=True):
            words += ["<in>", *map(str, stack), "<out>", *map(str, result)]
        words += ["<prg>", *program, "<end>"]
        words += ["<nul>"] * (self.length - len(words))
        return [self.codes[word] for word in words]

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Is the program right on all stacks; and the share it is right on."""
        rows = zip(tokens_NT, reference_NT, strict=True)
        share_N = np.array([self.share_right(*row) for row in rows])
        return {"accuracy": share_N == 1, "stacks_right": share_N}

    def share_right(self, tokens_T: np.ndarray, reference_T: np.ndarray) -> float:
        """Returns the share of a problem's stacks that a generated program is right on.

        Invalid or unfinished programs are right on none.
        """
        problem = self.text(reference_T).partition("<prg>")[0].split("<in>")[1:]
        program, end, _ = self.text(tokens_T).partition("<prg>")[2].partition("<end>")
        names = program.split()
        if not end or not OPERATIONS.keys() >= set(names):
            return 0.0
        num_right = 0
        for pair in problem:
            before, after = (list(map(int, s.split())) for s in pair.split("<out>"))
            num_right += run(names, before) == after
        return num_right / self.config.runs
