# SPDX-License-Identifier: MIT
"""Mixed precision: bfloat16, and float16 with a gradient scaler and steps that overflow."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from slow_cases import mark_rest_slow
from tiny_fits import ADAM, SGD, WEIGHTS, Events, Net, Watch, fit, loader, zeros

from regrow import MagnitudePruning, OneShot, Table


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("make", [SGD, ADAM])
def test_pruned_weights_are_zero_in_other_precisions(make, precision):
    watch = Watch() if precision == "bf16-mixed" else Events()
    pruning, module = MagnitudePruning(0.8, schedule=Table({"3it": 0.5, "9it": 0.8})), Net(make)
    fit(module, watch, pruning, precision=precision)
    assert watch.steps == [3, 9]
    assert sum(int((p == 0).sum()) for p in module.parameters()) == round(0.8 * WEIGHTS)


def half_precision():
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=128.0))


class Overflowing(Net):
    """Its loss is infinite at some batches, counted over the fit."""

    at = ()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if self.trained - 1 in self.at else loss


@pytest.mark.parametrize(
    "at", mark_rest_slow([(), (3,), (2, 3, 4), (0,), (15,)], [(), (2, 3, 4), (0,)])
)
@pytest.mark.parametrize("make", [SGD, ADAM])
def test_pruned_weights_are_zero_with_a_gradient_scaler(make, at):
    """Overflowing steps skip or repeat no event and change no pruned weight."""
    watch, pruning = Watch(), MagnitudePruning(0.8, schedule=Table({"3it": 0.5, "9it": 0.8}))
    module = Overflowing(make)
    module.at = at
    fit(module, watch, pruning, plugins=half_precision(), val=loader())
    assert watch.steps == [3, 9]
    assert zeros(module) == round(0.8 * WEIGHTS)


@pytest.mark.parametrize("criterion", ["taylor", "gradient"])
def test_a_gradient_criterion_waits_for_a_step_that_does_not_overflow(criterion):
    events, module = Events(), Overflowing()
    module.at = (3, 4)
    pruning = MagnitudePruning(0.5, schedule=Table({"3it": 0.25, "9it": 0.5}), criterion=criterion)
    fit(module, events, pruning, plugins=half_precision())
    assert events.seen == [(5, 0.25), (9, 0.5)]
    assert zeros(module) == WEIGHTS // 2


def test_movement_ignores_steps_that_overflow():
    module = Overflowing()
    module.at = (1, 4)
    pruning = MagnitudePruning(0.5, schedule=OneShot("8it"), criterion="movement")
    fit(module, pruning, plugins=half_precision())
    evidence = pruning.pruner.criterion.state_dict()
    assert all(tensor.isfinite().all() for tensor in evidence.values())
    assert zeros(module) == WEIGHTS // 2
