# SPDX-License-Identifier: MIT
"""The configuration of a cut network builds it, where fields can say its widths."""

from types import SimpleNamespace

import torch
from torch import nn

from regrow.channels import prune
from regrow.channels.model_config import configured_models, cut_config


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


def test_configuration_builds_the_cut_network():
    model, x = make()
    plan = prune(model, x, 0.5, distribution="uniform", round_to=1)
    config = cut_config(model, plan)
    assert vars(config) == vars(model.config) | {"width": 16, "heads": 2, "inner": 24}
    built = Model(config).double()
    built.load_state_dict(model.state_dict())
    assert torch.equal(built(x), model(x))


def test_layers_that_differ_have_no_configuration():
    model, x = make()
    assert cut_config(model, prune(model, x, 0.5, include=["blocks.0.up"], round_to=1)) is None


def test_configured_models_are_found_inside_others():
    model, x = make()
    outer = nn.ModuleDict({"net": model})
    assert [*configured_models(outer)] == ["net"]
    assert [*configured_models(model)] == [""]
    whole = nn.Sequential(model, nn.Linear(4, 2)).double()
    plan = prune(whole, x, 0.5, distribution="uniform", round_to=1)
    assert cut_config(model, plan, "0").inner == 24
