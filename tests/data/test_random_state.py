# SPDX-License-Identifier: MIT
from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupted_fits import Cut
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from regrow.data.random_state import RandomState
from regrow.data.tensor_loader import BatchLoader
from regrow.utils.random import capture_random_state, restore_random_state


def draw() -> tuple[float, ...]:
    return (torch.rand(1).item(), float(np.random.normal()), random.gauss(0, 1))


class Noisy(LightningModule):
    """Dropout, and noise from every generator in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        return loss * (1 + 0.1 * np.random.rand()) * (1 + 0.1 * random.random())

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.network(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def fit(
    folder: Path, save: dict[str, Any], *, cut: bool = False, resume: Path | None = None
) -> list[Tensor]:
    seed_everything(0 if resume is None else 7, verbose=False)
    model = Noisy()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, 4, generator=generator)
    data = BatchLoader(images, torch.arange(40) % 2, batch_size=8, shuffle=True)
    callbacks: list[Callback] = [
        RandomState(),
        ModelCheckpoint(folder, filename="cut", save_top_k=1, **save),
    ]
    if cut:
        callbacks.append(Cut(folder / "cut.ckpt"))
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if cut:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            trainer.fit(model, data, data)
    else:
        trainer.fit(model, data, data, ckpt_path=resume)
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize(
    "save", [{"every_n_epochs": 1}, {"every_n_train_steps": 3}, {"every_n_train_steps": 8}]
)
def test_resumed_run_is_the_uninterrupted_run(save: dict[str, Any], tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", save)
    fit(tmp_path / "cut", save, cut=True)
    resumed = fit(tmp_path / "resumed", save, resume=tmp_path / "cut" / "cut.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_all_generators_are_captured_and_restored() -> None:
    np.random.normal()  # leaves a second normal number in store
    state = capture_random_state()
    expected = [draw() for _ in range(3)]
    restore_random_state(state)
    assert [draw() for _ in range(3)] == expected


def test_state_survives_a_weights_only_file(tmp_path: Path) -> None:
    state = RandomState().state_dict()
    assert state
    expected = draw()
    torch.save(state, tmp_path / "state.pt")
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected


def test_state_is_restored_once_at_the_start_of_training() -> None:
    callback, trainer = RandomState(), Trainer(accelerator="cpu", logger=False)
    state = capture_random_state()
    expected = draw()
    callback.setup(trainer, None, "fit")
    callback.load_state_dict(copy.deepcopy(state))
    draw()
    saved = callback.state_dict()
    assert torch.equal(saved["torch"], state["torch"])
    callback.on_train_start(trainer, None)
    assert draw() == expected
    after = draw()
    callback.on_train_start(trainer, None)
    assert draw() != after
    assert draw() != expected


def test_state_loaded_by_an_evaluation_is_not_restored_by_a_later_fit() -> None:
    callback, trainer = RandomState(), Trainer(accelerator="cpu", logger=False)
    callback.setup(trainer, None, "validate")
    callback.load_state_dict(capture_random_state())
    expected = draw()
    callback.setup(trainer, None, "fit")
    callback.on_train_start(trainer, None)
    assert draw() != expected


def test_other_ranks_draw_different_but_reproducible_numbers() -> None:
    state = capture_random_state()
    drawn = []
    for rank in (0, 1, 2, 1):
        restore_random_state(state, rank)
        drawn.append(draw())
    assert drawn[1] == drawn[3]
    for i in range(3):
        assert len({numbers[i] for numbers in drawn}) == 3


def test_different_devices_cause_a_warning() -> None:
    state = capture_random_state()
    # one device more or fewer than here
    state["cuda"] = [] if state["cuda"] else [torch.zeros(16, dtype=torch.uint8)]
    expected = draw()
    with pytest.warns(UserWarning, match="random state of . CUDA devices"):
        restore_random_state(state)
    assert draw() == expected
