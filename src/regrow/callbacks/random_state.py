# SPDX-License-Identifier: MIT
"""RandomState: saves the global random generators in checkpoints."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from regrow.callbacks.core.base import Callback
from regrow.utils.random import capture_random_state, restore_random_state


class RandomState(Callback):
    """Save the global random generators in checkpoints and restore them on resume.

    These are the generators of PyTorch (CPU and all CUDA devices), NumPy (legacy) and `random`, so
    dropout and other draws continue bit-exactly. They are restored in `on_train_start`; callbacks
    that draw numbers in theirs belong before this one.

    Lightning saves the callbacks of rank 0 only. Rank 0 continues exactly; the others are seeded
    from its state and their rank: the same whenever that checkpoint is resumed, but not what an
    uninterrupted run draws. (regrow's data loaders do not use global generators.)

    Example:
        >>> trainer = Trainer(callbacks=[RandomState()], logger=False,
        ...                   enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget a state that an evaluation loaded; a resumed fit loads its own after this."""
        if stage == "fit":
            self._pending = None

    def state_dict(self) -> dict[str, Any]:
        """The generators' state, or the loaded one that is not restored yet."""
        return self._pending or dict(capture_random_state())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store a state until training starts."""
        self._pending = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the state of a resumed fit."""
        if self._pending is not None:
            restore_random_state(self._pending, trainer.global_rank)
            self._pending = None
