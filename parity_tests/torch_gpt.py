"""A compact PyTorch GPT and σ-GPT, written from the papers: the other side of parity.

Parameter names and layouts are nanoGPT's (weights [out, in], `transformer.h.0...`), so
that golden state dicts load. σ-GPT differs in its position table alone: half as wide,
looked up at a token's own position and at its target's.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    bias: bool = False
    dropout: float = 0.0
    double: bool = False


class Norm(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c.n_embd))
        self.bias = nn.Parameter(torch.zeros(c.n_embd)) if c.bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        self.c_attn = nn.Linear(c.n_embd, 3 * c.n_embd, bias=c.bias)
        self.c_proj = nn.Linear(c.n_embd, c.n_embd, bias=c.bias)
        self.c = c

    def forward(self, x, past=None):
        """past: None, or a list [k, v] that is extended in place."""
        B, T, D = x.shape
        parts = self.c_attn(x).split(D, 2)
        q, k, v = (a.view(B, T, self.c.n_head, -1).transpose(1, 2) for a in parts)
        if past is not None:
            if past:
                k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            past[:] = [k, v]
        causal = k.shape[2] == T
        rate = self.c.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=causal)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, D))
        return F.dropout(y, self.c.dropout, self.training)


class FeedForward(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(c.n_embd, 4 * c.n_embd, bias=c.bias)
        self.c_proj = nn.Linear(4 * c.n_embd, c.n_embd, bias=c.bias)
        self.c = c

    def forward(self, x):
        y = self.c_proj(F.gelu(self.c_fc(x)))
        return F.dropout(y, self.c.dropout, self.training)


class Block(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        self.ln_1, self.attn = Norm(c), Attention(c)
        self.ln_2, self.mlp = Norm(c), FeedForward(c)

    def forward(self, x, past=None):
        x = x + self.attn(self.ln_1(x), past)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, c: GPTConfig):
        super().__init__()
        width = c.n_embd // 2 if c.double else c.n_embd
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(c.vocab_size, c.n_embd),
                "wpe": nn.Embedding(c.block_size, width),
                "h": nn.ModuleList(Block(c) for _ in range(c.n_layer)),
                "ln_f": Norm(c),
            }
        )
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        self.c = c
        for name, p in self.named_parameters():
            if p.dim() > 1:
                scale = (2 * c.n_layer) ** -0.5 if name.endswith("c_proj.weight") else 1
                nn.init.normal_(p, std=0.02 * scale)

    def embed(self, tokens, where):
        """where: position indices (own,) or (own, target), each [B, T] or [T]."""
        t = self.transformer
        return t.wte(tokens) + torch.cat([t.wpe(index) for index in where], -1)

    def forward(self, tokens, where=None, pasts=None):
        return self.lm_head(self.hidden(tokens, where, pasts))

    def hidden(self, tokens, where=None, pasts=None):
        """The last hidden states, which the head maps to logits."""
        if where is None:
            where = (torch.arange(tokens.shape[1]),)
        return self.blocks(self.embed(tokens, where), pasts)

    def blocks(self, x, pasts=None):
        """Maps embeddings to the last hidden states."""
        x = F.dropout(x, self.c.dropout, self.training)
        for index, block in enumerate(self.transformer.h):
            x = block(x, None if pasts is None else pasts[index])
        return self.transformer.ln_f(x)

    def loss(self, tokens, targets, where=None):
        logits = self(tokens, where)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def generate(self, tokens, where, end, temperature=1.0, cached=True):
        """Extends tokens [B, P] to [B, end], one by one, as an eager program does."""
        pasts = [[] for _ in self.transformer.h] if cached else None
        fed = 0
        while tokens.shape[1] < end:
            T = tokens.shape[1]
            at = slice(fed, T) if cached else slice(0, T)
            logits = self(tokens[:, at], tuple(i[:, at] for i in where), pasts)[:, -1]
            fed = T
            probabilities = (logits / temperature).softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(probabilities, 1)], 1)
        return tokens

    def adamw(self, weight_decay, lr, betas, **options):
        """AdamW with decay on matrices only."""
        groups = [
            {"params": [p for p in self.parameters() if p.dim() > 1]},
            {
                "params": [p for p in self.parameters() if p.dim() < 2],
                "weight_decay": 0,
            },
        ]
        settings = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        return torch.optim.AdamW(groups, **settings, **options)
