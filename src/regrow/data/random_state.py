# SPDX-License-Identifier: MIT
"""RandomState: saves the global random generators in checkpoints."""

from __future__ import annotations

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils._pytree import tree_leaves

from regrow.callbacks.core.base import Callback
from regrow.callbacks.core.checkpoint_files import restart_loaders, restore_loaders
from regrow.utils.lightning_classes import pl
from regrow.utils.random import capture_random_state, restore_random_state


class RandomState(Callback):
    """Save the global random generators in checkpoints and restore them on resume.

    These are the generators of PyTorch (CPU and all CUDA devices), NumPy (legacy) and `random`, so
    dropout and other draws continue bit-exactly. They are restored in `on_train_start`; callbacks
    that draw numbers in theirs belong before this one.

    A resumed fit equals the uninterrupted one, bit by bit, with

    * `regrow.data.ResumableDataModule` and the data modules of the recipes: from any checkpoint;
    * a loader that saves its position, such as torchdata's `StatefulDataLoader`: from any
      checkpoint, but numbers that its worker processes draw (augmentation) differ in the rest of
      the interrupted epoch;
    * a plain `DataLoader`, shuffled or not, with or without workers: from a checkpoint of an
      epoch's end, `ModelCheckpoint(save_on_train_epoch_end=True)`. In mid-epoch its order is lost:
      Lightning draws a new one for the rest of the epoch, and warns. Workers that are persistent
      keep generators of their own, which are lost too.

    Lightning saves the callbacks of rank 0 only. Rank 0 continues exactly; the others are seeded
    from its state and their rank: the same whenever that checkpoint is resumed, but not what an
    uninterrupted run draws. (regrow's data loaders do not use global generators.)

    Example:
        >>> trainer = pl.Trainer(callbacks=[RandomState()], logger=False,
        ...                   enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget a state that an evaluation loaded; a resumed fit loads its own after this."""
        if stage == "fit":
            self._pending = None

    def state_dict(self) -> dict[str, Any]:
        """The generators' state, or the loaded one that is not restored yet."""
        return self._pending or {**capture_random_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store a state until training starts."""
        self._pending = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the state of a resumed fit."""
        if self._pending is not None:
            restore_loaders(trainer)  # before the generators: an iterator of a loader draws a seed
            restore_random_state(self._pending, trainer.global_rank)
            restart_loaders(trainer)
            _warn_of_workers(trainer)
            self._pending = None


def _warn_of_workers(trainer: pl.Trainer) -> None:
    """Warn if worker processes drew numbers in an epoch that continues: theirs are lost."""
    loop, loaders = trainer.fit_loop, trainer.train_dataloader
    continues = loop.restarting and not loop.epoch_loop.batch_progress.is_last_batch
    for loader in tree_leaves(loaders) if continues else ():
        workers = getattr(loader, "num_workers", 0)
        if workers and hasattr(loader, "load_state_dict"):
            rank_zero_warn(
                f"RandomState does not restore the generators of the {workers} workers of "
                f"{type(loader).__name__}: what they draw, such as augmentation, differs in the "
                "rest of this epoch. Write regrow.data.ResumableDataModule(train=dataset, ...), "
                "which seeds each sample, or num_workers=0"
            )
