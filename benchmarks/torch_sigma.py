"""An eager PyTorch σ-GPT that generates as the original does: the baseline of speed.

It does the original's work in the original's steps: attention by a written-out softmax
over materialised scores, a preallocated key-value cache written in place, one sequence
length for the whole batch. What the original prints on the way is left out. Written
from the description of the method; the weights are those of parity_tests.torch_gpt.

B batch, T tokens, P known at the start, R missing now, N orders, V vocabulary. Tokens
and orders named *_BT in a loop are in generation order: known first, missing last.
"""

from __future__ import annotations

import dataclasses
import pathlib

import torch

from jaxgpt.interop import torch_file
from parity_tests.torch_gpt import GPT, GPTConfig


class Draws:
    """The random numbers of a sampler; a test puts recorded ones in their place."""

    def order(self, prompt_mask_BT):
        """Position orders [B, T]: the known ones first, both parts shuffled."""
        noise_BT = torch.rand(prompt_mask_BT.shape, device=prompt_mask_BT.device)
        return (noise_BT - prompt_mask_BT.float()).argsort(1)

    def tokens(self, probabilities):
        """One token of each distribution [..., V]."""
        flat = probabilities.flatten(0, -2)
        return torch.multinomial(flat, 1).view(probabilities.shape[:-1])

    def permutations(self, rows, R, device):
        """Independent permutations of R indices [rows, R]."""
        return torch.rand((rows, R), device=device).argsort(1)

    def uniforms(self, B, R, device):
        """The numbers that decide on acceptance [B, R]."""
        return torch.rand((B, R), device=device)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Texts [B, T] in natural order, and the work they took.

    A token evaluation is one position of one row passing through the model. `forwards`
    counts every pass, that over the prompt included; `prompted`, `drafted`, `verified`
    are the token evaluations of prompt, drafts (or single steps) and verifications.
    """

    tokens_BT: torch.Tensor
    iterations: int
    forwards: int
    prompted: int
    drafted: int
    verified: int


class Cache:
    """Keys and values [rows, heads, capacity, width of a head] of every layer."""

    def __init__(self, layers, size):
        self.layers, self.size = layers, size

    @classmethod
    def empty(cls, c: GPTConfig, rows, capacity, device):
        shape = (rows, c.n_head, capacity, c.n_embd // c.n_head)
        pair = lambda: tuple(torch.empty(shape, device=device) for _ in range(2))
        return cls([pair() for _ in range(c.n_layer)], 0)

    def repeated(self, N):
        """A copy with every row N times, its unused capacity copied too."""
        clones = [tuple(a.clone() for a in layer) for layer in self.layers]
        repeat = lambda layer: tuple(a.repeat_interleave(N, 0) for a in layer)
        return Cache([repeat(layer) for layer in clones], self.size)

    def chosen(self, best_B1, size):
        """A new cache of one row out of each N, cut to size, of the used capacity."""
        B = best_B1.shape[0]
        index = best_B1[:, :, None, None, None]

        def choose(a):
            new = a.new_empty((B, a.shape[1], self.size, a.shape[3]))
            groups = a[:, :, :size].unflatten(0, (B, -1))
            new[:, :, :size] = groups.take_along_dim(index, 1).squeeze(1)
            return new

        return Cache([tuple(choose(a) for a in layer) for layer in self.layers], size)


class SigmaTwin:
    """The two text samplers of σ-GPT over one model."""

    def __init__(self, gpt: GPT):
        if not gpt.c.double:
            raise ValueError("σ-GPT needs a GPT with double positions")
        self.gpt = gpt.eval()
        block = (gpt.c.block_size, gpt.c.block_size)
        device = gpt.lm_head.weight.device
        self.future = torch.ones(block, dtype=torch.bool, device=device).triu(1)

    @classmethod
    def load(cls, path) -> SigmaTwin:
        """Reads a checkpoint in nanoGPT's format."""
        checkpoint = torch_file.read_torch_file(pathlib.Path(path))
        gpt = GPT(GPTConfig(**checkpoint["model_args"], double=True))
        prefix = "_orig_mod."  # torch.compile leaves it in the names.
        state = {
            name.removeprefix(prefix): torch.from_numpy(array.copy())
            for name, array in checkpoint["model"].items()
        }
        gpt.load_state_dict(state)
        return cls(gpt)

    def forward(self, tokens, where, cache, draft=False):
        """Logits of tokens [rows, length] at `where` = (own, target) positions.

        Causal after what the cache holds, and added to it; a draft sees the cache and
        itself only, and adds nothing.
        """
        x = self.gpt.embed(tokens, where)
        attend = self._attend_alone if draft else self._attend_causally
        for block, layer in zip(self.gpt.transformer.h, cache.layers, strict=True):
            attention, y = block.attn, block.ln_1(x)
            parts = attention.c_attn(y).split(y.shape[-1], 2)
            q, k, v = (
                a.unflatten(2, (self.gpt.c.n_head, -1)).transpose(1, 2) for a in parts
            )
            y = attend(q, k, v, layer, cache.size).transpose(1, 2).flatten(2)
            x = x + attention.c_proj(y)
            x = x + block.mlp(block.ln_2(x))
        if not draft:
            cache.size += tokens.shape[1]
        return self.gpt.lm_head(self.gpt.transformer.ln_f(x))

    def _attend_causally(self, q, k, v, layer, start):
        end = start + q.shape[2]
        for store, new in zip(layer, (k, v), strict=True):
            store[:, :, start:end] = new
        keys, values = (store[:, :, :end] for store in layer)
        scores = (q @ keys.mT) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(self.future[start:end, :end], -torch.inf)
        return scores.softmax(-1) @ values

    def _attend_alone(self, q, k, v, layer, start):
        keys, values = (store[:, :, :start] for store in layer)
        scores = torch.cat([q @ keys.mT, (q * k).sum(-1, keepdim=True)], -1)
        weights = (scores * q.shape[-1] ** -0.5).softmax(-1)
        return weights[..., :-1] @ values + weights[..., -1:] * v

    @torch.no_grad()
    def cached(self, tokens_BT, prompt_mask_BT, draws=None) -> Sample:
        """Fills what is not known one by one, in random order."""
        draws = draws or Draws()
        order_BT, ordered_BT, P = self._arrange(tokens_BT, prompt_mask_BT, draws)
        B, T = ordered_BT.shape
        cache = Cache.empty(self.gpt.c, B, T, ordered_BT.device)
        for i in range(P, T):
            own, target = slice(cache.size, i), slice(cache.size + 1, i + 1)
            where = (order_BT[:, own], order_BT[:, target])
            logits = self.forward(ordered_BT[:, own], where, cache)[:, -1:]
            probabilities_B1V = logits.softmax(-1)
            ordered_BT[:, i : i + 1] = draws.tokens(probabilities_B1V)
        texts_BT = torch.empty_like(ordered_BT).scatter_(1, order_BT, ordered_BT)
        steps = T - P
        # The first step's pass is over the whole prompt.
        return Sample(texts_BT, steps, steps, B * P, B * max(steps - 1, 0), 0)

    @torch.no_grad()
    def burst(
        self,
        tokens_BT,
        prompt_mask_BT,
        num_orders=5,
        correct_positions=False,
        draws=None,
    ) -> Sample:
        """Fills what is not known by drafting all of it and keeping what one order can.

        An iteration drafts every missing token independently given the accepted ones,
        scores the draft along N random orders, and keeps the longest prefix of any
        order in which u < q / p holds throughout, cut to the shortest in the batch. As
        in the original, nothing is redrawn from a residual, an iteration may accept
        nothing, and the result is not distributed as one-by-one samples are.

        A draft query carries the last accepted token. With correct_positions it stands
        at that token's position; otherwise, as in the original, at the position of the
        missing token before it.
        """
        draws = draws or Draws()
        order_BT, ordered_BT, P = self._arrange(tokens_BT, prompt_mask_BT, draws)
        (B, T), N, device = ordered_BT.shape, num_orders, ordered_BT.device
        cache = Cache.empty(self.gpt.c, B, T, device)
        iterations, missing = 0, 0
        if P > 1:
            where = (order_BT[:, : P - 1], order_BT[:, 1:P])
            self.forward(ordered_BT[:, : P - 1], where, cache)
        done = P
        first = lambda a: a.repeat_interleave(N, 0)  # Row b * N + n: order n of text b.
        while done < T:
            R = T - done
            iterations, missing = iterations + 1, missing + R
            last_B1, rest_BR = order_BT[:, done - 1 : done], order_BT[:, done:]
            token_B1 = ordered_BT[:, done - 1 : done]

            stale_BR = order_BT[:, done - 1 : -1]
            own_BR = last_B1.expand(B, R) if correct_positions else stale_BR
            fed_BR = token_B1.expand(B, R)
            logits = self.forward(fed_BR, (own_BR, rest_BR), cache, draft=True)
            probabilities_BRV = logits.softmax(-1)
            draft_BR = draws.tokens(probabilities_BRV)
            p_BR = probabilities_BRV.gather(2, draft_BR[:, :, None]).squeeze(2)

            permutations = draws.permutations(B * N, R, device)
            rest, draft, p, u = (
                first(a).gather(1, permutations)
                for a in (rest_BR, draft_BR, p_BR, draws.uniforms(B, R, device))
            )
            own = torch.cat([first(last_B1), rest[:, :-1]], 1)
            fed = torch.cat([first(token_B1), draft[:, :-1]], 1)
            wide = cache.repeated(N)
            q_all = self.forward(fed, (own, rest), wide).softmax(-1)
            q = q_all.gather(2, draft[:, :, None]).squeeze(2)

            prefix_BN = (u < q / p).long().cumprod(1).sum(1).view(B, N)
            length_B1, best_B1 = prefix_BN.max(1, keepdim=True)  # Ties: the first.
            row_B = torch.arange(B, device=device) * N + best_B1[:, 0]
            order_BT[:, done:], ordered_BT[:, done:] = rest[row_B], draft[row_B]
            done += int(length_B1.min())
            if done < T:
                cache = wide.chosen(best_B1, done - 1)
        texts_BT = torch.empty_like(ordered_BT).scatter_(1, order_BT, ordered_BT)
        forwards = 2 * iterations + (P > 1)
        drafted, prompted = B * missing, B * (P - 1)
        return Sample(texts_BT, iterations, forwards, prompted, drafted, N * drafted)

    def _arrange(self, tokens_BT, prompt_mask_BT, draws):
        """Returns orders and tokens in generation order, and how many are known."""
        counts = set(prompt_mask_BT.sum(1).tolist())
        if len(counts) > 1 or 0 in counts:
            raise ValueError(f"rows know {sorted(counts)} tokens: need one number > 0")
        order_BT = draws.order(prompt_mask_BT).clone()
        return order_BT, tokens_BT.gather(1, order_BT), counts.pop()
