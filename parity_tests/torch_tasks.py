"""The transformer of σ-GPT's tasks in compact PyTorch, written from its description.

Sinusoids of two positions, keys of their own width, ReLU, no bias in attention, no
last norm, logits from a matrix of their own. The token `vocab` is read first, at
position -1.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, n_head: int, width: int, key_width: int):
        super().__init__()
        self.sizes = [n_head * key_width, n_head * key_width, width]
        self.qkv = nn.Linear(width, sum(self.sizes), bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.n_head = n_head

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, -1).transpose(1, 2)
            for part in self.qkv(x).split(self.sizes, 2)
        )
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        later = torch.ones(T, T, dtype=torch.bool).triu(1)
        y = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    def __init__(self, n_head: int, width: int, key_width: int, hidden: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(n_head, width, key_width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        x = x + self.attn(self.norm_1(x))
        return x + self.down(F.relu(self.up(self.norm_2(x))))


class TaskGPT(nn.Module):
    def __init__(self, n_layer, n_head, width, vocab, key_width, hidden):
        super().__init__()
        self.embedding = nn.Embedding(vocab + 1, width)
        self.blocks = nn.ModuleList(
            Block(n_head, width, key_width, hidden) for _ in range(n_layer)
        )
        self.readout = nn.Linear(width, vocab)
        self.width = width

    def forward(self, tokens, where):
        """where: positions (own, target), each [B, T]."""
        x = self.embedding(tokens)
        x = x + torch.cat([self.sinusoids(index) for index in where], -1).to(x)
        for block in self.blocks:
            x = block(x)
        return self.readout(x)

    def sinusoids(self, position):
        """Sines and cosines in turn [B, T, D / 2]; exponents go to half of 1e5's."""
        exponent = torch.arange(0, self.width // 2, 2).double() / self.width
        angle = position[..., None] / 1e5**exponent
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)
