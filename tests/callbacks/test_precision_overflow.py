# SPDX-License-Identifier: MIT
"""Overflowing steps do not skip or repeat events: schedules, growth, sparse training."""

from functools import partial

import numpy as np
import pytest
import torch
from overflowing_fits import BiasOverflows, Steps, overflowing, scaled
from slow_cases import mark_rest_slow
from tiny_fits import ADAM, SGD, WEIGHTS, Events, Net, Watch, fit, loader, weights, zeros
from torch import optim

from regrow import Cubic, DynamicSparseTraining, MagnitudePruning, OneShot, Regrow, Table

SCHEDULES = {
    "it": Table({"3it": 0.3, "9it": 0.8}),
    "ep": Table({"1ep": 0.3, "2ep": 0.8}),
    "fraction": Cubic(0.25, 0.75, 0.125),
}
OVERFLOWS = {"at it": (8,), "before": (7,), "after": (9,), "many": (0, 7, 8, 9, 15, 16, 23)}


@pytest.mark.parametrize("times", SCHEDULES)
@pytest.mark.parametrize("at", mark_rest_slow(OVERFLOWS, ["at it", "many"]))
def test_overflow_does_not_move_events(times, at):
    """The clock is `trainer.global_step`, which skipped steps count in."""
    seen = []
    for steps in ((), OVERFLOWS[at]):
        watch, counted = Watch(), Steps()
        module, pruning = overflowing(*steps), MagnitudePruning(0.8, schedule=SCHEDULES[times])
        made = fit(module, watch, counted, pruning, max_epochs=3, val=loader(2), **scaled())
        assert counted.made == 24 - len(steps)
        assert made.global_step == 24
        seen.append(watch.seen)
        assert zeros(module) == round(0.8 * WEIGHTS)
    assert seen[0] == seen[1]
    assert len(seen[0]) >= 2


@pytest.mark.parametrize("at", mark_rest_slow([(3,), (0, 4), (1, 2, 3, 7)], [(1, 2, 3, 7)]))
@pytest.mark.parametrize("make", [SGD, ADAM, partial(optim.Adam, lr=0.01, fused=True)])
def test_events_are_unaffected_by_overflow_with_accumulation(at, make):
    watch, module = Watch(), overflowing(*at, make=make)
    pruning = MagnitudePruning(0.8, schedule=Table({"1it": 0.4, "3it": 0.8}))
    made = fit(module, watch, pruning, accumulate_grad_batches=2, **scaled())
    assert watch.steps == [1, 3]
    assert made.global_step == 8
    assert zeros(module) == round(0.8 * WEIGHTS)


@pytest.mark.parametrize("criterion", ["taylor", "movement"])
def test_overflow_outside_the_pruned_weights_postpones_too(criterion):
    """The step is skipped because of a bias; its gradients are not ranked."""
    module, counted, events = BiasOverflows(SGD), Steps(), Events()
    module.at = (4, 5)
    pruning = MagnitudePruning(0.5, schedule=OneShot("4it"), criterion=criterion)
    fit(module, counted, events, pruning, **scaled())
    assert counted.made == 14
    assert events.seen == [(6, 0.5)]


def test_movement_accumulates_unscaled_gradients_of_a_fused_step():
    """Lightning leaves them scaled there; the scale grows, so sums of them would be no sums."""
    runs = []
    for fused in (True, False):
        pruning = MagnitudePruning(0.5, schedule=OneShot("7it"), criterion="movement")
        module = overflowing(1, make=partial(optim.SGD, lr=0.1, fused=fused))
        fit(module, pruning, max_epochs=1, **scaled(growth=2))
        runs.append(pruning.pruner.criterion.state_dict())
    for name, sums in runs[0].items():
        torch.testing.assert_close(sums, runs[1][name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("make", [SGD, partial(optim.AdamW, lr=0.01, fused=True)])
@pytest.mark.parametrize("skip", [False, True])
def test_growth_by_gradient_waits_for_finite_gradients(make, skip):
    """RigL's update, due at an overflow, comes at the next step, by that one's gradients."""
    counted, events, module = Steps(), Events(), overflowing(4, 5, make=make)
    training = DynamicSparseTraining(
        0.8, every="4it", end=1.0, distribution="uniform", skip_update=skip
    )
    fit(module, counted, events, training, max_epochs=1, **scaled())
    assert events.steps == [0, 6]
    assert zeros(module) == round(0.8 * 96) + round(0.8 * 48)
    [_, moved] = training.history
    for name, mask in training.masks.items():
        before, dense = counted.weights[6][name].numpy(), counted.dense[6][name].numpy()
        alive = np.flatnonzero(before.ravel())
        drop = round(moved["share"] * len(alive))
        order = np.argsort(np.abs(before.ravel()[alive]), kind="stable")
        stay = set(alive[order[drop:]].tolist())
        free = [i for i in np.argsort(-np.abs(dense.ravel()), kind="stable") if i not in stay]
        assert set(np.flatnonzero(mask.numpy())) == stay | set(free[:drop])


@pytest.mark.parametrize("grow", ["momentum", "random"])
def test_other_growth_continues_during_overflow(grow):
    module, events = overflowing(0, 4, 9), Events()
    training = DynamicSparseTraining(0.8, every="4it", end=1.0, grow=grow)
    fit(module, events, training, **scaled())
    assert events.steps == ([0, 5, 8, 12] if grow == "momentum" else [0, 4, 8, 12])
    assert all(mean.isfinite().all() for mean in training.pruner.state.momenta.values())
    assert training.pruner.pruned == round(0.8 * WEIGHTS)


def test_regrowth_by_gradient_waits_too():
    events, module = Events(), overflowing(6, 7, make=ADAM)
    pruning = MagnitudePruning(0.8, schedule=OneShot("2it"))
    fit(module, events, pruning, Regrow("6it", count=10, by="gradient", init="zero"), **scaled())
    assert events.steps == [2, 8]
    assert pruning.pruner.pruned == round(0.8 * WEIGHTS) - 10


def test_infinite_gradients_without_a_scaler_are_no_overflow():
    """bfloat16 has no scaler: nothing skips the step, so nothing waits."""
    events, module = Events(), Net(SGD)
    pruning = MagnitudePruning(0.5, schedule=OneShot("4it"), criterion="taylor")
    fit(module, events, pruning, precision="bf16-mixed")
    assert events.seen == [(4, 0.5)]
    assert all(p.isfinite().all() for p in weights(module).values())
