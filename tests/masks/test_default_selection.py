# SPDX-License-Identifier: MIT
"""Every weight of a linear map is pruned by default; patterns and advice select what they say."""

import re

import pytest
import torch
from torch import nn

import regrow
from regrow.masks.targets import select_targets
from regrow.utils.errors import ConfigError


def chosen(model, **patterns):
    return [target.name for target in select_targets(model, **patterns).targets]


@pytest.mark.parametrize(
    ("layer", "weights"),
    [
        (
            nn.LSTM(4, 6, num_layers=2, bidirectional=True, proj_size=3),
            [
                f"{kind}_l{level}{end}"
                for level in (0, 1)
                for end in ("", "_reverse")
                for kind in ("weight_ih", "weight_hh", "weight_hr")
            ],
        ),
        (nn.GRU(4, 6), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.RNN(4, 6), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.LSTMCell(4, 6), ["weight_ih", "weight_hh"]),
        (nn.MultiheadAttention(8, 2), ["in_proj_weight", "out_proj.weight"]),
        (
            nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True),
            ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"],
        ),
        (nn.Embedding(5, 4), None),
        (nn.LayerNorm(4), None),
    ],
)
def test_weights_of_linear_maps_are_pruned_by_default(layer, weights):
    net = nn.ModuleDict({"layer": layer, "fc": nn.Linear(4, 2)})
    expected = [f"layer.{name}" for name in weights or []]
    assert chosen(net) == [*expected, "fc.weight"]


def test_recurrent_network_reaches_the_target_sparsity():
    net = nn.ModuleDict({"lstm": nn.LSTM(8, 32), "fc": nn.Linear(32, 2)})
    masks = regrow.prune(net, 0.9)
    weights = [p for name, p in net.named_parameters() if "bias" not in name]
    zero = sum(int((p == 0).sum()) for p in weights)
    assert zero == masks.pruned == round(0.9 * sum(p.numel() for p in weights))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.att = nn.MultiheadAttention(8, 2)
        self.lstm = nn.LSTM(4, 6)
        self.norm = nn.LayerNorm(8)
        self.emb, self.pos = nn.Embedding(7, 8), nn.Embedding(9, 8)
        self.scale = nn.Parameter(torch.ones(8, 8))


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        (["*in_proj_weight"], ["att.in_proj_weight"]),
        (["lstm.weight_*"], ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]),
        (["att"], ["att.in_proj_weight", "att.out_proj.weight"]),
        (["lstm"], ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]),
    ],
)
def test_patterns_select_every_matching_parameter(include, expected):
    assert chosen(Attention(), include=include) == expected


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        (["emb"], ["emb.weight"]),
        (["emb", "pos"], ["emb.weight"]),
        (["*mb*"], ["emb.weight"]),
        (["emb*", "att"], ["emb.weight"]),
        (["[ep]*s"], ["pos.weight"]),
        (["?[mo]?"], ["emb.weight", "pos.weight"]),
        (["norm"], ["norm.weight", "norm.bias"]),
    ],
)
def test_following_the_message_selects_the_intended_parameters(pattern, wanted):
    with pytest.raises(ConfigError) as error:
        select_targets(Attention(), include=pattern)
    advice = re.search(r"write (?:include=)?\[(.*?)\]", str(error.value))
    names = re.findall(r"'([^']+)'", advice[1])
    assert chosen(Attention(), include=names) == wanted


def test_first_pattern_selects_every_weight_of_the_first_layer():
    net = nn.ModuleDict({"lstm": nn.LSTM(4, 6), "fc": nn.Linear(6, 2)})
    assert chosen(net, include=["@first"]) == ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    assert chosen(net, include=["@last"]) == ["fc.weight"]


def test_prunable_fraction_of_all_parameters():
    selection = select_targets(Attention())
    weights = 24 * 8 + 8 * 8 + 24 * 4 + 24 * 6
    assert selection.prunable == weights
    assert selection.total == sum(p.numel() for p in Attention().parameters())
