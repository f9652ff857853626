"""What samplers share: how to sample, how far a batch is, what comes out.

A sequence is held in reading order: slot t is the t-th token read, wherever it is in
the text; left to right is the identity order. A sampler is a compiled loop over forward
passes from one `DecodeState` to a later one, so that it can run to the end, or a few
passes at a time with the text shown in between.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxgpt.model.positions import Positions, in_order
from jaxgpt.sampling.options import SamplingOptions, check_ranges

Cache = Any


class Draws(NamedTuple):
    """Which random numbers the rows of a batch are drawn with.

    They depend on a row's seed and number alone, not on the rest of the batch.

    Attributes:
      key_B: of each row's seed.
      number_B: int32, a row's place among those of its seed.
    """

    key_B: jax.Array
    number_B: np.ndarray

    @classmethod
    def of(cls, key: jax.Array | Draws, rows: int) -> Draws:
        """Returns those of the first rows of one seed."""
        if isinstance(key, Draws):
            return key
        return cls(jnp.broadcast_to(key, rows), np.arange(rows, dtype=np.int32))

    def fold_in(self, data: int) -> Draws:
        """Returns other ones, for this integer."""
        key_B = jax.vmap(lambda key: jax.random.fold_in(key, data))(self.key_B)
        return Draws(key_B, self.number_B)

    def split(self) -> tuple[Draws, Draws]:
        """Returns two independent ones."""
        key_B2 = jax.vmap(jax.random.split)(self.key_B)
        return Draws(key_B2[:, 0], self.number_B), Draws(key_B2[:, 1], self.number_B)

    def row_keys(self) -> jax.Array:
        """Returns the key [B] that each row draws from."""
        return jax.vmap(jax.random.fold_in)(self.key_B, jnp.asarray(self.number_B))

    def uniforms(self, length_B: np.ndarray) -> list[np.ndarray]:
        """Returns distinct uniform numbers for each row, as many as its length.

        Those of row n of a seed are row n of an array [rows, length] drawn at once.
        """
        found: list[np.ndarray] = [np.zeros(0)] * len(length_B)
        data_BK = np.asarray(jax.random.key_data(self.key_B))
        groups: dict[tuple, list[int]] = {}
        for b, length in enumerate(length_B):
            groups.setdefault((int(length), *data_BK[b].tolist()), []).append(b)
        for (length, *_), rows in groups.items():
            shape = int(self.number_B[rows].max()) + 1, length
            noise_NT = np.asarray(jax.random.uniform(self.key_B[rows[0]], shape))
            for b in rows:
                found[b] = noise_NT[self.number_B[b]]
        return found


class Decoder(Protocol):
    """A model as samplers use it: tokens in, logits of the next ones out."""

    def init_cache(self, params: Any, batch: int, slots: int) -> Cache:
        """Returns an empty cache, a tree of arrays [B, ...]."""

    def forward(
        self,
        params: Any,
        tokens_BT: jax.Array,
        positions: Positions,
        cache: Cache,
        start: jax.Array,
        mask_TT: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Returns logits [B, T, V] after each of T tokens, and the cache with them.

        The tokens take the slots start .. start + T and attend to those before them;
        mask_TT, [T, T] or [B, 1, T, T], says which of the new tokens each attends to;
        None is causal.
        """


@dataclasses.dataclass(frozen=True)
class ModelDecoder:
    """The Decoder of a LanguageModel."""

    graphdef: nnx.GraphDef

    def init_cache(self, params: dict, batch: int, slots: int) -> Cache:
        """Returns zeros."""
        config = nnx.merge(self.graphdef, params).config
        return config.token_mixer.empty_cache(config, batch, slots)

    def forward(self, params, tokens_BT, positions, cache, start, mask_TT=None):
        """See `Decoder.forward`."""
        model = nnx.merge(self.graphdef, params)
        positions = positions[: len(in_order(1, model.config))]
        return model(tokens_BT, positions, cache=cache, start=start, mask_TT=mask_TT)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["end_B", "key_B", "temperature", "top_p", "stop"],
    meta_fields=["top_k", "nucleus"],
)
@dataclasses.dataclass(frozen=True)
class DecodeParams:
    """How the compiled samplers draw; only top_k and nucleus recompile them.

    Attributes:
      end_B: one past the last slot to fill of each row.
      key_B: what each row draws from, so that it does not depend on the others.
      temperature: 0 takes the likeliest token.
      top_p: only the likeliest tokens that together reach this probability are drawn.
      stop: once a row has decoded so many slots the sampler returns, to be given a
        larger cache.
      top_k: only the k likeliest tokens are drawn; 0 allows all.
      nucleus: whether top_p applies.
    """

    end_B: jax.Array
    key_B: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    stop: jax.Array
    top_k: int = 0
    nucleus: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """A batch of sequences, partly decoded.

    Attributes:
      tokens_BS: int32, in reading order; the first num_decoded_B of a row are decoded.
      own_BS, target_BS: the position of each slot's token, and of the next slot's.
      num_decoded_B: slots decoded, those of the prompt included.
      cache: of the decoder: keys and values, or states, of all decoded slots but the
        last; it may have fewer slots than the other arrays.
      num_forward_passes_B: forward passes while the row was incomplete.
      tokens_processed_B: tokens that these computed for the row.
      log_p_BS: log-probability of each generated token, at temperature 1 and among all.
      decode_step_BS: the number of the forward pass that decoded each slot; 0 in the
        prompt.
      draft_length_B: how many tokens a burst drafts next.
    """

    tokens_BS: jax.Array
    own_BS: jax.Array
    target_BS: jax.Array
    num_decoded_B: jax.Array
    cache: Cache
    num_forward_passes_B: jax.Array
    tokens_processed_B: jax.Array
    log_p_BS: jax.Array
    decode_step_BS: jax.Array
    draft_length_B: jax.Array

    replace = dataclasses.replace


INITIAL_DRAFT_LENGTH = 8
NO_LIMIT = 2**30


@functools.partial(jax.jit, static_argnames=("decoder", "slots"))
def prefill(
    decoder: Decoder,
    params: Any,
    tokens_BS: jax.Array,
    own_BS: jax.Array,
    target_BS: jax.Array,
    num_decoded_B: jax.Array,
    slots: int | None = None,
) -> DecodeState:
    """Returns the state whose first num_decoded_B slots are the prompt.

    One forward pass over all slots of the cache, S or `slots`, fills it. What this
    writes for slots that are not decoded yet is meaningless, but each is overwritten
    before a later token attends to it: so the shapes do not depend on the prompt.
    """
    B, S = tokens_BS.shape
    slots = slots or S
    read = tokens_BS[:, :slots]
    positions = (own_BS[:, :slots], target_BS[:, :slots])

    def prefill(cache):
        return decoder.forward(params, read, positions, cache, jnp.int32(0))[1]

    cache = decoder.init_cache(params, B, slots)
    # The sampler reads the last decoded token itself: with only one, nothing is left.
    cache = lax.cond(num_decoded_B.max() > 1, prefill, lambda cache: cache, cache)
    count_B = jnp.zeros(B, jnp.int32)
    return DecodeState(
        tokens_BS=tokens_BS,
        own_BS=own_BS,
        target_BS=target_BS,
        num_decoded_B=num_decoded_B.astype(jnp.int32),
        cache=cache,
        num_forward_passes_B=count_B,
        tokens_processed_B=count_B,
        log_p_BS=jnp.zeros((B, S), jnp.float32),
        decode_step_BS=jnp.zeros((B, S), jnp.int32),
        draft_length_B=count_B + INITIAL_DRAFT_LENGTH,
    )


@functools.partial(jax.jit, static_argnames=("decoder", "slots"))
def grow(decoder: Decoder, params: Any, state: DecodeState, slots: int) -> DecodeState:
    """Returns the state with a cache of this many slots, no fewer than it has."""
    empty = decoder.init_cache(params, len(state.num_decoded_B), slots)
    put = lambda new, old: lax.dynamic_update_slice(new, old, (0,) * old.ndim)
    return state.replace(cache=jax.tree.map(put, empty, state.cache))


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How to sample: options of `jaxgpt.sample`; "" and 0 mean the default."""

    sampler: str = ""
    order: str = ""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    num_orders: int = 0
    block_length: int = 0
    tokens_per_pass: int = 0
    entropy_bound: float = 0.0
    num_steps: int = 0
    cached: bool = True

    def decode_params(self, end: int | np.ndarray, draws: Draws) -> DecodeParams:
        """Returns the part that compiled samplers take.

        Args:
          end: one past the last slot to fill, of all rows or of each [B].
        """
        key_B = draws.row_keys()
        return DecodeParams(
            end_B=jnp.broadcast_to(jnp.int32(end), key_B.shape),
            key_B=key_B,
            temperature=jnp.float32(self.temperature),
            top_p=jnp.float32(self.top_p),
            stop=jnp.int32(NO_LIMIT),
            top_k=self.top_k,
            nucleus=self.top_p < 1,
        )

    @classmethod
    def of(cls, options: SamplingOptions) -> SamplingParams:
        """Returns these options, checked; what is not among them is the default.

        Raises:
          UserError: for a value out of range.
          TypeError: for an unknown option.
        """
        check_ranges(options)
        order = options.get("order")
        if order is not None and not isinstance(order, str):
            options = {**options, "order": ",".join(map(str, np.ravel(order)))}
        given: dict[str, Any] = {k: v for k, v in options.items() if v is not None}
        return cls(**given)


DEFAULT_PARAMS = SamplingParams()


@dataclasses.dataclass(frozen=True)
class SamplerOutput:
    """Generated texts, and what they cost.

    Attributes:
      tokens_BT: int32.
      decoded_BT: whether each token is of the prompt or generated; all, at the end.
      log_p_BT: float32, the model's log-probability of each generated token given those
        decoded before it, at temperature 1; 0 in the prompt.
      decode_step_BT: number of the forward pass that decoded each token; 0 in the
        prompt.
      rank_BT: int32, the place of each token in the order of reading.
      num_forward_passes_B: without the one over the prompt.
      tokens_processed_B: tokens that these passes computed.
    """

    tokens_BT: np.ndarray
    decoded_BT: np.ndarray
    log_p_BT: np.ndarray
    decode_step_BT: np.ndarray
    rank_BT: np.ndarray
    num_forward_passes_B: np.ndarray
    tokens_processed_B: np.ndarray

    def __getitem__(self, rows: slice) -> SamplerOutput:
        """Returns some of the rows."""
        names = (field.name for field in dataclasses.fields(self))
        return dataclasses.replace(self, **{n: getattr(self, n)[rows] for n in names})

    @staticmethod
    def joined(parts: Sequence[SamplerOutput]) -> SamplerOutput:
        """Returns the rows of all parts."""
        names = [field.name for field in dataclasses.fields(parts[0])]
        join = lambda name: np.concatenate([getattr(part, name) for part in parts])
        return dataclasses.replace(parts[0], **{name: join(name) for name in names})


Callback = Callable[[SamplerOutput], bool]


def in_text_order(state: DecodeState, first: int, T: int) -> SamplerOutput:
    """Returns the tokens of slots first .. first + T in text order."""
    own_BT = np.asarray(state.own_BS)[:, first : first + T]
    places_S = np.arange(state.own_BS.shape[1], dtype=np.int32)
    decoded_BS = places_S < np.asarray(state.num_decoded_B)[:, None]

    def back(array_BS) -> np.ndarray:
        array_BT = np.asarray(array_BS)[:, first : first + T]
        result_BT = np.zeros_like(array_BT)
        np.put_along_axis(result_BT, own_BT, array_BT, 1)
        return result_BT

    return SamplerOutput(
        tokens_BT=back(state.tokens_BS),
        decoded_BT=back(decoded_BS),
        log_p_BT=back(state.log_p_BS),
        decode_step_BT=back(state.decode_step_BS),
        rank_BT=back(np.broadcast_to(places_S - first, state.own_BS.shape)),
        num_forward_passes_B=np.asarray(state.num_forward_passes_B),
        tokens_processed_B=np.asarray(state.tokens_processed_B),
    )
