"""The requests of a browser, checked before they reach a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxgpt.errors import UserError, require, shorten
from jaxgpt.sampling.options import SamplingOptions, check_ranges

MAX_BYTES = 1 << 18  # Of a request.
MAX_CHARACTERS = 20_000
MAX_TOKENS = 1 << 14
MAX_SAMPLES = 8
MAX_ORDERS = 32


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a text: characters, tokens that are fixed, or a gap of some tokens."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    gap: int = 0


@dataclasses.dataclass(frozen=True)
class Fill:
    """Fills the gaps of a text."""

    pieces: tuple[Piece, ...]
    num_samples: int
    seed: int
    sampling: SamplingOptions


@dataclasses.dataclass(frozen=True)
class Score:
    """Scores each token of a text."""

    text: str
    order: str
    num_orders: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Problem:
    """Draws a problem of a task."""

    seed: int


@dataclasses.dataclass(frozen=True)
class Solve:
    """Solves a problem of a task: token ids, and which of them are given."""

    tokens: tuple[int, ...]
    known: tuple[bool, ...]
    seed: int
    sampling: SamplingOptions


@dataclasses.dataclass(frozen=True)
class Remember:
    """Reads a text into a memory."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True)
class Forget:
    """Removes a text from a memory."""

    name: str


@dataclasses.dataclass(frozen=True)
class Sequence:
    """Predicts the tokens of a graph's sequence; without tokens, of a new one."""

    tokens: tuple[int, ...]
    seed: int


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A request without fields."""


Request = Nothing | Fill | Score | Problem | Solve | Remember | Forget | Sequence


def parse(action: str, body: Any) -> Request:
    """Returns the request of a browser.

    Args:
      action: a key of `ACTIONS`.
      body: JSON.

    Raises:
      UserError: for a field that is missing, unknown, of a wrong type or out of range.
    """
    require(isinstance(body, dict), "the request", "a JSON object", body)
    fields = _Fields(body)
    request = ACTIONS[action](fields)
    fields.all_read()
    return request


class _Fields:
    """Reads the fields of a JSON object, each once."""

    def __init__(self, body: Mapping[str, Any]):
        self.left = dict(body)

    def all_read(self) -> None:
        if self.left:
            raise UserError(f"unknown field {shorten(repr(next(iter(self.left))), 60)}")

    def take(self, name: str, default: Any) -> Any:
        return self.left.pop(name, default)

    def integer(self, name: str, default: int, least: int, most: int) -> int:
        value = self.take(name, default)
        fits = isinstance(value, int) and not isinstance(value, bool)
        fits = fits and least <= value <= most
        require(fits, name, f"an integer in [{least}, {most}]", value)
        return value

    def text(self, name: str, most: int = MAX_CHARACTERS) -> str:
        return _text(name, self.take(name, ""), most)

    def items(self, name: str) -> list[Any]:
        value = self.take(name, [])
        fits = isinstance(value, list) and len(value) <= MAX_TOKENS
        require(fits, name, f"a list of at most {MAX_TOKENS} items", value)
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        value = self.items(name)
        fits = all(type(item) is int and 0 <= item < 1 << 31 for item in value)
        require(fits, name, "token ids", value)
        return tuple(value)

    def booleans(self, name: str) -> tuple[bool, ...]:
        value = self.items(name)
        fits = all(type(item) is bool for item in value)
        require(fits, name, "true or false for each token", value)
        return tuple(value)

    def seed(self) -> int:
        return self.integer("seed", 0, 0, (1 << 31) - 1)

    def sampling(self) -> SamplingOptions:
        options = self.take("sampling", {})
        known = SamplingOptions.__annotations__
        fits = isinstance(options, dict) and not options.keys() - known.keys()
        require(fits, "sampling", f"an object of {', '.join(known)}", options)
        for name in ("sampler", "order"):
            _text(name, options.get(name, ""), 1000)
        check_ranges(options)
        return options  # type: ignore[return-value]


def _text(name: str, value: Any, most: int) -> str:
    fits = isinstance(value, str) and len(value) <= most
    shown = f"{len(value)} characters" if isinstance(value, str) else value
    require(fits, name, f"a text of at most {most} characters", shown)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name} holds half of a surrogate pair") from None
    return value


def _piece(value: Any) -> Piece:
    rule = '{"text": ...}, {"tokens": [...]} or {"gap": N}'
    require(isinstance(value, dict) and len(value) == 1, "a piece", rule, value)
    fields = _Fields(value)
    if "text" in value:
        piece = Piece(text=fields.text("text"))
    elif "tokens" in value:
        piece = Piece(tokens=fields.integers("tokens"))
    else:
        piece = Piece(gap=fields.integer("gap", 0, 1, MAX_TOKENS))
    fields.all_read()
    return piece


ACTIONS: dict[str, Callable[[_Fields], Request]] = {
    "describe": lambda fields: Nothing(),
    "memories": lambda fields: Nothing(),
    "fill": lambda fields: Fill(
        tuple(map(_piece, fields.items("pieces"))),
        fields.integer("num_samples", 1, 1, MAX_SAMPLES),
        fields.seed(),
        fields.sampling(),
    ),
    "score": lambda fields: Score(
        fields.text("text"),
        fields.text("order", 100),
        fields.integer("num_orders", 8, 1, MAX_ORDERS),
        fields.seed(),
    ),
    "problem": lambda fields: Problem(fields.seed()),
    "solve": lambda fields: Solve(
        fields.integers("tokens"),
        fields.booleans("known"),
        fields.seed(),
        fields.sampling(),
    ),
    "remember": lambda fields: Remember(fields.text("name", 200), fields.text("text")),
    "forget": lambda fields: Forget(fields.text("name", 200)),
    "sequence": lambda fields: Sequence(fields.integers("tokens"), fields.seed()),
}
