"""A loaded run: continues, fills and scores texts."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxgpt.data.arrays import batched
from jaxgpt.data.dataset import Dataset
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import UserError, log, require
from jaxgpt.model import rng
from jaxgpt.model.layers import count_parameters
from jaxgpt.model.transformer import LanguageModel
from jaxgpt.sampling import prompts
from jaxgpt.sampling.options import check_ranges
from jaxgpt.sampling.output import Sample, read_output, to_text
from jaxgpt.sampling.state import Callback, SamplerOutput, SamplingParams
from jaxgpt.systems import batches
from jaxgpt.systems.base import System
from jaxgpt.systems.batches import Row
from jaxgpt.systems.reader import Given, Reader, Texts, TokenIds
from jaxgpt.systems.sigma import likelihood
from jaxgpt.training.checkpoint import digests, json_digest
from jaxgpt.training.run_folder import open_data

if TYPE_CHECKING:
    from typing import Unpack

    from jaxgpt.sampling.options import SamplingOptions
    from jaxgpt.systems.memory.options import MemorySession

LOGITS_AT_ONCE = 1 << 26  # float32 values: 256 MiB.


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Run:
    """A trained or imported model with its tokenizer; made by `jaxgpt.load`.

    Dimensions: N texts, T tokens of each, V vocabulary, K orders.

    Attributes:
      workdir: folder of the run, or what an import was read from.
      config: resolved; locked.
      system: how the model is trained, scored and sampled.
      params: nested dict of arrays.
      step: of the checkpoint.
      tokenizer: None for a run of token ids.
      trained: the config without the overrides in `config`.
    """

    workdir: pathlib.Path
    config: ConfigDict
    system: System
    params: dict
    step: int
    tokenizer: Tokenizer | None
    trained: ConfigDict

    def __repr__(self) -> str:
        size = count_parameters(self.params)
        kind = self.config.system
        return f"<Run '{self.workdir}' step {self.step}: {kind}, {size:,} parameters>"

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Digests of the parameters and the tokenizer; run and step, for messages."""
        tokenizer = self.tokenizer.to_json() if self.tokenizer else None
        return {
            "params": json_digest(digests(self.params)),
            "tokenizer": json_digest(tokenizer),
            "run": self.workdir.name,
            "step": self.step,
        }

    @functools.cached_property
    def model(self) -> LanguageModel:
        """The Flax module with these parameters."""
        return self.system.model(self.params)

    @property
    def longest(self) -> int:
        """The maximum number of tokens of a text, generated ones included."""
        return self.reader.longest

    @functools.cached_property
    def reader(self) -> Reader:
        """Turns prompts, templates and texts into tokens."""
        return Reader(self.system, self.tokenizer, self.config.data.normalize)

    def encode(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """Returns the token ids of a text, int32 [T].

        Args:
          text: will be normalized like the run's data.
          special_tokens: read <|endoftext|> and the like, where written out, as tokens.

        Raises:
          UserError: for a character that is not in the vocabulary.
        """
        return self.reader.encode(text, special_tokens)

    def decode(self, tokens: np.ndarray) -> str:
        """Returns the text of token ids [T]; without a tokenizer, their numbers.

        Raises:
          UserError: for ids that are not in the vocabulary.
        """
        ids = prompts.read_ids(tokens, self.system.model_config.vocab_size, "tokens", 1)
        return to_text(ids, self.tokenizer)

    def generate(
        self,
        prompt: str | TokenIds = "",
        *,
        max_new_tokens: int | None = None,
        num_samples: int = 1,
        seed: int = 0,
        stop: str = "",
        special_tokens: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Sample]:
        """Continues a prompt.

            run.generate("ROMEO:", max_new_tokens=50, temperature=0.8, num_samples=4)

        Args:
          prompt: a text, or token ids [T].
          max_new_tokens: by default as many as fill the block.
          num_samples: how many texts; sample k does not depend on it.
          seed: of the draws.
          stop: end each text after this.
          special_tokens: as in `encode`.
          **sampling: see `SamplingOptions`.

        Raises:
          UserError: if it does not fit the model, or an option is out of range.
        """
        given = self.reader.prompt(prompt, max_new_tokens, special_tokens)
        params = SamplingParams.of(sampling)
        output = self.fill(given, params, num_samples, seed, stop)
        return self.read_output(output, given.known, stop)

    def infill(
        self,
        template: str | TokenIds,
        *,
        num_samples: int = 1,
        seed: int = 0,
        special_tokens: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Sample]:
        """Fills the gaps of a text; what is given is never changed.

            run.infill("To be, <missing:12> question", order="far-apart")

        Args:
          template: a text with gaps written `<missing:12>`, of 12 tokens, or, if the
            run was trained with sigma.max_gap, `<missing:1-12>`, of 1 to 12; or token
            ids [T], -1 where one is missing.
          num_samples, seed, special_tokens, **sampling: as in `generate`.

        Raises:
          UserError: if it does not fit the model, or an option is out of range; for a
            model that reads left to right, if a gap is not at the end.
        """
        given = self.reader.template(template, special_tokens)
        params = SamplingParams.of(sampling)
        output = self.fill(given, params, num_samples, seed)
        return self.read_output(output, given.known)

    def score(self, texts: Texts, order: np.ndarray | None = None) -> np.ndarray:
        """Returns the negative log-likelihood of each token in nats, float64 [N, T].

            np.nanmean(run.score(["To be, or not", "or not, be To"]), 1)

        Column t is for token t of the text, whatever the order. It is NaN past the end
        of shorter texts, and at the token that is read first, which nothing predicts
        unless the model has a beginning token.

        Args:
          texts: one or more, or token ids [T] or [N, T].
          order: positions in reading order, [T] or [N, T], for a model that reads in
            any order; default left to right.

        Raises:
          UserError: if a text does not fit the model, or an order is not a permutation.
        """
        self.system.check_scores()
        found = self.reader.texts(texts, same_length=order is not None)
        tokens_NT, lengths_N = found.tokens_NT, found.lengths_N
        order_NT = self.reader.orders(order, tokens_NT.shape)
        _, nll = self.score_tokens(tokens_NT, order_NT, keep_logits=False)
        nll_NT = np.full(tokens_NT.shape, np.nan)
        np.put_along_axis(nll_NT, order_NT[:, -nll.shape[1] :], nll, 1)
        nll_NT[np.arange(tokens_NT.shape[1]) >= lengths_N[:, None]] = np.nan
        return nll_NT

    def marked(
        self, text: str, special_tokens: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (token ids int32 [T], given bool [T]) of a text with marked spans.

            run.log_prob(*run.marked("To be, [[or not]] to be")).mean

        Args:
          text: with double brackets around what is to be scored.
          special_tokens: as in `encode`.

        Raises:
          UserError: if nothing is marked, or as `encode`.
        """
        return self.reader.marked(text, special_tokens)

    def log_prob(
        self,
        texts: Texts,
        given: np.ndarray | None = None,
        *,
        num_orders: int = 16,
        seed: int = 0,
    ) -> likelihood.LogProb:
        """Returns log p(the other tokens | those given) in nats, over random orders.

        A model that reads left to right has only that order.

            known = run.encode("my lord")      # p(second half | first half)
            run.log_prob("my lord", given=np.arange(len(known)) < 4).mean

        Args:
          texts: one or more of the same length, or token ids [T] or [N, T].
          given: bool [T] or [N, T], true for tokens to condition on; None, for no
            token, needs a model with a beginning token.
          num_orders: K, random orders of the other tokens for each text.
          seed: of the orders.

        Raises:
          UserError: if a text does not fit the model or leaves nothing to predict; if
            nothing is given to a model that cannot predict its first token; or if what
            is given to one that reads left to right does not come first.
        """
        self.system.check_scores()
        check_ranges({"num_orders": num_orders, "seed": seed})
        found = self.reader.texts(texts, same_length=True)
        given_NT = self.reader.conditions(given, found.tokens_NT.shape)
        if not self.system.model_config.any_order:
            nll_NT = np.atleast_2d(self.score(found.tokens_NT))
            log_p_N1 = -np.where(given_NT, 0, nll_NT).sum(1, keepdims=True)
            return likelihood.LogProb(log_p_N1[0] if found.single else log_p_N1)
        key = rng.stream(seed, "eval_order")
        log_p_NK = likelihood.conditional_log_likelihoods(
            self.system, self.params, found.tokens_NT, given_NT, key, num_orders
        )
        return likelihood.LogProb(log_p_NK[0] if found.single else log_p_NK)

    def logits(self, texts: Texts, order: np.ndarray | None = None) -> np.ndarray:
        """Returns the model's logits, float32.

        [N, T, V] of a causal model, where row t predicts token t + 1; [N, T - 1, V] of
        one that reads in any order, where row t predicts the token at order[t + 1].

        Args:
          texts, order: as in `score`, all texts of the same length.

        Raises:
          UserError: as `score`.
        """
        self.system.check_scores()
        tokens_NT = self.reader.texts(texts, same_length=True).tokens_NT
        order_NT = self.reader.orders(order, tokens_NT.shape)
        return self.score_tokens(tokens_NT, order_NT)[0]

    def read_output(
        self,
        output: SamplerOutput,
        known: np.ndarray | Sequence[np.ndarray],
        stop: str = "",
    ) -> list[Sample]:
        """Returns the result of `fill` as texts; see `output.read_output`."""
        end_of_gap = self.system.end_of_gap
        return read_output(output, known, self.tokenizer, stop, end_of_gap)

    def fill(
        self,
        given: Given,
        sampling: SamplingParams,
        num_samples: int = 1,
        seed: int = 0,
        stop: str = "",
        show: Callback | None = None,
        session: MemorySession | None = None,
    ) -> SamplerOutput:
        """Returns num_samples fillings of a text [T], or one of each of N texts [N, T].

        Args:
          given: from `reader`, or [N, T].
          num_samples: N.
          seed: of the draws.
          stop: sampling ends once every text has this after what is given.
          show: called after every forward pass.
          session: generates in place of the system.

        Raises:
          UserError: if the system cannot sample so.
        """
        check_ranges({"num_samples": num_samples, "seed": seed})
        shape = num_samples, given.tokens.shape[-1]
        tokens_NT = np.broadcast_to(given.tokens, shape)
        known_NT = np.broadcast_to(given.known, shape)
        each = zip(tokens_NT, known_NT, strict=True)
        rows = [Row(*row, seed, number) for number, row in enumerate(each)]
        filled = self.fill_rows(rows, sampling, stop, show, session)
        output = SamplerOutput.joined([output for _, output in filled])
        if given.note:
            log(f"note: {given.note}")
        return output

    def fill_rows(
        self,
        rows: Sequence[Row],
        sampling: SamplingParams,
        stop: str = "",
        show: Callback | None = None,
        session: MemorySession | None = None,
    ) -> Iterator[tuple[list[Row], SamplerOutput]]:
        """Fills texts of any lengths; yields some of the rows at a time, in order.

        Args:
          sampling, stop, show, session: as in `fill`; a session takes all rows at once.

        Raises:
          UserError: if the system cannot sample so.
        """
        require(isinstance(stop, str), "stop", "a str", stop)
        if stop and not self.tokenizer:
            raise UserError("stop is a text, and this run has no tokenizer to find it")
        sampling = self.system.settle(self.params, rows, sampling)
        return batches.fill(
            self.system,
            self.params,
            self.tokenizer,
            rows,
            sampling,
            stop,
            show,
            session,
        )

    def score_tokens(
        self, tokens_NT: np.ndarray, order_NT: np.ndarray, keep_logits: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (logits, negative log-likelihoods in prediction order), float32.

        See `System.score`.

        Args:
          tokens_NT: int32.
          order_NT: int32, permutations.
          keep_logits: False returns none, [0].
        """
        c, (N, T) = self.system.model_config, tokens_NT.shape
        rows = max(1, min(N, LOGITS_AT_ONCE // (T * c.vocab_size)))
        logits, nll = [np.zeros(0, np.float32)] * (not keep_logits), []
        for batch, count in batched({"tokens": tokens_NT, "order": order_NT}, rows):
            part = self._score(self.params, batch["tokens"], batch["order"])
            if keep_logits:
                logits.append(np.asarray(part[0], np.float32)[:count])
            nll.append(np.asarray(part[1])[:count])
        return np.concatenate(logits), np.concatenate(nll)

    @functools.cached_property
    def _score(self):
        return jax.jit(self.system.score)

    def open_data(self) -> Dataset:
        """Opens the data of `config.data`, once; see `run_folder.open_data`."""
        return self._data

    @functools.cached_property
    def _data(self) -> Dataset:
        return open_data(
            self.workdir, self.config, self.trained, self.system, self.tokenizer
        )
