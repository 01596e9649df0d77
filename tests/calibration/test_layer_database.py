# SPDX-License-Identifier: MIT
"""Records of single layers, against layers pruned and refitted by NumPy."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from regrow.calibration import layer_database
from regrow.calibration.calibrate import calibrated_layers
from regrow.calibration.layer_database import LayerRecord, record_layers
from regrow.calibration.moments import Data, order_layers
from regrow.utils.errors import ConfigError


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))


def inputs():
    return [torch.randn(64, 6, generator=torch.Generator().manual_seed(2)) + 0.5]


def layers_of(model):
    return order_layers(model, calibrated_layers(model, None, None), inputs()[:1], all_run=True)


def squared_error(model, dense):
    x = torch.cat(inputs())
    with torch.no_grad():
        return float((model(x) - dense(x)).double().square().sum())


def test_losses_are_those_of_a_layer_refitted_by_lstsq():
    model, dense = network(), network()
    rows = record_layers(
        model, layers_of(model), Data(inputs()), (0.25, 0.5, 0.75),
        lambda: squared_error(model, dense), criterion="magnitude", damping=1e-8,
    )  # fmt: skip
    first, last = rows
    x = torch.cat(inputs()).double().numpy()
    for record, given in (
        (first, x),
        (last, np.maximum(dense[0](torch.cat(inputs())).detach().double().numpy(), 0)),
    ):
        weight = record.layer.weight.detach().double().numpy()
        order = np.argsort(np.abs(weight).ravel(), kind="stable")
        for sparsity, loss in zip(record.sparsities[1:], record.losses[1:], strict=True):
            keep = np.ones(weight.size, bool)
            keep[order[: round(sparsity * weight.size)]] = False
            keep = keep.reshape(weight.shape)
            assert np.array_equal(record.mask(sparsity).numpy(), keep)
            by_hand = copy.deepcopy(dense)
            biased = record is first
            layer = by_hand[0 if biased else 2]
            goal = given @ weight.T + (layer.bias.detach().double().numpy() if biased else 0)
            for row in range(len(weight)):
                columns = given[:, keep[row]]
                if biased:
                    columns = np.hstack([columns, np.ones((len(given), 1))])
                found = np.linalg.lstsq(columns, goal[:, row], rcond=None)[0]
                with torch.no_grad():
                    layer.weight[row] = 0
                    layer.weight[row, torch.from_numpy(keep[row])] = torch.from_numpy(
                        found[: keep[row].sum()]
                    ).float()
                    if biased:
                        layer.bias[row] = float(found[-1])
            assert loss == pytest.approx(squared_error(by_hand, dense), rel=1e-3, abs=1e-6)


def test_the_model_is_restored_and_memory_for_one_layer_suffices(monkeypatch):
    found, model, dense = {}, network(), network()
    for memory in (2**30, 1):
        monkeypatch.setattr(layer_database, "MEMORY", memory)
        rows = record_layers(
            model, layers_of(model), Data(inputs()), (0.5,), lambda: squared_error(model, dense)
        )
        found[memory] = [(record.layer.name, record.losses) for record in rows]
        for name, value in model.state_dict().items():
            assert torch.equal(value, dense.state_dict()[name])
    assert found[1] == found[2**30]
    assert [name for name, _ in found[1]] == ["0.weight", "2.weight"]


def test_layers_are_in_the_order_in_which_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first, self.unused = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return self.last(self.first(x))

    model = Backwards()
    layers = calibrated_layers(model, None, ["unused"])
    names = [layer.name for layer in order_layers(model, layers, [torch.zeros(1, 4)], all_run=True)]
    assert names == ["first.weight", "last.weight"]
    with pytest.raises(ConfigError, match=r"unused.weight is not used"):
        order_layers(model, calibrated_layers(model, None, None), [torch.zeros(1, 4)], all_run=True)


def test_interpolation_keeps_the_records_and_rises_between_them():
    layer = layers_of(network())[0]
    record = LayerRecord(layer, torch.zeros(8, 6), (0.0, 0.5, 0.75, 0.9), (0.0, 0.1, 0.05, 2.0))
    fine = record.interpolated(4)
    assert fine.sparsities[::4] == pytest.approx(record.sparsities)
    assert fine.losses[::4] == pytest.approx((0.0, 0.1, 0.1, 2.0))  # a lower loss later is chance
    assert len(fine.losses) == len(fine.sparsities) == 13
    assert [*fine.losses] == sorted(fine.losses)
    ratios = [(1 - b) / (1 - a) for a, b in zip(fine.sparsities, fine.sparsities[1:], strict=False)]
    assert ratios[:4] == pytest.approx([0.5**0.25] * 4)
    assert fine.losses[10] == pytest.approx(0.1 * 20**0.5)
