# SPDX-License-Identifier: MIT
"""Phases."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from regrow.callbacks.core.base import Callback, PruneEvent
from regrow.utils.errors import check_choice
from regrow.utils.snapshot import TrainingSnapshot

_WHEN = ("never", "dense", "sparse", "both")


class Phases(Callback):
    """Beside `ACDC` or `Cyclic`: says which phase begins, and lets optimizers begin anew.

    Each event's history entry has `phase`, "sparse" or "dense", and loggers get `pruning/dense`:
    1 from the step at which a dense phase begins, 0 from that at which it ends.

    Args:
        fresh: At the beginning of which phases an optimizer's state becomes that of a new one:
            "never", "dense", "sparse" or "both". Else the moments of weights that stay go on; of
            those that come back they are zero in any case.

    Raises:
        ConfigError: For another word.

    Source: Peste et al. 2021 (AC/DC), arXiv:2106.12379.

    Example:
        >>> Phases("dense").fresh
        'dense'
    """

    def __init__(self, fresh: str = "never") -> None:
        super().__init__()
        self.fresh = check_choice("fresh", fresh, _WHEN)
        self._new: TrainingSnapshot | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # now: a resumed optimizer's state comes later, and some hold state from the beginning
        self._new = None if self.fresh == "never" else TrainingSnapshot(moments=trainer.optimizers)

    def on_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: PruneEvent
    ) -> None:
        planned = event.entry["kind"] in ("prune", "dense")  # else by hand, or taken back
        if not planned or (event.after > 0) == (event.before > 0):
            return
        phase = "sparse" if event.after > 0 else "dense"
        event.entry["phase"] = phase
        if self._new is not None and self.fresh in (phase, "both"):
            self._new.restore(moments=trainer.optimizers)
        rank_zero_info(f"step {event.step}: a {phase} phase begins, at sparsity {event.after:.4g}")
        for logger in trainer.loggers:
            logger.log_metrics({"pruning/dense": float(phase == "dense")}, step=event.step)
