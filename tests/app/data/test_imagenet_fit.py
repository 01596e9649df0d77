# SPDX-License-Identifier: MIT
"""A fit on image files, and an equal one that is resumed with other workers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted_fits import Cut
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from regrow.app.data.imagenet import ImageNet
from regrow.app.data.webdataset import ImageNetShards
from regrow.app.training.classifier import Classifier
from regrow.app.training.lr_schedules import cosine
from regrow.data.random_state import RandomState

pytestmark = pytest.mark.vision


def fit(
    root: Path, workers: int, *, cut: Path | None = None, resume: Path | None = None, **more: Any
) -> dict[str, Tensor]:
    torch.manual_seed(0 if resume is None else 99)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 3),
    )  # fmt: skip
    network = network.to(memory_format=torch.channels_last)
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    model = Classifier(network, sgd, cosine, num_classes=3, input_shape=(3, 16, 16))
    given = {"num_classes": 3, "size": 16, "resize": 20, "batch_size": 4, "seed": 3}
    given |= {"num_workers": workers, "transforms": "rand_augment"}
    data: ImageNet | ImageNetShards = ImageNet(root=str(root), val_size=6, **given)
    if not (root / "train").is_dir():
        shards = (f"{root}/train-*.tar", f"{root}/val-*.tar")
        data = ImageNetShards(*shards, epoch_samples=18, shuffle_buffer=4, **given)
    callbacks: list[Callback] = [RandomState()]
    if cut is not None:
        callbacks = [Cut(cut), RandomState()]
        callbacks.append(ModelCheckpoint(cut.parent, cut.stem, every_n_train_steps=7))
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=cut is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        **more,
    )
    if cut is None:
        trainer.fit(model, datamodule=data, ckpt_path=resume)
        assert trainer.global_step == 15
        [scores] = trainer.test(model, datamodule=data, verbose=False)
        assert scores["test/loss"] > 0
    else:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            trainer.fit(model, datamodule=data)
    return model.state_dict()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_do_not_depend_on_workers_or_a_resume(photographs: Path, tmp_path: Path) -> None:
    wanted = fit(photographs, workers=0)
    fit(photographs, workers=2, cut=tmp_path / "cut.ckpt")
    found = fit(photographs, workers=0, resume=tmp_path / "cut.ckpt")
    again = fit(photographs, workers=2, resume=tmp_path / "cut.ckpt")
    for name, value in wanted.items():
        assert torch.equal(value, found[name]), name
        assert torch.equal(value, again[name]), name


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_fit_on_shards_is_bit_exact(shards: Path, workers: int, tmp_path: Path) -> None:
    wanted = fit(shards, workers)
    fit(shards, workers, cut=tmp_path / "cut.ckpt")
    found = fit(shards, workers, resume=tmp_path / "cut.ckpt")
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fit_in_mixed_precision(photographs: Path) -> None:
    state = fit(photographs, workers=0, precision="bf16-mixed")
    assert all(value.isfinite().all() for value in state.values())
