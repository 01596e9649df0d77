# SPDX-License-Identifier: MIT
"""Sparse training within a fit."""

import copy

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from tiny_fits import ADAM, SGD, WEIGHTS, Events, Net, fit, loader, weights, zeros
from torch import optim

from regrow import DynamicSparseTraining, SparseModelCheckpoint, SparsityMonitor
from regrow.profiling.metrics import MaskOverlap
from regrow.schedules.drop_fraction import drop_fraction_at

PLAIN = lambda parameters: optim.SGD(parameters, lr=0.1)  # noqa: E731
TIMES = {"every": "3it", "end": "12it"}
UPDATES = [0, 3, 6, 9]


def sparse(**settings):
    return DynamicSparseTraining(**({"sparsity": 0.8, "drop_fraction": 0.5} | TIMES | settings))


class Record(Events):
    """Masks and weights around each event, and what must hold at every step; put it first."""

    def __init__(self, pruning):
        super().__init__()
        self.pruning, self.batches, self.before, self.after = pruning, [], {}, {}

    def on_train_start(self, trainer, pl_module):
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: self.look(trainer, pl_module))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches = [] if batch_idx % trainer.accumulate_grad_batches == 0 else self.batches
        self.batches.append(batch)
        self.values = {name: p.clone() for name, p in weights(pl_module).items()}
        self.masks = dict(self.pruning.masks)

    def on_prune_event(self, trainer, pl_module, event):
        super().on_prune_event(trainer, pl_module, event)
        self.before[event.step] = self.masks, self.values, list(self.batches)
        self.after[event.step] = dict(event.pruner.masks)
        self.look(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.look(trainer, pl_module)

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.look(trainer, pl_module)

    def look(self, trainer, pl_module):
        """Counts by layer are those of the start, and zero is zero."""
        first, now = self.after[min(self.after)], self.pruning.masks
        for name, weight in weights(pl_module).items():
            assert int(now[name].sum()) == int(first[name].sum())
            assert not weight[~now[name]].view(torch.int32).any()
            for optimizer in trainer.optimizers:
                for key, value in optimizer.state[pl_module.get_parameter(name)].items():
                    if torch.is_tensor(value) and value.shape == weight.shape:
                        assert not value[~now[name]].any(), key


def by_hand(weight, mask, growth, share):
    """The new mask of one layer, by NumPy."""
    weight, mask, growth = (t.numpy().ravel() for t in (weight, mask, growth))
    live, after = np.flatnonzero(mask), mask.copy()
    count = round(share * len(live))
    after[live[np.argsort(np.abs(weight[live]), kind="stable")[:count]]] = False
    free = np.flatnonzero(~after)
    after[free[np.argsort(growth[free], kind="stable")[len(free) - count :]]] = True
    return after


def dense_gradients(module, values, batches):
    """Mean gradients of all weights over some batches, by autograd on a copy."""
    twin = copy.deepcopy(module)
    for name, value in values.items():
        twin.get_parameter(name).data = value.clone()
    twin.zero_grad()
    for batch in batches:
        (twin.loss(batch) / len(batches)).backward()
    return {name: twin.get_parameter(name).grad.abs() for name in values}


class InFloat(Net):
    """Computes in float32 also under autocast, so that scaling is all that differs."""

    def loss(self, batch):
        with torch.autocast("cpu", enabled=False):
            return super().loss(batch)


CONDITIONS = {
    "plain": {},
    "clipped": {"gradient_clip_val": 0.01},
    "scaled": {"plugins": lambda: MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))},
    "accumulated": {"accumulate_grad_batches": 2, "max_epochs": 4},
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_rigl_equals_a_manual_computation(condition):
    settings = {k: v() if callable(v) else v for k, v in CONDITIONS[condition].items()}
    pruning = sparse(include="body.*.weight")
    record, module, seen = Record(pruning), InFloat(PLAIN), {}

    class Biases(Events):  # they move too, and the gradient depends on them
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if not batch_idx % trainer.accumulate_grad_batches:
                seen[trainer.global_step] = copy.deepcopy(pl_module)

    fit(module, Biases(), record, pruning, **settings)
    assert record.steps == UPDATES
    for step in UPDATES[1:]:
        masks, values, batches = record.before[step]
        grads = dense_gradients(seen[step], values, batches)
        for name, mask in masks.items():
            share = drop_fraction_at(step, 12, 0.5)
            expected = by_hand(values[name], mask, grads[name], share)
            assert record.after[step][name].numpy().ravel().tolist() == expected.tolist()


@pytest.mark.parametrize("make", [SGD, ADAM])
@pytest.mark.parametrize("grow", ["gradient", "random", "momentum", "none"])
def test_counts_are_constant_and_pruned_weights_zero(grow, make):
    pruning = sparse(grow=grow)
    record, module = Record(pruning), Net(make)
    fit(module, record, pruning, val=loader())
    assert record.steps == (UPDATES if grow != "none" else [0])
    assert {after for _, after in record.seen} == {round(round(0.8 * WEIGHTS) / WEIGHTS, 6)}
    assert zeros(module) >= round(0.8 * WEIGHTS) == pruning.masks.pruned
    moved = [entry["moved"] for entry in pruning.history[1:]]
    assert all(moved[:-1])
    assert [entry["share"] for entry in pruning.history[1:]] == [
        drop_fraction_at(step, 12, 0.5) for step in record.steps[1:]
    ]


def test_the_very_first_step_is_sparse():
    seen = []

    class Looking(Net):
        def training_step(self, batch, batch_idx):
            seen.append(zeros(self))
            return super().training_step(batch, batch_idx)

    fit(Looking(), sparse())
    assert seen[0] == round(0.8 * WEIGHTS)


def test_growth_criteria_differ_and_only_momentum_stores_means():
    rules = {grow: sparse(grow=grow) for grow in ("gradient", "random", "momentum")}
    for pruning in rules.values():
        fit(Net(), pruning)
    assert len({pruning.masks.digest() for pruning in rules.values()}) == 3
    assert not rules["gradient"].pruner.state.momenta
    assert {*rules["momentum"].pruner.state.momenta} == {*weights(Net())}
    for seed in (0, 1):
        again = sparse(grow="random", seed=seed)
        fit(Net(), again)
        assert (again.masks.digest() == rules["random"].masks.digest()) == (seed == 0)


def test_gradient_momentum_uses_every_dense_gradient():
    seen, pruning = [], sparse(grow="momentum")

    class Dense(Events):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(pl_module.body[0].weight.grad.double().numpy().copy())

    fit(Net(), Dense(), pruning, gradient_clip_val=0.01)
    mean = np.zeros((16, 6))
    for grad in seen:
        mean = 0.9 * mean + 0.1 * grad
    np.testing.assert_allclose(
        pruning.pruner.state.momenta["body.0.weight"], mean, rtol=1e-4, atol=1e-7
    )
    kept = int(pruning.masks["body.0.weight"].sum())
    assert all(np.count_nonzero(grad) > kept for grad in seen)  # dense ones


def test_optimizer_step_of_an_update_can_be_skipped():
    pruning = sparse(skip_update=True)
    record, module, steps = Record(pruning), Net(ADAM), {}

    class After(Events):
        def on_train_batch_end(self, trainer, pl_module, *_):
            steps[trainer.global_step - 1] = (
                {name: p.clone() for name, p in weights(pl_module).items()},
                pl_module.body[0].bias.detach().clone(),
            )

    fit(module, record, pruning, After())
    for step in UPDATES[1:]:
        values, kept = steps[step - 1][0], record.after[step]
        for name, weight in steps[step][0].items():
            assert torch.equal(weight, values[name].where(kept[name], 0.0))
        assert torch.equal(steps[step][1], steps[step - 1][1])
        assert not torch.equal(steps[step + 1][1], steps[step][1])


def test_an_overflow_postpones_the_update():
    class Overflowing(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if self.trained - 1 in (0, 3, 4) else loss

    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    pruning = sparse(grow="momentum")
    record = Record(pruning)
    fit(Overflowing(), record, pruning, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    assert record.steps == [0, 5, 6, 9]
    assert all(mean.isfinite().all() for mean in pruning.pruner.state.momenta.values())


def test_overlap_and_explored_are_logged(tmp_path):
    pruning, monitor = sparse(), SparsityMonitor()
    record = Record(pruning)
    logger = CSVLogger(tmp_path, version="", name="")
    made = fit(Net(), record, pruning, monitor, logger=logger)
    ever = {name: mask.clone() for name, mask in record.after[0].items()}
    for step, entry in zip(UPDATES, pruning.history, strict=True):
        for name, mask in record.after[step].items():
            ever[name] |= mask
        explored = sum(int(mask.sum()) for mask in ever.values()) / WEIGHTS
        assert entry["explored"] == pytest.approx(explored)
        if step:
            overlap = MaskOverlap()
            overlap.update(record.before[step][0], record.after[step])
            assert entry["overlap"] == pytest.approx(float(overlap.compute()))
    last = pruning.history[-1]
    assert made.callback_metrics["pruning/overlap"] == pytest.approx(last["overlap"])
    assert made.callback_metrics["pruning/explored"] == pytest.approx(last["explored"])
    text = (tmp_path / "metrics.csv").read_text()
    assert str(pruning.history[1]["overlap"]) in text


def test_target_is_reached_from_the_first_step(tmp_path):
    pruning, reached = sparse(), []

    class Asking(Events):
        def on_train_batch_start(self, *_):
            reached.append(pruning.reached)

        def on_train_batch_end(self, *_):
            reached.append(pruning.reached)

    keeper = SparseModelCheckpoint(tmp_path, "epoch{epoch}", monitor="val/loss", save_top_k=-1)
    fit(Net(), Asking(), pruning, keeper, val=loader(), enable_checkpointing=True)
    assert not reached[0]
    assert all(reached[1:])
    assert len(list(tmp_path.glob("epoch*.ckpt"))) == 2
