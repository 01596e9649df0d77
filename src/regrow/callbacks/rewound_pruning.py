# SPDX-License-Identifier: MIT
"""A pruning callback that may own a `Rewind`."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn

from regrow.callbacks.core.base import PruneEvent
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.rewind import Rewind
from regrow.channels.cut.channel_cut import ChannelCut
from regrow.schedules.time import TimeLike
from regrow.utils.errors import StateError


class RewoundPruning(PruningCallback):
    """Passes every hook on to its `Rewind`, where it has one.

    Args:
        given: What `PruningCallback` takes.
        rewind: Where weights and learning rate go back to after each event, or a `Rewind`.
    """

    def __init__(self, *given: Any, rewind: TimeLike | Rewind | None) -> None:
        super().__init__(*given)
        if rewind is not None and not isinstance(rewind, Rewind):
            rewind = Rewind(rewind)
        self.rewinder = rewind

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.rewinder is not None:
            self.rewinder.setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.rewinder is not None:
            self.rewinder.on_train_start(trainer, pl_module)

    def on_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: PruneEvent
    ) -> None:
        super().on_prune_event(trainer, pl_module, event)
        if self.rewinder is not None:
            self.rewinder.on_prune_event(trainer, pl_module, event)

    def on_compact(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: ChannelCut
    ) -> None:
        super().on_compact(trainer, pl_module, plan)
        if self.rewinder is not None:
            self.rewinder.on_compact(trainer, pl_module, plan)

    def on_suite_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.rewinder is not None:
            self.rewinder.on_suite_batch_start(trainer, pl_module, batch, batch_idx)
        super().on_suite_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.rewinder is not None:
            self.rewinder.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if trainer.state.fn == TrainerFn.FITTING:
            then, now = "rewind" in self._own_state(checkpoint), self.rewinder is not None
            if then != now:
                raise StateError(
                    f"the checkpoint was trained {'with' if then else 'without'} rewind=, this "
                    f"callback goes on {'with' if now else 'without'} it: write the same rewind="
                )

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return state if self.rewinder is None else state | {"rewind": self.rewinder.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.rewinder is not None and "rewind" in state_dict:
            self.rewinder.load_state_dict(state_dict["rewind"])

    def _release(self) -> None:
        super()._release()
        if self.rewinder is not None:
            self.rewinder.release()
