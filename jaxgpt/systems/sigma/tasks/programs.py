"""Programs: what stacks give back, what expressions are worth, what a program is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from jaxgpt.errors import UserError
from jaxgpt.systems.sigma.tasks.base import CharacterTask, Judgement, Task, after
from jaxgpt.systems.sigma.tasks.words import digits_of

STACKS = 3


class Stack(Task):
    """Numbers of `task.digits` digits pushed to three stacks and popped from them.

    What is pushed is given; what is popped is asked for. `task.length` is the number
    of operations.
    """

    vocab_size = 2 * STACKS + 10

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.length = self.config.length * (1 + self.config.digits)

    def generate(self, rng: np.random.Generator, count: int, split: str):
        """Draws operations; an empty stack is always pushed to."""
        del split
        steps, digits = self.config.length, self.config.digits
        stack = np.zeros((count, STACKS, steps + 1), np.int64)
        height = np.zeros((count, STACKS), np.int64)
        row, parts, prompt_mask = np.arange(count), [], []
        for _ in range(steps):
            which = rng.integers(0, STACKS, count)
            pops = (rng.random(count) < 0.5) & (height[row, which] > 0)
            pushed = rng.integers(0, 10**digits, count)
            top = stack[row, which, height[row, which] - 1]
            value = np.where(pops, top, pushed)
            stack[row, which, height[row, which]] = pushed
            height[row, which] += np.where(pops, -1, 1)
            parts += [(2 * which + pops)[:, None]]
            parts += [2 * STACKS + digits_of(value, digits)]
            prompt_mask += [np.ones((count, 1), bool)]
            prompt_mask += [np.broadcast_to(~pops[:, None], (count, digits))]
        return np.concatenate(parts, 1), np.concatenate(prompt_mask, 1)

    def word(self, token: int) -> str:
        """Returns push or pop, with the number of the stack, or a digit."""
        if token >= 2 * STACKS:
            return str(token - 2 * STACKS)
        return f"{('push', 'pop')[token % 2]}{token // 2 + 1}"


class Expression(CharacterTask):
    """Assignments to five variables, then, asked for, what each holds in the end.

    A program has `task.length` characters or a few more; half of them are shorter. An
    expression has no more than that, and 20 at most.
    """

    variables = "ABCDE"
    alphabet = "0123456789+*()=;: #ABCDE"
    largest = 99

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.budget = min(20, self.config.length)
        self.longest = self.config.length + self.budget + 4
        self.length = self.longest + 1 + 5 * len(self.variables)

    def generate(self, rng: np.random.Generator, count: int, split: str):
        """Draws programs until there are enough whose values have two digits."""
        del split
        texts: list[str] = []
        while len(texts) < count:
            wanted = min(
                self.config.length, int(rng.integers(1, 2 * self.config.length + 1))
            )
            program, values = self.program(rng, wanted)
            if len(program) <= self.longest and max(values.values()) <= self.largest:
                results = "".join(f"{v}:{values[v]};" for v in sorted(values))
                texts.append(f"{program} {results}".ljust(self.length, "#"))
        codes = {character: i for i, character in enumerate(self.alphabet)}
        tokens_NT = np.array([[codes[c] for c in text] for text in texts])
        return tokens_NT, ~after(tokens_NT, codes[" "])

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
            number = int(rng.integers(10))
            return str(number), number, False
        left_budget = int(rng.integers(2, budget - 3))
        left = self.expression(rng, values, left_budget)
        right = self.expression(rng, values, budget - left_budget - 1)
        if rng.random() < 0.5:
            return f"{left[0]}+{right[0]}", left[1] + right[1], True
        factors = [f"({e})" if is_sum else e for e, _, is_sum in (left, right)]
        return "*".join(factors), left[1] * right[1], False


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
    """Returns a stack after a program; what finds too few numbers does nothing."""
    for name in program:
        takes, operation = OPERATIONS[name]
        if len(stack) >= takes:
            stack = [*stack[:-takes], *operation(*stack[-takes:])]
    return stack


class RPL(Task):
    """Five stacks before and after a program; asked for is a program that does this.

    It has at most `task.length` instructions.
    """

    runs, inputs, outputs = 5, 3, 6
    # Longer ones hardly ever leave stacks that are short and numbers that are small.
    longest = 12
    largest = 39
    words = (
        *map(str, range(largest + 1)),
        *OPERATIONS,
        *("<in>", "<out>", "<prg>", "<end>", "<nul>"),
    )
    vocab_size = len(words)

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        if self.config.length > self.longest:
            raise UserError(
                f"task.length is at most {self.longest} for rpl: not "
                f"{self.config.length}"
            )
        stacks = self.runs * (2 + self.inputs + self.outputs)
        self.length = stacks + 1 + self.config.length + 1

    def generate(self, rng: np.random.Generator, count: int, split: str):
        """Draws programs, half of them as long as can be, until enough will do."""
        del split
        most = self.config.length
        rows: list[list[int]] = []
        while len(rows) < count:
            size = min(most, int(rng.integers(1, 2 * most)))
            names = list(OPERATIONS)
            program = [names[i] for i in rng.integers(0, len(names), size)]
            stacks = rng.integers(0, 10, (self.runs, self.inputs)).tolist()
            results = [run(program, stack) for stack in stacks]
            if all(
                1 <= len(result) <= self.outputs and max(result) <= self.largest
                for result in results
            ):
                rows.append(self.encode(stacks, results, program))
        tokens_NT = np.array(rows)
        return tokens_NT, ~after(tokens_NT, self.words.index("<prg>"))

    def encode(self, stacks, results, program) -> list[int]:
        """Returns a problem and its program as tokens, filled up at the end."""
        words: list[str] = []
        for stack, result in zip(stacks, results, strict=True):
            words += ["<in>", *map(str, stack), "<out>", *map(str, result)]
        words += ["<prg>", *program, "<end>"]
        words += ["<nul>"] * (self.length - len(words))
        return [self.words.index(word) for word in words]

    def judge(self, tokens_NT, reference_NT, prompt_mask_NT) -> Judgement:
        """Does the program do it on all stacks; and the share of stacks it does on."""
        del prompt_mask_NT
        shares = [
            self.share_done(tokens, reference)
            for tokens, reference in zip(tokens_NT, reference_NT, strict=True)
        ]
        share_N = np.array(shares)
        return {"accuracy": share_N == 1, "stacks_right": share_N}

    def share_done(self, tokens_T: np.ndarray, reference_T: np.ndarray) -> float:
        """Returns on what share of a problem's stacks a generated program does it."""
        problem = self.text(reference_T).partition("<prg>")[0].split("<in>")[1:]
        program, end, _ = self.text(tokens_T).partition("<prg>")[2].partition("<end>")
        names = program.split()
        if not end or not OPERATIONS.keys() >= set(names):
            return 0.0
        done = 0
        for pair in problem:
            before, after_ = (
                [int(word) for word in part.split()] for part in pair.split("<out>")
            )
            done += run(names, before) == after_
        return done / self.runs

    def word(self, token: int) -> str:
        """Returns a number, an instruction or a marker."""
        return self.words[token]
