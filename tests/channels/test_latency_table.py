# SPDX-License-Identifier: MIT
"""Latency tables interpolate between measured sizes."""

import json

import pytest
import torch
from torch import nn

import regrow.channels
from regrow.channels import LatencyTable
from regrow.utils.errors import ConfigError, DataError


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4))


def test_table_interpolates_each_layer():
    table = LatencyTable({"0": [(3, 4, 1.0), (3, 8, 3.0)], "3": [(64, 4, 0.5), (128, 4, 1.5)]})
    model = network()
    assert table(model) == pytest.approx(3.0 + 1.5)
    plan = regrow.channels.prune(model, torch.zeros(2, 3, 6, 6), 0.25)
    assert sum(plan.removed.values()) == 2
    # six of eight channels: half way between 12 and 24 products, and between 256 and 512
    assert table(model) == pytest.approx(2.0 + 1.0)


def test_measuring_covers_every_layer_and_leaves_the_model_unchanged():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = LatencyTable.measure(model, torch.zeros(2, 3, 6, 6), fractions=(0.5,), repeats=2)
    assert {*table.layers} == {"0", "3"}
    assert [row[:2] for row in table.layers["0"]] == [(2, 4), (3, 8)]
    assert table.batch == 2
    assert table(model) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[0].out_channels == 8


def test_saved_table_loads_equal(tmp_path):
    table = LatencyTable({"0": [(3, 8, 3.0)]}, device="a phone", batch=4)
    table.save(tmp_path / "table.json")
    assert json.loads((tmp_path / "table.json").read_text())["device"] == "a phone"
    again = LatencyTable.load(tmp_path / "table.json")
    assert (again.layers, again.device, again.batch) == (table.layers, "a phone", 4)


def test_table_serves_as_a_timer_for_a_budget():
    model = network()
    table = LatencyTable({"0": [(3, 1, 1.0), (3, 8, 8.0)]})
    regrow.channels.prune(model, torch.zeros(2, 3, 6, 6), of="latency", latency_ms=4.5, timer=table)
    assert 1 <= model[0].out_channels <= 4
    assert table(model) <= 4.5


@pytest.mark.parametrize("rows", [[], [(1, 2)], [(1, 2, 0.0)]])
def test_wrong_rows_raise(rows):
    with pytest.raises(ConfigError, match="inputs, outputs, milliseconds"):
        LatencyTable({"0": rows})


def test_table_of_another_model_raises(tmp_path):
    with pytest.raises(ConfigError, match="layer 'conv9'"):
        LatencyTable({"conv9": [(1, 1, 1.0)]})(network())
    with pytest.raises(DataError, match="no latency table"):
        LatencyTable.load(tmp_path / "none.json")
