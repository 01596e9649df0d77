# SPDX-License-Identifier: MIT
"""A transformer that is built from a configuration, as those of `transformers` are."""

from types import SimpleNamespace

import torch
from torch import nn


class Config(SimpleNamespace):
    def to_dict(self):
        return dict(vars(self))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.size = config.heads, config.head_size
        width = config.heads * config.head_size
        self.qkv, self.out = nn.Linear(config.width, 3 * width), nn.Linear(width, config.width)
        self.up, self.down = (
            nn.Linear(config.width, config.inner),
            nn.Linear(config.inner, config.width),
        )

    def forward(self, x):
        q, k, v = (
            y.unflatten(-1, (self.heads, self.size)).transpose(1, 2)
            for y in self.qkv(x).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(self.up(x).relu())


class Model(nn.Module):
    """Two blocks that share the fields of one configuration."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.first = nn.Linear(5, config.width)
        self.blocks = nn.Sequential(Block(config), Block(config))
        self.last = nn.Linear(config.width, config.labels)

    def forward(self, x):
        return self.last(self.blocks(self.first(x)))


def make():
    torch.manual_seed(0)
    config = Config(width=32, heads=4, head_size=8, inner=48, labels=4, dropout=0.1, bias=True)
    return Model(config).double(), torch.randn(2, 6, 5, dtype=torch.float64)
