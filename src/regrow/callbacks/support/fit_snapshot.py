# SPDX-License-Identifier: MIT
"""Copy of everything that a prune event and the training after it can change."""

from __future__ import annotations

from typing import Any, TypedDict

from regrow.callbacks.core.averaging import Averages
from regrow.callbacks.core.base import PrunerOwner
from regrow.schedules.progress import ProgressStateDict
from regrow.utils.lightning_classes import pl
from regrow.utils.optimizers import load_moments
from regrow.utils.snapshot import copy_to_cpu


class SnapshotState(TypedDict):
    """Copies in host memory, saved by `AccuracyBudget`.

    Attributes:
        module: Parameters and buffers.
        optimizers: State of each optimizer.
        pruner: State of the pruner.
        progress: State of the plan.
        averages: State of each average.
    """

    module: dict[str, Any]
    optimizers: list[dict[int, Any]]
    pruner: dict[str, Any]
    progress: ProgressStateDict
    averages: list[dict[str, Any]]


class FitSnapshot:
    """Copies in host memory of a fit's state, which can be restored in place.

    Args:
        state: The result of `state_dict`.
    """

    def __init__(self, state: SnapshotState) -> None:
        self._state = state

    @classmethod
    def take(
        cls, trainer: pl.Trainer, pl_module: pl.LightningModule, pruner: PrunerOwner
    ) -> FitSnapshot:
        """Copy everything that an event and the training after it can change."""
        return cls(
            {
                "module": copy_to_cpu(pl_module.state_dict()),
                "optimizers": [copy_to_cpu(o.state_dict()["state"]) for o in trainer.optimizers],
                "pruner": copy_to_cpu(pruner.pruner.state_dict()),
                "progress": pruner.progress.state_dict(),
                "averages": copy_to_cpu(Averages(trainer).state_dict()),
            }
        )

    def restore(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruner: PrunerOwner
    ) -> None:
        """Restore the copies in place. Learning rates and the global step stay as they are."""
        pruner.pruner.load_state_dict(self._state["pruner"])
        epochs = pruner.progress.epochs  # the present ones: time does not go back
        pruner.progress.load_state_dict({**self._state["progress"], "epochs": epochs})
        pl_module.load_state_dict(self._state["module"])
        for optimizer, state in zip(trainer.optimizers, self._state["optimizers"], strict=True):
            load_moments(optimizer, copy_to_cpu(state))
        pruner.pruner.enforce(trainer.optimizers)
        Averages(trainer).load_state_dict(self._state["averages"], pl_module)

    def state_dict(self) -> SnapshotState:
        """The copies: tensors and builtin types only."""
        return self._state.copy()
