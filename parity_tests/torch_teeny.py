"""teenyGPT's architecture in compact PyTorch, written from its README and the papers.

ALiBi, SwiGLU and LayerNorm on scaled_dot_product_attention; parameters are named as in
the original's state dicts.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class SwiGLU(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.w1, self.w2, self.w3 = (
            nn.Linear(width, width, bias=False) for _ in range(3)
        )

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, n_head: int, width: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        for letter in "qkvo":
            linear = nn.Linear(width, width, bias=False)
            setattr(self, f"linear_{letter}", linear)
        self.ffn = SwiGLU(width)
        self.n_head = n_head

    def forward(self, x, bias):
        B, T, D = x.shape
        h = self.norm_1(x)
        q, k, v = (
            linear(h).view(B, T, self.n_head, -1).transpose(1, 2)
            for linear in (self.linear_q, self.linear_k, self.linear_v)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + self.linear_o(y.transpose(1, 2).reshape(B, T, D))
        return x + self.ffn(self.norm_2(x))


class Teeny(nn.Module):
    def __init__(self, n_layer: int, n_head: int, width: int, block: int, vocab: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.attention_blocks = nn.ModuleDict(
            {f"attention_{i}": Block(n_head, width) for i in range(n_layer)}
        )
        self.unembedding = nn.Linear(width, vocab)
        slopes = 2.0 ** (-8 * torch.arange(1, n_head + 1) / n_head)
        at = torch.arange(block)
        distance = (at - at[:, None]).float()
        distance[distance > 0] = -torch.inf
        bias = slopes[:, None, None] * distance
        self.register_buffer("bias", bias, persistent=False)
        self.block = block

    def forward(self, tokens):
        T = tokens.shape[1]
        x = self.embedding(tokens)
        for block in self.attention_blocks.values():
            x = block(x, self.bias[:, :T, :T])
        return self.unembedding(x)

    def loss(self, tokens, targets):
        return F.cross_entropy(self(tokens).flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def generate(self, tokens, count: int):
        """Adds count tokens, each computed from the whole last block."""
        for _ in range(count):
            logits = self(tokens[:, -self.block :])[:, -1]
            drawn = torch.multinomial(logits.softmax(-1), 1)
            tokens = torch.cat([tokens, drawn], 1)
        return tokens
