# SPDX-License-Identifier: MIT
"""Reading and augmentation in a fit, and in an interrupted and resumed one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from regrow.app.data.cifar import CIFAR10, CIFAR100
from regrow.app.training.classifier import Classifier
from regrow.app.training.lr_schedules import cosine
from regrow.data import tensor_loader as loader_module

pytestmark = pytest.mark.vision
STEPS = [{"crop_flip": 4}, {"rand_augment": {"ops": 2, "magnitude": 9}}, {"cutout": 8}]


class Seen(Callback):
    """Remembers every training batch; ends the process after a checkpoint where asked to."""

    def __init__(self, until: Path | None = None) -> None:
        self.until = until
        self.batches: list[Tensor] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, _: int) -> None:
        if self.until is not None and self.until.exists():
            raise KeyboardInterrupt
        self.batches.append(batch[0].clone())


def fit(
    folder: Path, seen: Seen, *, save: Path | None = None, resume: Path | None = None
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.Flatten(), nn.LazyLinear(100))
    network(torch.zeros(1, 3, 32, 32))
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    model = Classifier(network, sgd, cosine, num_classes=100)
    callbacks: list[Callback] = [seen]
    if save is not None:
        callbacks.append(ModelCheckpoint(save.parent, save.stem, every_n_train_steps=5))
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=save is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = CIFAR100(root=str(folder), batch_size=16, val_size=10, seed=3, augment=STEPS)
    if seen.until is None:
        trainer.fit(model, datamodule=data, ckpt_path=resume)
        assert 0 <= trainer.test(model, datamodule=data, verbose=False)[0]["test/accuracy"] <= 1
    else:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            trainer.fit(model, datamodule=data)
    return model.state_dict()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_resumed_fit_sees_the_same_pixels(cifar: Callable[..., Any], tmp_path: Path) -> None:
    cifar(tmp_path, 100, each=60)  # 50 to train on: 4 batches an epoch
    whole, cut, rest = Seen(), Seen(tmp_path / "cut.ckpt"), Seen()
    wanted = fit(tmp_path, whole)
    fit(tmp_path, cut, save=cut.until)
    found = fit(tmp_path, rest, resume=cut.until)
    assert (len(whole.batches), len(cut.batches), len(rest.batches)) == (12, 5, 7)
    for old, new in zip(whole.batches, cut.batches + rest.batches, strict=True):
        assert torch.equal(old, new)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert len({batch.sum().item() for batch in whole.batches}) == 12


def test_ranks_augment_their_own_share(
    cifar: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same image, alone in the batch of either rank, is not augmented alike."""
    cifar(tmp_path, 10)
    seen = []
    for rank in range(2):
        monkeypatch.setattr(loader_module, "rank_and_world", lambda rank=rank: (rank, 2))
        data = CIFAR10(root=str(tmp_path), batch_size=4, val_size=10, augment=STEPS)
        seen.append([images for images, _ in data.train_dataloader()])
    assert len(seen[0]) == len(seen[1]) == 7  # 25 each, of 50
    assert not any(torch.equal(*pair) for pair in zip(*seen, strict=True))


def test_augmentation_depends_only_on_seed_epoch_and_batch(
    cifar: Callable[..., Any], tmp_path: Path
) -> None:
    cifar(tmp_path, 10)

    def epoch(number: int, **given: Any) -> list[Tensor]:
        data = CIFAR10(root=str(tmp_path), batch_size=20, val_size=20, augment=STEPS, **given)
        loader = data.train_dataloader()
        loader.set_epoch(number)
        return [images for images, _ in loader]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = epoch(1)
    assert torch.equal(torch.get_rng_state(), before)  # no global numbers were used
    torch.manual_seed(2)
    assert all(map(torch.equal, first, epoch(1)))
    assert not any(map(torch.equal, first, epoch(2)))
    assert not any(map(torch.equal, first, epoch(1, seed=5)))
