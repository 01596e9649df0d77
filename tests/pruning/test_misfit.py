# SPDX-License-Identifier: MIT
"""Layers whose shape no group of n:m, or no block, divides: raised or skipped, all at once."""

import warnings

import pytest
import torch
from torch import nn

import regrow
from regrow import ConfigError, DynamicSparseTraining, MagnitudePruning, OneShot, Pruner
from regrow.pruning.config import PruningConfig


def network():
    """Inputs of 3 and 10 are no multiples of 4; 16 and 8 are."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(16, 10), nn.Linear(10, 8), nn.Linear(8, 4))


FITTING = ["1.weight", "3.weight"]
MISFITS = ["0.weight", "2.weight"]


def test_all_misfits_are_named_at_once_and_the_advice_works():
    with pytest.raises(ConfigError, match="2:4") as raised:
        regrow.prune(network(), 0.5, granularity="2:4")
    message = str(raised.value)
    assert all(name in message for name in MISFITS)
    assert "on_misfit='skip'" in message
    assert f"exclude={MISFITS}" in message
    masks = regrow.prune(network(), 0.5, granularity="2:4", exclude=MISFITS)
    assert [*masks] == FITTING


@pytest.mark.parametrize(("granularity", "fits"), [("2:4", FITTING), ("block:4x4", ["3.weight"])])
def test_skipped_layers_stay_dense_and_are_listed_once(granularity, fits):
    net = network()
    before = {name: p.detach().clone() for name, p in net.named_parameters() if p.dim() > 1}
    with pytest.warns(UserWarning, match="stay dense") as seen:
        masks = regrow.prune(net, 0.5, granularity=granularity, on_misfit="skip")
    [message] = [str(w.message) for w in seen if "stay dense" in str(w.message)]
    assert [*masks] == fits
    for name, old in before.items():
        if name in fits:
            assert int((net.get_parameter(name) == 0).sum()) == old.numel() // 2
        else:
            assert name in message
            assert torch.equal(net.get_parameter(name), old)


def test_reason_appears_in_the_table():
    with pytest.warns(UserWarning, match="stay dense"):
        pruner = Pruner(network(), PruningConfig(granularity="2:4", on_misfit="skip"))
    reasons = pruner.state.selection.reasons
    assert all("2:4 does not divide its shape" in reasons[name] for name in MISFITS)
    assert pruner.total == 16 * 10 + 8 * 4
    with pytest.raises(ConfigError, match="names pattern '0' matches no parameter"):
        pruner.named("0")


def test_layer_targets_match_only_layers_that_fit():
    config = PruningConfig(granularity="2:4", on_misfit="skip", layers={"3": 0.0})
    with pytest.warns(UserWarning, match="stay dense"):
        pruner = Pruner(network(), config)
    pruner.prune_to(0.5)
    assert pruner.densities == {"1.weight": 0.5, "3.weight": 1.0}


def test_skipping_every_layer_raises():
    with pytest.raises(ConfigError, match="nothing is left to prune"):
        regrow.prune(nn.Linear(3, 3), 0.5, granularity="2:4", on_misfit="skip")


@pytest.mark.filterwarnings("error")
def test_no_warning_if_all_layers_fit():
    masks = regrow.prune(nn.Linear(4, 4), 0.5, granularity="2:4", on_misfit="skip")
    assert masks["weight"].sum(1).tolist() == [2] * 4
    net = network()
    assert regrow.prune(net, 0.5, on_misfit="skip").keys() == {
        name for name, parameter in net.named_parameters() if name.endswith("weight")
    }


def test_callbacks_pass_on_misfit_to_the_pruner():
    for callback in (
        MagnitudePruning(0.5, schedule=OneShot(0), granularity="2:4", on_misfit="skip"),
        DynamicSparseTraining(0.5, grow="none", granularity="2:4", on_misfit="skip"),
    ):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            callback.attach(network())
        assert any("0.weight" in str(w.message) for w in seen)
        assert [*callback.masks] == FITTING
    with pytest.raises(ConfigError, match="on_misfit must be one of raise, skip, got 'pad'"):
        MagnitudePruning(0.5, granularity="2:4", on_misfit="pad")


def test_state_of_a_pruner_with_skipped_layers_loads():
    config = PruningConfig(granularity="2:4", on_misfit="skip")
    with pytest.warns(UserWarning, match="stay dense"):
        first, second = Pruner(network(), config), Pruner(network(), config)
    first.prune_to(0.5)
    second.load_state_dict(first.state_dict())
    assert second.masks.digest() == first.masks.digest()
