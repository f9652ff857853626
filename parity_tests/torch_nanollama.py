"""nanollama's architecture in compact PyTorch, for the contract of its checkpoints.

Parameters and the buffer of RoPE's angles are named as in its two versions.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

NAMES = {False: ("qkv_mat", "output", "fc1", "fc2"), True: ("W_in", "W_out") * 2}


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)


class Pair(nn.Module):
    """Two linear layers by the names of a version."""

    def __init__(self, names, width, middle, inner):
        super().__init__()
        self.names = names
        for name, shape in zip(names, ((width, middle), (inner, width)), strict=True):
            setattr(self, name, nn.Linear(*shape, bias=False))

    def first(self, x):
        return getattr(self, self.names[0])(x)

    def second(self, x):
        return getattr(self, self.names[1])(x)


class Block(nn.Module):
    def __init__(self, names, heads, width, inner, length, theta):
        super().__init__()
        self.attn = Pair(names[:2], width, 3 * width, width)
        self.ffn = Pair(names[2:], width, 2 * inner, inner)
        self.attn_norm, self.ffn_norm = Norm(width), Norm(width)
        K = width // heads
        turns = (torch.arange(length) * 2 * math.pi)[:, None]
        angles = turns * (1.0 / theta ** (torch.arange(0, K, 2) / K))
        table = torch.stack((angles.cos(), angles.sin()), -1)
        self.attn.register_buffer("rope_modulator", table)
        self.heads = heads

    def turned(self, x):
        cos, sin = self.attn.rope_modulator[: x.shape[2]].unbind(-1)
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

    def forward(self, x):
        B, T, D = x.shape
        parts = self.attn.first(self.attn_norm(x)).chunk(3, -1)
        q, k, v = (a.view(B, T, self.heads, -1).transpose(1, 2) for a in parts)
        q, k = self.turned(q), self.turned(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn.second(y.transpose(1, 2).reshape(B, T, D))
        gate, value = self.ffn.first(self.ffn_norm(x)).chunk(2, -1)
        return x + self.ffn.second(F.silu(gate) * value)


class NanoLlama(nn.Module):
    def __init__(self, c, later=False):
        """c: a configuration of its earlier version."""
        super().__init__()
        width = c["emb_dim"]
        sizes = (c["nb_heads"], width, c["ffn_dim"], c["seq_len"], c["rope_theta"])
        self.embeddings = nn.Embedding(c["vocab_size"], width)
        self.layers = nn.ModuleList(
            Block(NAMES[later], *sizes) for _ in range(c["nb_layers"])
        )
        self.output = nn.Linear(width, c["vocab_size"], bias=False)
        self.output_norm = Norm(width)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)

    def forward(self, tokens):
        x = self.embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.output_norm(x))

    def loss(self, tokens):
        logits = self(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
