# SPDX-License-Identifier: MIT
"""Sparse training in other kinds of fits, and with other callbacks."""

from functools import partial

import pytest
import torch
from tiny_fits import WEIGHTS, Events, Net, fit, weights

from regrow import DynamicSparseTraining, MagnitudePruning, OneShot, SparsityMonitor
from regrow.schedules.drop_fraction import drop_fraction_at

UPDATES = [0, 3, 6, 9]
TIMES = {"every": "3it", "end": "12it"}
sparse = partial(DynamicSparseTraining, **{"sparsity": 0.8, "drop_fraction": 0.5}, **TIMES)


def test_a_second_fit_continues_moving_masks():
    pruning, module = sparse(), Net()
    fit(module, pruning)
    drawn = dict(pruning.masks)
    fit(module, pruning)
    assert [entry["step"] for entry in pruning.history] == [*UPDATES, 3, 6, 9]
    assert not torch.equal(pruning.masks["body.0.weight"], drawn["body.0.weight"])
    assert pruning.history[4]["share"] == drop_fraction_at(3, 12, 0.5)


def test_manually_restored_weights_are_pruned_again():
    pruning, events = sparse(), Events()

    class ByHand(Events):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 4:
                pruning.regrow(0.5)

    fit(Net(), events, ByHand(), pruning)
    assert events.steps == [0, 3, 4, 6, 9]
    assert [entry["kind"] for entry in pruning.history] == [
        "prune", "drop_and_grow", "regrow", "prune", "drop_and_grow",
    ]  # fmt: skip
    assert pruning.schedule_done
    assert pruning.masks.pruned == round(0.8 * WEIGHTS)


def test_init_original_uses_values_of_the_fits_start():
    """By hand before the first draw, or before the fit: growth still knows what to write."""

    class ByHand(Events):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 0 and not pruning.history:
                pruning.prune_to(0.5)

    module, pruning = Net(), sparse(init="original", grow="random")
    start = {name: p.clone() for name, p in weights(module).items()}
    fit(module, ByHand(), pruning)
    assert [entry["kind"] for entry in pruning.history[:2]] == ["prune", "prune"]
    assert all(torch.equal(start[name], p) for name, p in pruning.pruner.state.originals.items())
    module, pruning = Net(), sparse(init="original", grow="random")
    pruning.attach(module)
    pruning.prune_to(0.5)
    fit(module, pruning)
    assert [entry["kind"] for entry in pruning.history[2:]] == ["drop_and_grow"] * 3


def test_dry_run_zero_sparsity_and_zero_epochs_work():
    pruning = sparse()
    fit(Net(), pruning, fast_dev_run=True)
    assert [entry["kind"] for entry in pruning.history] == ["prune"]
    nothing = sparse(sparsity=0)
    fit(Net(), nothing)
    assert nothing.schedule_done
    assert nothing.history == []
    untrained = sparse()
    fit(Net(), untrained, max_epochs=0)
    assert untrained.history == []


def test_masks_move_under_manual_optimisation():
    class Manual(Net):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    pruning = sparse()
    events = Events()
    fit(Manual(), events, pruning)
    assert events.steps == UPDATES


def test_works_beside_another_pruner():
    one, other = sparse(include="body.0"), MagnitudePruning(
        0.5, schedule=OneShot("5it"), criterion="taylor", include="body.2"
    )  # fmt: skip
    fit(Net(), one, other, SparsityMonitor())
    assert (one.masks.pruned, other.masks.pruned) == (77, 24)


def test_static_masks_support_parameter_groups():
    pruning, module = sparse(sparsity=0.5, grow="none", granularity="2:4", include="body.2"), Net()
    fit(module, pruning)
    assert ((module.body[2].weight != 0).view(3, 4, 4).sum(2) == 2).all()


@pytest.mark.parametrize("grow", ["gradient", "momentum", "random"])
def test_an_update_by_gradients_waits_for_a_batch_that_is_not_skipped(grow):
    class Skips(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if self.trainer.global_step in (3, 4) else loss

    pruning = sparse(grow=grow)
    fit(Skips(), pruning)
    steps = [entry["step"] for entry in pruning.history]
    assert steps == [0, 3 if grow == "random" else 5, 6, 9]
