# SPDX-License-Identifier: MIT
"""RandomState."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from regrow.utils.random import capture_random_state, restore_random_state


class RandomState(Callback):
    """Saves the global random generators in checkpoints and restores them on resume.

    They are PyTorch's (CPU and every CUDA device), NumPy's legacy one and Python's `random`:
    dropout and whatever else draws from them then continues bit-exactly. They are restored in
    `on_train_start`, after sanity checking. Callbacks whose own `on_train_start` draws numbers
    belong before this one in the list.

    In distributed training Lightning saves the callbacks of rank 0 only. Rank 0 continues exactly;
    every other rank is seeded from rank 0's state and its own number: different on every rank, the
    same whenever that checkpoint is resumed, but not what an uninterrupted run draws. (regrow's
    data loaders do not depend on global generators and stay exact on all ranks.)

    Example:
        >>> trainer = Trainer(callbacks=[RandomState()], logger=False,
        ...                   enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets a state that an evaluation loaded; a resumed fit loads its own after this."""
        if stage == "fit":
            self._pending = None

    def state_dict(self) -> dict[str, Any]:
        """The generators' state, or the one that this run is still going to restore."""
        return self._pending or dict(capture_random_state())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps a state until training starts."""
        self._pending = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the state of a resumed fit."""
        if self._pending is not None:
            restore_random_state(self._pending, trainer.global_rank)
            self._pending = None
