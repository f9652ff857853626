"""GPT-2 with each of the three memories, dense, in PyTorch: written from the equations.

Everything stored is compared with every query; there is no index, no slot and no limit
of entries. Of kNN-LM (arXiv 1911.00172) the nearest k are mixed; Memorizing
Transformers' attention (arXiv 2203.08913) is one softmax over memory and window; the
associative memory is that of docs/memory.md.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from parity_tests.torch_gpt import GPT, GPTConfig


def unit(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-12).sqrt()


class MemoryGPT(nn.Module):
    """Reads segments [B, T] of one document in turn; `begin` forgets the last one."""

    def __init__(self, config: GPTConfig, results: int):
        super().__init__()
        self.gpt, self.results = GPT(config), results
        self.begin()

    def begin(self):
        self.stored = None

    def store(self, *new):
        """Appends arrays [B, T, ...]; no gradient goes back to where they are from."""
        new = [array.detach() for array in new]
        old = self.stored or [array[:, :0] for array in new]
        self.stored = [torch.cat(pair, 1) for pair in zip(old, new, strict=True)]

    def nearest(self, query, key):
        """Squared distances [B, T, k] of the k nearest keys [B, E, D], and which."""
        squares = (query[:, :, None] - key[:, None]).square().sum(-1)
        return squares.topk(self.results, largest=False)

    def loss(self, tokens):
        logits = self(tokens)
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class OutputGPT(MemoryGPT):
    """kNN-LM; returns log-probabilities."""

    weight, temperature = 0.25, 1.0

    def forward(self, tokens):
        hidden = self.gpt.hidden(tokens[:, :-1])
        logits = self.gpt.lm_head(hidden)
        stored = self.stored
        self.store(hidden, tokens[:, 1:])
        if not stored:
            return logits
        key, following = stored
        squares, which = self.nearest(hidden, key)
        share = (-squares / key.shape[-1] / self.temperature).softmax(-1)
        token = following[:, None].expand(*squares.shape[:2], -1).gather(2, which)
        memory = torch.zeros_like(logits).scatter_add(2, token, share)
        own = logits.softmax(-1)
        return ((1 - self.weight) * own + self.weight * memory).log()


class AttentionGPT(MemoryGPT):
    """The last block attends to all earlier segments too, by a learned gate."""

    def __init__(self, config: GPTConfig, results: int):
        super().__init__(config, results)
        self.gate = nn.Parameter(torch.zeros(config.n_head))

    def forward(self, tokens):
        t = self.gpt.transformer
        tokens = tokens[:, :-1]
        x = self.gpt.embed(tokens, (torch.arange(tokens.shape[1]),))
        for block in t.h[:-1]:
            x = block(x)
        last = t.h[-1]
        x = x + self.attend(last.attn, last.ln_1(x))
        x = x + last.mlp(last.ln_2(x))
        return self.gpt.lm_head(t.ln_f(x))

    def attend(self, attn, x):
        B, T, D = x.shape
        heads = lambda a: a.view(B, -1, len(self.gate), D // len(self.gate))
        q, k, v = (heads(part) for part in attn.c_attn(x).split(D, 2))
        old_k, old_v = self.stored or (k[:, :0], v[:, :0])
        E = old_k.shape[1]
        self.store(k, v)
        k, v = torch.cat([old_k, k], 1), torch.cat([old_v, v], 1)
        scores = torch.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
        later = torch.ones(T, T, dtype=torch.bool).triu(1)
        scores[..., E:].masked_fill_(later, -torch.inf)
        # The odds of the memory are e to the gate times those of the plain softmax.
        gate = self.gate[:, None, None] * (torch.arange(E + T) < E)
        share = (scores + gate).softmax(-1)
        return attn.c_proj(torch.einsum("bhts,bshk->bthk", share, v).reshape(B, T, D))


class AssociativeGPT(MemoryGPT):
    """Tokens found by the address of the last three, joined with the input."""

    fade, context, scale = 0.6, 3, 8

    def __init__(self, config: GPTConfig, results: int):
        super().__init__(config, results)
        D = config.n_embd
        self.storable_vector = nn.Linear(D, D)
        self.store_decision = nn.Linear(D, 1)
        self.join_input = nn.Linear(D, D)
        self.join_memory = nn.Linear(results * D, D, bias=False)
        self.sharpness = nn.Parameter(torch.zeros(()))

    def begin(self):
        super().begin()
        self.recent = None

    def forward(self, tokens):
        table = self.gpt.transformer.wte
        tokens = tokens[:, :-1]
        T = tokens.shape[1]
        x = table(tokens)
        e = unit(x)
        # What comes before the document has no embedding.
        before = e.new_zeros(len(e), self.context, e.shape[-1])
        recent = before if self.recent is None else unit(table(self.recent))
        e = torch.cat([recent, e], 1)
        address = unit(
            sum(self.fade**n * e[:, 2 - n : 2 - n + T + 1] for n in range(self.context))
        )
        joined = x + self.join_input(x)
        if self.stored:
            joined = joined + self.join_memory(self.read(address[:, 1:]))
        joined = joined + self.gpt.transformer.wpe.weight[:T]
        # A token is found by the address of those before it.
        self.store(address[:, :-1], tokens)
        self.recent = tokens[:, -self.context :]
        return self.gpt.lm_head(self.gpt.blocks(joined))

    def read(self, query):
        key, token = self.stored
        squares, which = self.nearest(query, key)
        rows = torch.arange(len(key))[:, None, None]
        found = self.gpt.transformer.wte.weight.detach()[token[rows, which]]
        keep = (self.scale * self.store_decision(found)[..., 0]).sigmoid()
        weight = (-2 * self.sharpness.exp() * squares).exp() * keep
        return (weight[..., None] * self.storable_vector(found)).flatten(2)
