# SPDX-License-Identifier: MIT
"""AlternatingPhases: logs dense and sparse phases, and resets optimizers between them."""

from __future__ import annotations

from lightning_utilities.core.rank_zero import rank_zero_info

from regrow.callbacks.core.base import Callback, PruneEvent
from regrow.utils.errors import check_choice
from regrow.utils.lightning_classes import pl
from regrow.utils.snapshot import TrainingSnapshot


class AlternatingPhases(Callback):
    """Log the dense and sparse phases of `ACDC` or `Cyclic`, and reset optimizers between them.

    History entries get `phase`, "sparse" or "dense", and loggers `pruning/dense`: 1 from the first
    step of a dense phase, 0 from the first step of a sparse one. Other schedules are ignored.

    Args:
        reset_optimizer: The phases at whose start the optimizer state is reset: "never", "dense",
            "sparse" or "both". Without a reset only the state of returning weights is zero.

    Raises:
        ConfigError: For another value.

    Source: Peste et al. 2021 (AC/DC), arXiv:2106.12379.

    Example:
        >>> AlternatingPhases("dense").reset_optimizer
        'dense'
    """

    def __init__(self, reset_optimizer: str = "never") -> None:
        super().__init__()
        allowed = ("never", "dense", "sparse", "both")
        self.reset_optimizer = check_choice("reset_optimizer", reset_optimizer, allowed)
        self._initial: TrainingSnapshot | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # before a resumed state is loaded; some optimizers have state from the start
        never = self.reset_optimizer == "never"
        self._initial = None if never else TrainingSnapshot(moments=trainer.optimizers)

    def on_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: PruneEvent
    ) -> None:
        planned = event.entry["kind"] in ("prune", "dense")  # not manual, not undone
        alternates = any(not due.sparsity for due in event.pruner.progress.plan)
        if not (planned and alternates) or (event.after > 0) == (event.before > 0):
            return
        phase = "sparse" if event.after > 0 else "dense"
        event.entry["phase"] = phase
        if self._initial is not None and self.reset_optimizer in (phase, "both"):
            self._initial.restore(moments=trainer.optimizers)
        rank_zero_info(f"step {event.step}: a {phase} phase begins, at sparsity {event.after:.4g}")
        for logger in trainer.loggers:
            logger.log_metrics({"pruning/dense": float(phase == "dense")}, step=event.step)
