"""The page of runs of text, left to right or in any order."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxgpt.errors import UserError
from jaxgpt.inference import Run
from jaxgpt.model.layers import count_parameters
from jaxgpt.sampling import prompts
from jaxgpt.sampling.output import pieces
from jaxgpt.sampling.state import SamplerOutput, SamplingParams
from jaxgpt.systems.diffusion import config as diffusion
from jaxgpt.systems.diffusion.system import MaskedDiffusion
from jaxgpt.systems.reader import Given
from jaxgpt.systems.sigma import orders
from jaxgpt.systems.sigma.config import SAMPLERS
from jaxgpt.systems.sigma.options import LOW_ENTROPY_FIRST
from jaxgpt.web.pages.base import Action, Emit, Event
from jaxgpt.web.requests import MAX_SAMPLES, Fill, Piece, Score

FRAME = 1 / 120  # The least seconds between two updates of a text.
ALTERNATIVES = 8
ORDER_LENGTH = 16  # Tokens in the small picture of an order.
# The page begins with the first of these that the run's vocabulary has.
EXAMPLES = ("my lord", "ROMEO:", "The ", "a")
LEFT_TO_RIGHT = "left-to-right"


class TextPage:
    """Fills texts, shows the alternatives, and scores texts."""

    kind = "text"

    def __init__(self, run: Run):
        self.run = run
        self.compiled: set[Any] = set()
        self.actions: dict[str, Action] = {"fill": self.fill}
        self.scores = _scores(run)
        if self.scores:
            self.actions["score"] = self.score

    @property
    def any_order(self) -> bool:
        """Whether orders can be chosen."""
        return self.run.system.model_config.any_order

    @property
    def gaps_anywhere(self) -> bool:
        """Whether there may be text after a gap."""
        system = self.run.system
        whole = isinstance(system, MaskedDiffusion) and not system.in_blocks
        return self.any_order or whole

    @property
    def longest(self) -> int:
        """The most tokens of a text on the page."""
        return self.run.system.model_config.block_size

    def describe(self) -> Event:
        """See `Page.describe`."""
        run = self.run
        return {
            "system": run.config.system,
            "step": run.step,
            "parameters": count_parameters(run.params),
            "longest": self.longest,
            "characters": run.config.data.tokenizer == "char",
            "has_text": run.tokenizer is not None,
            "gaps_anywhere": self.gaps_anywhere,
            "scores": self.scores,
            "samplers": sampler_choices(run),
            "orders": order_choices() if self.any_order else [],
            "order": self.usual_order(),
            "max_samples": MAX_SAMPLES,
            "example": self.example(),
        }

    def usual_order(self) -> str:
        """Returns the order that should write the best texts, given the training."""
        c = self.run.config.sigma
        trained = c.infill_share or c.left_to_right_share
        return LEFT_TO_RIGHT if trained or not self.any_order else "random"

    def example(self) -> list[Event]:
        """Returns the pieces of the page's first text."""
        for text in EXAMPLES if self.run.tokenizer else ():
            try:
                length = len(self.run.encode(text))
            except UserError:
                continue
            gap = min(24, (self.longest - length) // 2)
            if self.gaps_anywhere and gap > 0:
                return [{"gap": gap}, {"text": text}, {"gap": gap}]
            if length < self.longest:
                return [{"text": text}, {"gap": min(60, self.longest - length)}]
        return [{"gap": min(60, self.longest)}]

    def fill(self, request: Fill, emit: Emit) -> None:
        """Fills the gaps.

        Events: "start" (which tokens are given), "frame" (new tokens, after forward
        passes), "alternatives" and then "done" (figures), both for each text.
        """
        given = self.given(request.pieces)
        sampling = SamplingParams.of(request.sampling)
        self.generate(given, sampling, request.num_samples, request.seed, emit)

    def given(self, parts: Sequence[Piece]) -> Given:
        """Returns a text with gaps as tokens.

        Raises:
          UserError: if it has no gap, or does not fit the model.
        """
        ids: list[np.ndarray] = []
        at = 0
        for part in parts:
            if part.gap:
                ids.append(np.full(part.gap, -1))
            elif part.tokens:
                ids.append(np.array(part.tokens))
            else:
                ids.append(self.encode(part.text, at))
                at += len(part.text)
        template = np.concatenate(ids or [np.zeros(0, np.int64)]).astype(np.int64)
        if not len(template) or (template >= 0).all():
            raise UserError("there is no gap to fill: select a stretch and press Gap")
        if len(template) > self.longest:
            raise UserError(
                f"the text makes {len(template)} tokens, but only {self.longest} fit "
                "the model"
            )
        return self.run.reader.template(template)

    def encode(self, text: str, at: int = 0) -> np.ndarray:
        """Returns ids [T] of a text, or of the part of one that begins at `at`.

        Without a tokenizer, a text lists token ids: "3, 1, 4".
        """
        if self.run.tokenizer is None:
            return np.array([*map(int, re.findall(r"[0-9]{1,9}", text))], np.int64)
        text = prompts.normalize(text, self.run.config.data.normalize)
        return prompts.encode(text, self.run.tokenizer, at=at)

    def generate(
        self,
        given: Given,
        sampling: SamplingParams,
        num_samples: int,
        seed: int,
        emit: Emit,
    ) -> SamplerOutput | None:
        """Fills a text [T] num_samples times; returns None if it was cancelled."""
        # Each key needs its own compiled program.
        key = (
            *(sampling.sampler, sampling.order == LOW_ENTROPY_FIRST, sampling.top_k),
            *(sampling.top_p < 1, sampling.num_orders, num_samples),
        )
        emit({"type": "running", "compiling": key not in self.compiled})
        known = given.known.tolist()
        start = {"type": "start", "known": known, "note": given.note}
        emit(start | {"pieces": _pieces(given.tokens, given.known, self.run)})
        frames = _Frames(self.run, given.known, emit)
        began = time.perf_counter()
        output = self.run.fill(given, sampling, num_samples, seed, show=frames.show)
        seconds = time.perf_counter() - began
        if not frames.wanted:
            return None
        self.compiled.add(key)
        frames.send(output)
        for row in range(num_samples if self.scores else 0):
            alternatives = self.alternatives(output, row, given.known)
            found = {"type": "alternatives", "row": row, "tokens": alternatives}
            if not emit(found):
                return None
        samples = self.run.read_output(output, given.known)
        figures = [
            {
                "text": sample.text,
                "log_prob": sample.log_prob,
                "passes": sample.num_forward_passes,
                "generated": sample.num_generated,
                "evaluations": sample.tokens_processed,
                "rank": rank,
                "steps": steps,
            }
            for sample, rank, steps in zip(
                samples,
                output.rank_BT.tolist(),
                output.decode_step_BT.tolist(),
                strict=True,
            )
        ]
        emit({"type": "done", "seconds": seconds, "samples": figures})
        return output

    def alternatives(
        self, output: SamplerOutput, row: int, known_T: np.ndarray
    ) -> dict[int, list[tuple[int, str, float]]]:
        """Returns (token, text, probability) of the likeliest at generated positions.

        Given the tokens read before each, at temperature 1. The token that is read
        first, which nothing predicts, has none.
        """
        T, order_T = len(known_T), output.rank_BT[row].argsort()
        (logits_TV,), _ = self.read(output.tokens_BT[row], order_T)
        # Row t predicts token t + 1 in reading order.
        found = {}
        for place in range(1, T):
            position = int(order_T[place])
            if known_T[position]:
                continue
            logits_V = logits_TV[place - 1].astype(np.float64)
            top = np.argpartition(-logits_V, min(ALTERNATIVES, len(logits_V) - 1))
            top = top[:ALTERNATIVES]
            top = top[np.argsort(-logits_V[top])]
            log_z = np.logaddexp.reduce(logits_V)
            found[position] = [
                (int(token), self.show(token), float(np.exp(logits_V[token] - log_z)))
                for token in top
            ]
        return found

    def show(self, token: int) -> str:
        """Returns the text of one token."""
        tokenizer = self.run.tokenizer
        return tokenizer.decode_rest(np.array([token])) if tokenizer else str(token)

    def score(self, request: Score, emit: Emit) -> None:
        """Sends the negative log-likelihood of each token, in up to three orders."""
        tokens_T = self.encode(request.text)
        T, size = len(tokens_T), self.longest
        if not 2 <= T <= size:
            raise UserError(f"a text to score must have 2 to {size} tokens, got {T}")
        chosen = {LEFT_TO_RIGHT: [np.arange(T)]}
        if self.any_order:
            noise = np.random.default_rng(request.seed)
            chosen["random"] = [noise.permutation(T) for _ in range(request.num_orders)]
            name = request.order
            if name and name not in chosen and name in orders.GENERATION:
                order = orders.GENERATION[name]
                unknown, draws = np.zeros(T, bool), noise.random(T)
                chosen[name] = [order(unknown, draws, orders.BLOCK_LENGTH)]
        emit({"type": "running", "compiling": "score" not in self.compiled})
        found = {}
        for name, permutations in chosen.items():
            nll = [self.nll(tokens_T, order_T) for order_T in permutations]
            # The first token of an order has no prediction, unless the model can.
            found[name] = _means(np.array(nll))
        self.compiled.add("score")
        emit(
            {
                "type": "done",
                "pieces": _pieces(tokens_T, np.ones(T, bool), self.run),
                "characters": len(request.text),
                "nll": found,
            }
        )

    def nll(self, tokens_T: np.ndarray, order_T: np.ndarray) -> np.ndarray:
        """Returns nats [T] of each token, NaN where nothing predicts it."""
        T = len(tokens_T)
        _, read_nll = self.read(tokens_T, order_T, keep_logits=False)
        unpredicted = self.longest - len(read_nll)
        nll_T = np.full(T, np.nan)
        nll_T[order_T[unpredicted:]] = read_nll[: T - unpredicted]
        return nll_T

    def read(
        self, tokens_T: np.ndarray, order_T: np.ndarray, keep_logits: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (logits [1, T, V], nll [T]) of a text in a reading order.

        Padded to the block, so that all lengths share one program: tokens that are read
        later change nothing.
        """
        T, size = len(tokens_T), self.longest
        padded = np.zeros((1, size), np.int32)
        padded[0, :T] = tokens_T
        order = np.concatenate([order_T, np.arange(T, size)])[None].astype(np.int32)
        logits, nll = self.run.score_tokens(padded, order, keep_logits)
        return logits, nll[0]


@dataclasses.dataclass
class _Frames:
    """Sends the changes of a batch that is being filled, at most once per `FRAME`.

    Attributes:
      wanted: false once the browser has disconnected.
    """

    run: Run
    known_T: np.ndarray
    emit: Emit
    wanted: bool = True
    sent_at: float = -1.0
    sent: dict[tuple[int, int], Any] = dataclasses.field(default_factory=dict)

    def show(self, output: SamplerOutput) -> bool:
        """See `Callback`: returns False to end the filling."""
        if time.perf_counter() - self.sent_at >= FRAME:
            self.send(output)
        else:
            self.wanted = self.emit(None)
        return self.wanted

    def send(self, output: SamplerOutput) -> None:
        """Sends the pieces that have changed."""
        rows = []
        for row, tokens_T in enumerate(output.tokens_BT):
            decoded_T = output.decoded_BT[row]
            new = []
            for start, stop, text in pieces(tokens_T, decoded_T, self.run.tokenizer):
                if self.known_T[start:stop].all():
                    continue
                log_p = output.log_p_BT[row, start:stop].tolist()
                piece = (start, stop, text, tokens_T[start:stop].tolist(), log_p)
                if self.sent.get((row, start)) != piece:
                    self.sent[row, start] = piece
                    new.append(piece)
            rows.append(new)
        passes = output.num_forward_passes_B.tolist()
        made = (output.decoded_BT & ~self.known_T).sum(1).tolist()
        log_prob = output.log_p_BT.sum(1).tolist()
        frame = {"type": "frame", "passes": passes, "made": made, "log_prob": log_prob}
        self.wanted = self.emit(frame | {"rows": rows})
        self.sent_at = time.perf_counter()


def _pieces(
    tokens_T: np.ndarray, shown_T: np.ndarray, run: Run
) -> list[tuple[int, int, str]]:
    return list(pieces(tokens_T, shown_T, run.tokenizer))


def _means(nll_KT: np.ndarray) -> list[float | None]:
    """Returns means [T] over the orders that predict a token; None without any."""
    predicted_T = ~np.isnan(nll_KT).all(0)
    return [
        float(np.nanmean(column)) if predicted else None
        for column, predicted in zip(nll_KT.T, predicted_T, strict=True)
    ]


def sampler_choices(run: Run) -> list[Event]:
    """Returns the samplers of a run, and why some are not exact."""
    names: Iterable[str] = ()
    if run.system.model_config.any_order:
        names = SAMPLERS
    elif isinstance(run.system, MaskedDiffusion):
        names = diffusion.SAMPLERS
    inexact = run.system.inexact
    return [{"name": name, "note": inexact(SamplingParams(name))} for name in names]


def _scores(run: Run) -> bool:
    """Returns whether the model has a likelihood for each token."""
    try:
        run.system.check_scores()
    except UserError:
        return False
    return True


def order_choices() -> list[Event]:
    """Returns the orders by name, each with when it reads a few tokens."""
    noise = np.random.default_rng(0).random(ORDER_LENGTH)
    unknown = np.zeros(ORDER_LENGTH, bool)
    found = []
    for name, order in orders.GENERATION.items():
        ranks = np.argsort(order(unknown, noise, ORDER_LENGTH // 2))
        found.append({"name": name, "ranks": ranks.tolist()})
    return [*found, {"name": LOW_ENTROPY_FIRST, "ranks": []}]
