"""What a system is: the interface that training and the commands are written for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxgpt.data.arrays import batched
from jaxgpt.data.dataset import Dataset
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.errors import UserError
from jaxgpt.model import rng
from jaxgpt.model.config import ModelConfig, flops_per_token
from jaxgpt.model.transformer import LanguageModel
from jaxgpt.parallel import sharding
from jaxgpt.sampling.autoregressive import autoregress
from jaxgpt.sampling.decoding import SampleRequest, decode
from jaxgpt.sampling.options import check_left_to_right, check_one_by_one
from jaxgpt.sampling.state import (
    DEFAULT_PARAMS,
    Callback,
    DecodeState,
    Draws,
    ModelDecoder,
    SamplerOutput,
    SamplingParams,
)
from jaxgpt.systems.host_state import Batch, HostState


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `System.extra_metrics` is given.

    Attributes:
      data: as of `System.open_data`.
      split: of the data.
      windows: those that were scored.
      nll_NT: of the main loss, in nats.
      rows: windows to compute at a time.
      thorough: whether it may take as long as it needs, as in jaxgpt.evaluate.
      pictures: the folder that pictures go to; None draws none.
      label: the end of their names.
      write_curves: keeps {name: [T]}, means over windows, to be drawn by position.
    """

    data: Any
    split: str
    windows: Any
    nll_NT: np.ndarray
    rows: int
    thorough: bool = False
    pictures: Path | None = None
    label: str = ""
    write_curves: Callable[[dict[str, np.ndarray]], None] = lambda curves: None


class System:
    """One way to train, score and generate with the core transformer.

    A system is made from a resolved config alone, so that a finished run can be
    sampled without its training data.
    """

    extra_tokens = 0
    is_task = False
    goes_past_block = False
    # Whether gaps may be anywhere in a text longer than the block.
    fills_past_block = False
    # Whether it learns a text, which `data.path` must name.
    reads_text = False
    # Why jaxgpt.plan cannot compile this system's step, and what to plan instead.
    unplannable = ""
    host: HostState | None = None

    def __init__(self, config: ConfigDict, platform: str = ""):
        """Builds for a platform; None takes the one that JAX finds."""
        platform = platform or jax.default_backend()
        platform = "gpu" if platform == "cuda" else platform
        kernels = platform if platform in ("cpu", "tpu", "gpu") else "xla"
        self.config = config
        self.model_config = ModelConfig(
            **(config.model.to_dict() | self.architecture()), kernels=kernels
        )
        abstract = nnx.eval_shape(self._build, jax.random.key(0))
        self.graphdef = nnx.split(abstract)[0]

    def architecture(self) -> dict[str, Any]:
        """Returns the fields of `ModelConfig` that this system sets itself."""
        return {}

    @classmethod
    def resolve(cls, config: ConfigDict) -> None:
        """Copies the content of files into the config, and sets derived fields.

        The run then no longer depends on those files.
        """

    @classmethod
    def check_overrides(cls, trained: str, config: ConfigDict) -> None:
        """Raises UserError if a finished run cannot be read with other settings.

        Args:
          trained: the system it was trained as.
          config: its config, overridden by settings of this system.
        """
        del config
        raise UserError(
            f"--config.* does not change how this {trained} run is read: leave it out"
        )

    @property
    def max_gap(self) -> int:
        """Tokens of the longest gap of unknown length; 0 if it can fill none."""
        return 0

    @property
    def end_of_gap(self) -> int:
        """The token, after those of the data, that ends such a gap; -1 for none."""
        return self.model_config.vocab_size - 1 if self.max_gap else -1

    def vocab_size_for(self, data: Dataset) -> int:
        """Returns the vocabulary that a model of this data needs."""
        return data.vocab_size + (self.max_gap > 0)  # And the end-of-gap token.

    @property
    def window(self) -> int:
        """Tokens of one training sequence, targets included."""
        return self.model_config.block_size + self.extra_tokens

    @property
    def predicts_first(self) -> bool:
        """Whether the first token is predicted too, and a text needs none to begin."""
        return self.model_config.begin_token

    @property
    def num_predicted(self) -> int:
        """Tokens of `window` that are predicted: all but the one read first."""
        return self.window - 1 + int(self.predicts_first)

    def flops_per_token(self, parameters: int) -> float:
        """Returns the FLOPs of training on one predicted token."""
        return flops_per_token(self.model_config, parameters)

    def _build(self, key: jax.Array) -> LanguageModel:
        return LanguageModel(self.model_config, rngs=nnx.Rngs(params=key))

    def init(self, key: jax.Array) -> dict:
        """Returns fresh parameters, a plain nested dict."""
        return nnx.to_pure_dict(nnx.split(self._build(key))[1])

    def model(self, params: dict) -> LanguageModel:
        """Returns the module over these parameters."""
        return nnx.merge(self.graphdef, params)

    def open_data(self, tokenizer: Tokenizer | None = None) -> Dataset:
        """Opens what this system trains and evaluates on.

        Args:
          tokenizer: to encode a text with; None makes that of `config.data`.
        """
        raise NotImplementedError

    def train_batch(self, tokens_BT: jax.Array, key: jax.Array, step) -> Batch:
        """Adds to a batch of tokens what training draws for it (order, noise)."""
        del key, step
        return {"tokens": tokens_BT}

    def eval_batches(self, tokens_BT: jax.Array, key: jax.Array) -> dict[str, Batch]:
        """Returns {suffix: batch}: the losses that are reported, "" the main one."""
        del key
        return {"": {"tokens": tokens_BT}}

    def nll(
        self, params: dict, batch: Batch, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Returns the negative log-likelihood of each predicted token, in nats."""
        raise NotImplementedError

    def objective(
        self, params: dict, batch: Batch, carried: dict, dropout_key: jax.Array
    ) -> tuple[jax.Array, dict]:
        """Returns the scalar that training minimizes, and what the next step is given.

        See `HostState` for what is carried; without one it is empty.
        """
        return self.nll(params, batch, dropout_key).mean(), carried

    def eval_nll(
        self, params: dict, windows: Any, rows: int, seed: int, layout: Any = None
    ) -> dict[str, np.ndarray]:
        """Returns {suffix: nats [N, T] of every predicted token}, float64.

        Orders and the like are drawn once for all windows, so that the result does not
        depend on rows, the windows scored at a time. With a layout (`sharding.Layout`)
        its devices share the rows; in a deterministic run one device scores them all.
        """
        key = rng.stream(seed, "eval_order")
        batches = jax.jit(self.eval_batches)(windows, key)
        if layout and self.config.deterministic:
            params, layout = sharding.of_one_device(params), None
        score = self._scorer(layout.mesh if layout else None)
        result = {}
        for suffix, batch in batches.items():
            parts = []
            for part, count in batched(jax.device_get(batch), rows):
                if layout:
                    part = jax.tree.map(layout.put_rows, part)
                parts.append(np.asarray(score(params, part), np.float64)[:count])
            result[suffix] = np.concatenate(parts)
        return result

    def _scorer(self, mesh: jax.sharding.Mesh | None) -> Callable[..., jax.Array]:
        """Returns `nll`, compiled once for each mesh."""
        if mesh not in self._scorers:
            whole = mesh and jax.NamedSharding(mesh, jax.P())
            function = sharding.under(mesh, self.nll)
            self._scorers[mesh] = jax.jit(function, out_shardings=whole)
        return self._scorers[mesh]

    @functools.cached_property
    def _scorers(self) -> dict[Any, Callable[..., jax.Array]]:
        return {}

    def check_scores(self) -> None:
        """Raises UserError unless `score` says how likely each token of a text is."""

    def score(
        self, params: dict, tokens_BT: jax.Array, order_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (logits, nll [B, T - 1] in prediction order) of given tokens.

        With a beginning token the first one read has a likelihood too: [B, T].
        """
        raise NotImplementedError

    def extra_metrics(self, params: dict, evaluation: Evaluation) -> dict[str, Any]:
        """Returns {name: figure} that an evaluation reports along with its losses.

        Raises:
          CheckError: if the losses cannot be right.
        """
        del params, evaluation
        return {}

    @classmethod
    def check_order(cls, order: str) -> None:
        """Raises UserError unless this system can generate in an order; "" is its own.

        Whether a list of positions fits is known once there is a text.
        """
        check_left_to_right(order)

    def check_given(
        self, tokens: np.ndarray, known: np.ndarray, sampling: SamplingParams
    ) -> None:
        """Raises UserError for options that are not for these texts.

        Args:
          tokens, known: [T] or [B, T], as of `sample`.
        """

    def decode_order(
        self,
        prompt_mask_BT: np.ndarray,
        length_B: np.ndarray,
        sampling: SamplingParams,
        draws: Draws,
    ) -> np.ndarray:
        """Returns the order [B, T] in which positions are read: the given ones first.

        Those past the length of a row come last.

        Raises:
          UserError: if this system cannot generate in this order.
        """
        raise NotImplementedError

    def sampler(self, sampling: SamplingParams) -> Callable[..., DecodeState]:
        """Returns advance(decoder, params, state, decode_params, limit).

        Raises:
          UserError: if this system has no such sampler, or options clash.
        """
        check_one_by_one(sampling)
        return functools.partial(autoregress, cached=sampling.cached)

    def inexact(self, sampling: SamplingParams) -> str:
        """Returns why samples do not have the model's distribution; "" if they do."""
        del sampling
        return ""

    def settle(
        self, params: dict, rows: Sequence[Any], sampling: SamplingParams
    ) -> SamplingParams:
        """Returns how to sample these `batches.Row`s, if that depends on them.

        It is called once for all of them, so that their batches do not differ.
        """
        del params, rows
        return sampling

    def cache_length(self, T: int) -> int:
        """Returns the cache slots for a text of T tokens: the block.

        Each value costs a compilation, so there are few.
        """
        del T
        return self.model_config.block_size

    def mixes_lengths(self, T: int) -> bool:
        """Whether `sample` takes rows of different lengths, of T tokens at most."""
        del T
        return True

    def lookahead(self, sampling: SamplingParams) -> int:
        """Returns how many slots past the decoded ones a pass of this sampler takes."""
        del sampling
        return 1

    def sample(
        self,
        params: dict,
        tokens_BT: np.ndarray,
        prompt_mask_BT: np.ndarray,
        key: jax.Array | Draws,
        sampling: SamplingParams = DEFAULT_PARAMS,
        callback: Callback | None = None,
        every: int = 1,
        length_B: np.ndarray | None = None,
        **options: Any,
    ) -> SamplerOutput:
        """Fills the unknown positions of each row; what is known is never changed.

        A system overrides `fill`, which is given the same as one object.

        Args:
          tokens_BT: int32.
          prompt_mask_BT: true where the token is given; rows may differ.
          key: of the random numbers, for rows 0 to B - 1 of a seed or for any rows;
            they do not depend on the batch.
          callback: is shown the texts every few forward passes; false stops.
          every: forward passes between two calls of it.
          length_B: of each row, if some are shorter than T and the system
            `mixes_lengths`; what is past it is left alone.
          **options: of this system's `fill`.
        """
        B, T = tokens_BT.shape
        request = SampleRequest(
            tokens_BT=tokens_BT,
            prompt_mask_BT=prompt_mask_BT,
            open_BT=np.zeros((B, T), bool),
            length_B=np.full(B, T) if length_B is None else length_B,
            draws=Draws.of(key, B),
            sampling=sampling,
            callback=callback,
            every=every,
        )
        return self.fill(params, request, **options)

    def fill(self, params: dict, request: SampleRequest) -> SamplerOutput:
        """Does what `sample` says; T is at most the text's `cache_length`."""
        order_draws, draws = request.draws.split()
        given_BT = request.prompt_mask_BT | request.open_BT
        order_BT = self.decode_order(
            given_BT, request.length_B, request.sampling, order_draws
        )
        return decode(
            ModelDecoder(self.graphdef),
            params,
            self.sampler(request.sampling),
            request.replace(draws=draws),
            order_BT,
            self.model_config,
            self.cache_length(given_BT.shape[1]),
            self.lookahead(request.sampling),
        )
