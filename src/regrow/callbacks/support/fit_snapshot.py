# SPDX-License-Identifier: MIT
"""State of a fit before an event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from regrow.callbacks.core.averaging import Averages
from regrow.callbacks.core.base import PrunerOwner
from regrow.utils.optimizers import load_moments
from regrow.utils.snapshot import copy_to_cpu


class FitSnapshot:
    """True copies, in host memory, that can be written back in place.

    Args:
        state: What `state_dict` gave.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._state = state

    @classmethod
    def take(
        cls, trainer: pl.Trainer, pl_module: pl.LightningModule, pruner: PrunerOwner
    ) -> FitSnapshot:
        """Copies everything that an event and the training after it can change."""
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
        """Writes it back. Learning rates and the global step stay as they are."""
        pruner.pruner.load_state_dict(self._state["pruner"])
        pruner.progress.load_state_dict(self._state["progress"])
        pl_module.load_state_dict(self._state["module"])
        for optimizer, state in zip(trainer.optimizers, self._state["optimizers"], strict=True):
            load_moments(optimizer, copy_to_cpu(state))
        pruner.pruner.enforce(trainer.optimizers)
        Averages(trainer).load_state_dict(self._state.get("averages", []), pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtin types only."""
        return dict(self._state)
