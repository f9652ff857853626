"""What a user gives a model, as tokens: prompts, templates, texts to score."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgpt.data.dataset import Dataset
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import UserError, require
from jaxgpt.sampling import prompts
from jaxgpt.sampling.options import check_ranges
from jaxgpt.sampling.output import to_text
from jaxgpt.systems.base import System

# Tokens of a text that is longer than the block.
LONGEST = 1 << 16
TokenIds = Sequence[int] | np.ndarray
Texts = str | Sequence[str] | TokenIds


class Given(NamedTuple):
    """What a text begins with, or is written around.

    Attributes:
      tokens: int32 [T] or [N, T].
      known: bool [T] or [N, T], true where the token is given.
      note: for the user.
    """

    tokens: np.ndarray
    known: np.ndarray
    note: str = ""


class TokenRows(NamedTuple):
    """Texts as token ids.

    Attributes:
      tokens_NT: int32, zero past the end of a text.
      lengths_N: in tokens.
      single: whether it is one text that was not in a list.
    """

    tokens_NT: np.ndarray
    lengths_N: np.ndarray
    single: bool


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads text and token ids for one model.

    Attributes:
      system: of the model.
      tokenizer: None for a model of token ids alone.
      normalize: how the text it was trained on was, see `data.normalize`.
    """

    system: System
    tokenizer: Tokenizer | None
    normalize: str

    @property
    def longest(self) -> int:
        """The most tokens of a text, what is generated included."""
        system = self.system
        return LONGEST if system.goes_past_block else system.model_config.block_size

    def encode(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """See `Run.encode`."""
        require(isinstance(text, str), "a text", "a str", text)
        text = prompts.normalize(text, self.normalize)
        return prompts.encode(text, self.tokenizer, special_tokens)

    def prompt(
        self,
        prompt: str | TokenIds,
        max_new_tokens: int | None = None,
        special_tokens: bool = False,
    ) -> Given:
        """Returns a prompt and the room for what is to follow it; see `Run.generate`.

        Raises:
          UserError: if they do not fit the model.
        """
        check_ranges({"max_new_tokens": max_new_tokens})
        c = self.system.model_config
        if isinstance(prompt, str):
            ids = self.encode(prompt, special_tokens)
        else:
            ids = prompts.read_ids(prompt, c.vocab_size, "prompt", 1)
        room = self.system.cache_length(len(ids)) - len(ids)
        slides = self.system.goes_past_block
        if room < 0 and not (slides and max_new_tokens is not None):
            remedy = ": say how many tokens to add, --max_new_tokens=N"
            raise UserError(
                f"the prompt has {len(ids)} tokens, but only {c.block_size} fit the "
                f"model{remedy if slides else ''}"
            )
        new = room if max_new_tokens is None else max_new_tokens
        return self._started(*self._with_room(ids, new))

    def split(
        self, data: Dataset, split: str, count: int, new: int | None, seed: int
    ) -> Given:
        """Returns prompts [count, T], half a block each, and the room for what follows.

        Args:
          count: prompts, at places that the seed draws.
          new: tokens to follow; None fills the block.
          seed: of the places.

        Raises:
          UserError: if they do not fit the model, or the split does not exist.
        """
        block = self.system.model_config.block_size
        batch = data.batch_at(seed, split, 0, count, block // 2)
        # Segments of documents are dicts, with their place, and have one token more.
        ids_NT = batch["tokens"][:, : block // 2] if isinstance(batch, dict) else batch
        new = block - block // 2 if new is None else new
        return Given(*self._with_room(ids_NT, new))

    def _with_room(self, ids: np.ndarray, new: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (ids [T] or [N, T] and zeros after them, which are known [T])."""
        given = ids.shape[-1]
        total = given + new
        if total > self.longest:
            raise UserError(
                f"a prompt of {given} and --max_new_tokens={new} make {total} tokens, "
                f"but only {self.longest} fit the model"
            )
        room = np.zeros((*ids.shape[:-1], new), np.int32)
        return np.concatenate([ids, room], -1), np.arange(total) < given

    def template(self, template: str | TokenIds, special_tokens: bool = False) -> Given:
        """Returns a text with gaps; see `Run.infill`.

        Raises:
          UserError: if it does not fit the model.
        """
        c, longest = self.system.model_config, self.longest
        if not self.system.fills_past_block:
            longest = c.block_size
        if isinstance(template, str):
            template = prompts.normalize(template, self.normalize)
            return self._started(
                *prompts.read_template(
                    template,
                    self.tokenizer,
                    longest,
                    special_tokens,
                    self.system.max_gap,
                    self.system.end_of_gap,
                )
            )
        ids = prompts.read_ids(template, c.vocab_size, "template", least=-1)
        fits = ids.ndim == 1 and 1 <= len(ids) <= longest
        require(fits, "template", f"one text of 1 to {longest} tokens", ids.shape)
        return self._started(np.maximum(ids, 0), ids >= 0)

    def marked(
        self, text: str, special_tokens: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns a text with marked spans; see `Run.marked`."""
        require(isinstance(text, str), "a text", "a str", text)
        text = prompts.normalize(text, self.normalize)
        return prompts.read_marked(text, self.tokenizer, special_tokens)

    def _started(self, tokens_T: np.ndarray, known_T: np.ndarray) -> Given:
        """Returns them with at least one token known, if the model needs one."""
        if not len(tokens_T):
            raise UserError(
                "the text is empty and no token is to be generated: raise the length"
            )
        if known_T.any() or self.system.predicts_first:
            return Given(tokens_T, known_T)
        tokens_T[0], known_T[0] = prompts.start_token(self.tokenizer), True
        first = to_text(tokens_T[:1], self.tokenizer)
        note = f"this model needs a token to begin with: {first!r} is used"
        return Given(tokens_T, known_T, note)

    def texts(self, texts: Texts, same_length: bool) -> TokenRows:
        """Reads one or more texts, or token ids [T] or [N, T].

        Raises:
          UserError: for no text, one of less than 2 tokens or too many, ids that are
            not in the vocabulary, or lengths that differ and must not.
        """
        c = self.system.model_config
        longest = c.block_size if c.ends_with_block else LONGEST
        if single := isinstance(texts, str):
            rows = [self.encode(texts)]
        elif isinstance(texts, Sequence) and any(isinstance(t, str) for t in texts):
            rows = [self.encode(text) for text in texts]  # type: ignore[arg-type]
        else:
            ids = prompts.read_ids(texts, c.vocab_size, "texts")
            rows, single = [*np.atleast_2d(ids)], ids.ndim == 1
        name, lengths = "the lengths of texts", [len(row) for row in rows]
        fits = bool(lengths) and min(lengths) >= 2 and max(lengths) <= longest
        require(fits, name, f"in [2, {longest}]", lengths)
        if same_length:
            require(len({*lengths}) == 1, name, "equal", lengths)
        tokens_NT = np.zeros((len(rows), max(lengths)), np.int32)
        for tokens_T, row in zip(tokens_NT, rows, strict=True):
            tokens_T[: len(row)] = row
        return TokenRows(tokens_NT, np.array(lengths), single)

    def orders(self, order: Any, shape: tuple[int, ...]) -> np.ndarray:
        """Returns orders of reading, int32 [N, T]: left to right for None.

        Args:
          order: [T] or [N, T].

        Raises:
          UserError: unless each row has each position once, or for an order if the
            model reads left to right.
        """
        if order is not None and not self.system.model_config.any_order:
            raise UserError("order is for σ-GPT: this model reads left to right")
        straight_T = np.arange(shape[1], dtype=np.int32)
        order = _array(straight_T if order is None else order)
        fits = order.dtype.kind in "iu" and order.shape in (shape, shape[1:])
        fits = fits and (np.sort(order) == straight_T).all()
        rule = f"[T] or [N, T], each row with each of 0 .. {shape[1] - 1} once"
        require(bool(fits), "order", rule, order.tolist())
        return np.broadcast_to(order.astype(np.int32), shape)

    def conditions(self, given: Any, shape: tuple[int, ...]) -> np.ndarray:
        """Returns which tokens are conditioned on, bool [N, T]: none for None.

        Args:
          given: bool [T] or [N, T].

        Raises:
          UserError: if nothing is left to predict, or nothing is given to a model that
            cannot predict the token it reads first.
        """
        given = _array(np.zeros(shape, bool) if given is None else given)
        fits = given.dtype == bool and given.shape in (shape, shape[1:])
        rule = f"bool {list(shape)} or {list(shape[1:])}, like the tokens"
        require(fits, "given", rule, f"{given.dtype} {list(given.shape)}")
        given_NT = np.broadcast_to(given, shape)
        left = not given_NT.all(1).any()
        require(left, "given", "false somewhere in each text", True)
        if not (given_NT.any(1).all() or self.system.predicts_first):
            raise UserError(
                "this model cannot predict the token it reads first: given must be "
                "true somewhere in each text"
            )
        after = (np.diff(given_NT.astype(np.int8), axis=1) > 0).any()
        if after and not self.system.model_config.any_order:
            raise UserError(
                "this model reads left to right: what is given must come first, and "
                "what is scored at the end"
            )
        return given_NT


def _array(value: Any) -> np.ndarray:
    """Returns a value as an array; one of None if its rows differ in length."""
    try:
        return np.asarray(value)
    except ValueError:
        return np.array(None)
