"""Readers whose conditionals come from one joint distribution, whatever the order."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

TINY = 1e-30


def remember(cache, tokens_BT, own_BT, start_B):
    """The cache [B, 2, S] of tokens and positions with T more, from start_B on."""
    B, T = tokens_BT.shape
    at = (jnp.arange(B)[:, None], slice(None), start_B[:, None] + jnp.arange(T))
    return cache.at[at].set(jnp.stack([tokens_BT, own_BT], -1), mode="drop")


@dataclasses.dataclass(frozen=True)
class Joint:
    """n tokens of V values with a probability for each of the V^n texts.

    Params are those probabilities, [V^n]. A beginning token is any at position n.
    """

    n: int
    V: int

    @property
    def texts(self):
        return np.array(list(itertools.product(range(self.V), repeat=self.n)))

    def init_cache(self, params, batch, slots):
        del params
        return jnp.zeros((batch, 2, slots), jnp.int32)

    def forward(self, params, tokens_BT, positions, cache, start, mask_TT=None):
        own_BT, target_BT = positions
        B, T = tokens_BT.shape
        S = cache.shape[2]
        start_B = jnp.broadcast_to(start, (B,))
        texts = jnp.pad(jnp.asarray(self.texts), ((0, 0), (0, 1)), constant_values=-1)
        among = jnp.tril(jnp.ones((T, T), bool)) if mask_TT is None else mask_TT
        among_BTT = jnp.broadcast_to(among, (B, 1, T, T))[:, 0]

        def agrees(tokens, own):
            return (texts.T[own] == tokens[..., None]) | (own == self.n)[..., None]

        before_BSO = (
            agrees(cache[:, 0], cache[:, 1])
            | (jnp.arange(S) >= start_B[:, None])[..., None]
        )
        new_BTO = agrees(tokens_BT, own_BT)
        clash_BTO = jnp.einsum("btu,buo->bto", among_BTT * 1.0, 1.0 - new_BTO)
        weight_BTO = before_BSO.all(1)[:, None] * (clash_BTO < 0.5) * params
        value_BTO = texts.T[target_BT]
        one_hot = jax.nn.one_hot(value_BTO, self.V)
        p_BTV = jnp.einsum("bto,btov->btv", weight_BTO, one_hot)
        return jnp.log(p_BTV + TINY), remember(cache, tokens_BT, own_BT, start_B)


@dataclasses.dataclass(frozen=True)
class Markov:
    """A stationary chain of n tokens; params are powers [n + 1, V, V] of its kernel.

    The uniform law must be stationary.
    """

    n: int
    V: int

    def init_cache(self, params, batch, slots):
        del params
        return jnp.zeros((batch, 2, slots), jnp.int32)

    def forward(self, params, tokens_BT, positions, cache, start, mask_TT=None):
        own_BT, target_BT = positions
        B, T = tokens_BT.shape
        S = cache.shape[2]
        start_B = jnp.broadcast_to(start, (B,))
        among = jnp.tril(jnp.ones((T, T), bool)) if mask_TT is None else mask_TT
        among_BTT = jnp.broadcast_to(among, (B, 1, T, T))[:, 0].astype(jnp.int32)

        def placed(tokens, own):
            """Each token plus one, at its position: [B, ..., n + 1]."""
            return jax.nn.one_hot(own, self.n + 1, dtype=jnp.int32) * (
                tokens[..., None] + 1
            )

        before_BS = jnp.arange(S) < start_B[:, None]
        before_BP = (placed(cache[:, 0], cache[:, 1]) * before_BS[..., None]).sum(1)
        new_BTP = jnp.einsum("btu,bup->btp", among_BTT, placed(tokens_BT, own_BT))
        known_BTP = jnp.where(new_BTP > 0, new_BTP, before_BP[:, None])[..., :-1] - 1
        place = jnp.arange(self.n)
        is_known = known_BTP >= 0
        target = target_BT[..., None]
        left = jnp.where(is_known & (place < target), place, -1).max(-1)
        right = jnp.where(is_known & (place > target), place, self.n).min(-1)
        at = lambda index: jnp.take_along_axis(
            known_BTP, jnp.clip(index, 0, self.n - 1)[..., None], -1
        )[..., 0]
        from_left = params[jnp.clip(target_BT - left, 0, self.n), at(left)]
        to_right = params.swapaxes(1, 2)[
            jnp.clip(right - target_BT, 0, self.n), at(right)
        ]
        log_p = jnp.where(left[..., None] >= 0, jnp.log(from_left + TINY), 0)
        log_p += jnp.where(right[..., None] < self.n, jnp.log(to_right + TINY), 0)
        return log_p, remember(cache, tokens_BT, own_BT, start_B)


def markov(n, V, stay):
    """Returns a chain that stays with this probability, else moves anywhere else."""
    kernel = np.full((V, V), (1 - stay) / (V - 1))
    np.fill_diagonal(kernel, stay)
    powers = [np.eye(V)]
    for _ in range(n):
        powers.append(powers[-1] @ kernel)
    return Markov(n, V), jnp.asarray(np.array(powers), jnp.float32)


def joint(array):
    """Returns the table of a joint distribution given as an array [V, ..., V]."""
    array = np.asarray(array, float)
    p = array.reshape(-1) / array.sum()
    return Joint(array.ndim, array.shape[0]), jnp.asarray(p, jnp.float32)
