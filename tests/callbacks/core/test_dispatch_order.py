# SPDX-License-Identifier: MIT
"""The order of the callbacks in the list changes no weight, no mask and no history."""

import random

import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from tiny_fits import ADAM, Net, copied, equal, fit, loader, read, samples
from torch import optim

from regrow import (
    AccuracyBudget,
    DynamicSparseTraining,
    MagnitudePruning,
    RandomState,
    Regrow,
    Rewind,
    SparseEarlyStopping,
    SparseModelCheckpoint,
    SparsityMonitor,
    Table,
)
from regrow.data.tensor_loader import BatchLoader

LEVELS = Table({"3it": 0.4, "1ep": 0.6, "20it": 0.8})


class Scheduled(Net):
    def __init__(self):
        super().__init__(ADAM)

    def configure_optimizers(self):
        optimizer = optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [optim.lr_scheduler.MultiStepLR(optimizer, [1], 0.5)]


def common(folder):
    """Callbacks that check, save, stop and count."""
    return [
        SparsityMonitor(),
        RandomState(),
        LearningRateMonitor("step"),
        GradientAccumulationScheduler({2: 2}),
        ModelCheckpoint(folder / "all", filename="{step}", save_top_k=-1, every_n_train_steps=4),
        SparseModelCheckpoint(folder / "sparse", monitor="val/loss"),
        SparseEarlyStopping("val/loss", patience=1),
        EarlyStopping("val/loss", patience=50),
    ]


def gradual(folder):
    return [MagnitudePruning(0.8, schedule=LEVELS), Regrow("11it", 0.2), *common(folder)]


def ranked_by_gradients(folder):
    """Two pruners, regrowth by gradients, and rewinding: all at steps of their own."""
    return [
        MagnitudePruning(0.8, schedule=LEVELS, criterion="taylor", include="body.0"),
        MagnitudePruning(0.5, schedule=Table({"3it": 0.25, "1ep": 0.5}), include="body.2"),
        Regrow(["5it", "11it"], count=7, by="gradient", init="zero", names="body.0"),
        Rewind("2it"),
        *common(folder),
    ]


def at_one_step(folder):
    """Everything at the same step: two pruners over the same weights, and regrowth."""
    return [
        MagnitudePruning(0.5, schedule=Table({"4it": 0.3, "8it": 0.5})),
        MagnitudePruning(0.4, schedule=Table({"4it": 0.2, "8it": 0.4}), criterion="random",
                         include=["body.0", "body.2"]),
        Regrow(["8it", "12it"], fraction=0.2, init="removed", names="body.0"),
        *common(folder),
    ]  # fmt: skip


def budget(folder):
    return [
        MagnitudePruning(0.8, schedule=Table({"1ep": 0.3, "2ep": 0.6, "3ep": 0.8})),
        AccuracyBudget("val/loss", 0.05, mode="min", recover="4it"),
        Regrow("18it", count=5),
        *common(folder),
    ]


def sparse_training(folder):
    return [
        DynamicSparseTraining(0.8, every="3it", include="body.0"),
        MagnitudePruning(0.5, schedule=Table({"3it": 0.25, "1ep": 0.5}), include="body.2"),
        *common(folder),
    ]


def run(suite, folder, order):
    callbacks = suite(folder)
    tracked = [c for c in callbacks if isinstance(c, MagnitudePruning | DynamicSparseTraining)]
    torch.manual_seed(0)
    module = Scheduled()
    made = fit(
        module,
        *sorted(callbacks, key=lambda one: order[callbacks.index(one)]),
        data=BatchLoader(*samples().tensors, batch_size=4),
        val=loader(),
        max_epochs=5,
        enable_checkpointing=True,
        logger=CSVLogger(folder),
        log_every_n_steps=1,
    )
    files = sorted(path for path in folder.rglob("*.ckpt"))
    saved = {}
    for path in files:
        state = read(path)
        saved[str(path.relative_to(folder))] = state["state_dict"], state["optimizer_states"]
    return {
        "weights": copied(module),
        "masks": [dict(one.masks) for one in tracked],
        "history": [one.history for one in tracked],
        "step": made.global_step,
        "optimizer": made.optimizers[0].state_dict(),
        "files": saved,
    }


MANY = [pytest.param(suite, marks=pytest.mark.slow) for suite in (gradual, sparse_training)]


@pytest.mark.parametrize("suite", [ranked_by_gradients, at_one_step, budget, *MANY])
def test_order_of_callbacks_does_not_change_the_fit(suite, tmp_path):
    count = len(suite(tmp_path))
    first = run(suite, tmp_path / "0", range(count))
    assert any(entry["kind"] != "prune" for one in first["history"] for entry in one) or count == 10
    for seed in range(1, 5):
        order = random.Random(seed).sample(range(count), count) if seed > 1 else range(count, 0, -1)
        other = run(suite, tmp_path / str(seed), order)
        for what in first:
            assert equal(first[what], other[what]), f"{what}, {list(order)}"
