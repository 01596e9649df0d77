# SPDX-License-Identifier: MIT
"""An interrupted and resumed run equals the uninterrupted run exactly."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted_fits import Cut
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from slow_cases import mark_rest_slow
from torch import nn

from regrow.app.data.digits import Digits
from regrow.app.models.digits_cnn import DigitsCNN
from regrow.app.training.classifier import Classifier
from regrow.app.training.lr_schedules import cosine
from regrow.data.random_state import RandomState

torch.set_num_threads(1)

BATCHES = 10  # 1257 training samples in batches of 128
EPOCHS = 3


class Batches(Callback):
    """Remembers the labels of every batch that was trained on."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, _: int) -> None:
        self.seen.append(batch[1].tolist())


def run(
    folder: Path, save: dict[str, Any], *, cut: bool = False, resume: Path | None = None, **kw: Any
) -> tuple[Trainer, Classifier, list[list[int]]]:
    seed_everything(1 if resume is None else 99, verbose=False)
    dropout = kw.pop("dropout", 0.0)
    network = nn.Sequential(DigitsCNN(num_classes=16), nn.Dropout(dropout), nn.Linear(16, 10))
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = cosine if kw.pop("scheduler", True) else None
    model = Classifier(network, sgd, scheduler, num_classes=10)
    data = Digits(batch_size=128, val_size=180, augment="crop_flip", seed=3)
    batches = Batches()
    callbacks = [batches, RandomState()]
    if cut or save:
        callbacks.append(ModelCheckpoint(folder, filename="cut", save_top_k=1, **save))
    if cut:
        callbacks.insert(0, Cut(folder / "cut.ckpt"))
    trainer = Trainer(
        max_epochs=kw.pop("max_epochs", EPOCHS),
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=bool(save),
        enable_progress_bar=False,
        enable_model_summary=False,
        **kw,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if cut:
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                trainer.fit(model, datamodule=data, ckpt_path=resume)
        else:
            trainer.fit(model, datamodule=data, ckpt_path=resume)
    return trainer, model, batches.seen


def assert_same(whole: tuple[Any, ...], resumed: tuple[Any, ...], skipped: int) -> None:
    assert resumed[2] == whole[2][skipped:]
    for (name, old), new in zip(
        whole[1].state_dict().items(), resumed[1].state_dict().values(), strict=True
    ):
        assert torch.equal(old, new), name
    old_state = whole[0].optimizers[0].state_dict()
    new_state = resumed[0].optimizers[0].state_dict()
    assert old_state["param_groups"] == new_state["param_groups"]
    for key, buffers in old_state["state"].items():
        for name, value in buffers.items():
            assert torch.equal(value, new_state["state"][key][name]), (key, name)


OFTEN = (
    *("epoch end", "validation end", "middle of the second epoch", "last batch of an epoch"),
    *("accumulation over an odd end", "before a validation in mid-epoch"),
    *("new loaders every epoch", "bounded by steps alone", "dropout, mid-epoch"),
)
CASES = {
    "epoch end": ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, {}, 10),
    "validation end": ({"every_n_epochs": 1, "save_on_train_epoch_end": False}, {}, 10),
    "middle of the first epoch": ({"every_n_train_steps": 4}, {}, 4),
    "middle of the second epoch": ({"every_n_train_steps": 13}, {}, 13),
    "last batch of an epoch": ({"every_n_train_steps": 10}, {}, 10),
    "accumulation": ({"every_n_train_steps": 7}, {"accumulate_grad_batches": 2}, 14),
    "accumulation over an odd end": (
        {"every_n_train_steps": 6},
        {"accumulate_grad_batches": 3},
        16,
    ),
    "before a validation in mid-epoch": (
        {"every_n_train_steps": 5},
        {"val_check_interval": 0.5},
        5,
    ),
    "between validations": ({"every_n_train_steps": 12}, {"val_check_interval": 0.5}, 12),
    "after a validation in mid-epoch": (
        {"monitor": "val/loss", "save_on_train_epoch_end": False},
        {"val_check_interval": 0.5},
        5,
    ),
    "no schedule": ({"every_n_train_steps": 13}, {"scheduler": False}, 13),
    "fewer batches": ({"every_n_train_steps": 9}, {"limit_train_batches": 6}, 9),
    "new loaders every epoch": (
        {"every_n_train_steps": 13},
        {"reload_dataloaders_every_n_epochs": 1},
        13,
    ),
    "bounded by steps": ({"every_n_train_steps": 13}, {"max_steps": 25}, 13),
    "bounded by steps, last batch": ({"every_n_train_steps": 10}, {"max_steps": 25}, 10),
    "bounded by steps alone": (
        {"every_n_train_steps": 13},
        {"max_steps": 25, "max_epochs": -1},
        13,
    ),
    "bounded by steps alone, epoch end": (
        {"every_n_epochs": 1},
        {"max_steps": 25, "max_epochs": -1},
        10,
    ),
    "dropout, epoch end": ({"every_n_epochs": 1}, {"dropout": 0.3}, 10),
    "dropout, mid-epoch": ({"every_n_train_steps": 13}, {"dropout": 0.3}, 13),
    "dropout, accumulation": (
        {"every_n_train_steps": 7},
        {"accumulate_grad_batches": 2, "dropout": 0.3},
        14,
    ),
}


@pytest.mark.parametrize("case", mark_rest_slow(CASES, OFTEN))
def test_resumed_run_is_the_uninterrupted_run(case: str, tmp_path: Path) -> None:
    save, arguments, skipped = CASES[case]
    whole = run(tmp_path / "whole", save, **arguments)
    run(tmp_path / "cut", save, cut=True, **arguments)
    resumed = run(tmp_path / "resumed", save, resume=tmp_path / "cut" / "cut.ckpt", **arguments)
    assert_same(whole, resumed, skipped)


@pytest.mark.parametrize("bound", [{}, {"max_steps": 25, "max_epochs": -1}])
def test_run_interrupted_twice_resumes_exactly(bound: dict[str, int], tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", {}, dropout=0.3, **bound)
    first, second = tmp_path / "first", tmp_path / "second"
    run(first, {"every_n_epochs": 1}, cut=True, dropout=0.3, **bound)
    run(
        second,
        {"every_n_train_steps": 17},
        cut=True,
        resume=first / "cut.ckpt",
        dropout=0.3,
        **bound,
    )
    resumed = run(tmp_path / "resumed", {}, resume=second / "cut.ckpt", dropout=0.3, **bound)
    assert_same(whole, resumed, 17)


def test_fit_after_an_evaluation_starts_at_the_beginning(tmp_path: Path) -> None:
    """An evaluation loads the data module's position too; a new fit must not go on from there."""
    run(tmp_path, {"every_n_train_steps": 4}, cut=True)
    seed_everything(0, verbose=False)
    network = nn.Sequential(DigitsCNN(num_classes=16), nn.Dropout(), nn.Linear(16, 10))
    model = Classifier(network, partial(torch.optim.SGD, lr=0.1), num_classes=10)
    data = Digits(batch_size=128, val_size=180)
    batches = Batches()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[batches, RandomState()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.validate(model, datamodule=data, ckpt_path=tmp_path / "cut.ckpt", verbose=False)
    trainer.fit(model, datamodule=data)
    assert len(batches.seen) == BATCHES
