# SPDX-License-Identifier: MIT
"""SparseModelCheckpoint: keeps the best models that have the target sparsity."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from regrow.callbacks.core.checkpoint_files import save_atomic
from regrow.callbacks.core.queries import all_at_target, check_has_pruner
from regrow.utils.errors import ConfigError
from regrow.utils.lightning_classes import base_class, lightning_classes, pl

if TYPE_CHECKING:
    ModelCheckpoint = pl.callbacks.ModelCheckpoint
else:
    ModelCheckpoint = base_class("callbacks.ModelCheckpoint")


class AtomicCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint with atomic files; see `save_atomic`."""

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        save_atomic(trainer, filepath, partial(super()._save_checkpoint, trainer))
        self._last_checkpoint_saved = filepath


class SparseModelCheckpoint(AtomicCheckpoint):
    """Lightning's ModelCheckpoint, ranking models only while they have the target sparsity.

    A model has it when no event that prunes is left; of `Cyclic(last="dense")` the last sparse
    phase is ranked. `last.ckpt` is written whenever a checkpoint is due, from the start, complete
    and resumable; the checkpoint callbacks of a fit that save in one folder share it. In file names
    a metric's "/" becomes "_": `{val/acc:.2f}` is `val_acc=0.93`.

    Args: see `lightning.pytorch.callbacks.ModelCheckpoint`; `save_last` cannot be False.

    Raises:
        ConfigError: If there is no pruning callback, or for `save_last=False`.

    Example:
        >>> SparseModelCheckpoint(monitor="val/accuracy", mode="max").save_last
        True
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        *,
        save_last: bool | Literal["link"] | None = True,
        **settings: Any,
    ) -> None:
        if save_last is False:
            raise ConfigError(
                "save_last=False would leave nothing to resume from before the target is reached: "
                "leave it out, or use Lightning's ModelCheckpoint"
            )
        # True, because a link could point to a best model older than the run
        super().__init__(dirpath, filename, monitor, save_last=True, **settings)
        self._last_is_current = False  # whether this hook has written last.ckpt
        self._within = True  # whether the epoch has not ended yet
        self._save_at_epoch_end = False  # whether last.ckpt is to be written at its end
        self._validates = False  # whether validation comes next
        self._save_after_validation = False  # whether last.ckpt is to be written after it

    def format_checkpoint_name(
        self,
        metrics: dict[str, Tensor],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        template = filename or self.filename
        for name in re.findall(r"{([^:}]*/[^:}]*)", template or ""):
            flat = name.replace("/", "_")
            template = str(template).replace("{" + name, "{" + flat)
            if name in metrics:
                metrics = metrics | {flat: metrics[name]}
        return super().format_checkpoint_name(metrics, template, ver, prefix)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        check_has_pruner(trainer, self, stage)
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        self._last_is_current = False
        # Lightning 2.6, resumed from before a validation that is due, leaves that out
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        self._validates = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        # Lightning 2.5 has no such attribute
        deferred = getattr(self, "_defer_save_until_validation", False)
        self._defer_save_until_validation = False
        super().on_train_batch_end(trainer, *args, **kwargs)
        if self._defer_save_until_validation and not self._should_skip_saving_checkpoint(trainer):
            # the score comes later; an interrupted run needs last.ckpt without it
            step = self._last_global_step_saved
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            self._last_global_step_saved = step
        self._defer_save_until_validation |= deferred

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_is_current = self._validates = False
        postponed, self._save_after_validation = self._save_after_validation, False
        super().on_validation_end(trainer, pl_module)
        if postponed and not trainer.sanity_checking:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_is_current, self._within = False, False
        super().on_train_epoch_end(trainer, pl_module)
        if self._save_at_epoch_end:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        self._within = True

    def _save_topk_checkpoint(
        self, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        validated = trainer.fit_loop.epoch_loop.val_loop._has_run
        if all_at_target(trainer) or (
            validated and self.monitor not in (None, *monitor_candidates)
        ):
            super()._save_topk_checkpoint(trainer, monitor_candidates)  # names an unknown monitor
        self._save_last_checkpoint(trainer, monitor_candidates)

    def _save_last_checkpoint(
        self, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        # Lightning 2.6 miscounts the batches of a run resumed from within an epoch's last batch
        self._save_at_epoch_end = self._within and bool(trainer.is_last_batch)
        self._save_after_validation |= self._validates
        if self._last_is_current or self._save_at_epoch_end or self._validates:
            return
        self._continue_last_file(trainer, monitor_candidates)
        weights_only, self.save_weights_only = self.save_weights_only, False
        try:
            super()._save_last_checkpoint(trainer, monitor_candidates)
        finally:
            self.save_weights_only = weights_only
        self._last_is_current = True

    def _continue_last_file(self, trainer: pl.Trainer, metrics: dict[str, Tensor]) -> None:
        """Overwrite a `last.ckpt` of this run, and warn of that of another run."""
        path = self.format_checkpoint_name(dict(metrics), self.CHECKPOINT_NAME_LAST)
        if self.last_model_path or not self.file_exists(path, trainer):
            return
        kinds = lightning_classes("callbacks.ModelCheckpoint")
        others: list[Any] = [c for c in trainer.checkpoint_callbacks if isinstance(c, kinds)]
        resumed = trainer.ckpt_path
        if any(other.last_model_path == path for other in others) or (
            resumed is not None and Path(resumed).resolve().parent == Path(path).resolve().parent
        ):
            self.last_model_path = path
        elif self._enable_version_counter:
            new = self.format_checkpoint_name(dict(metrics), self.CHECKPOINT_NAME_LAST, ver=1)
            rank_zero_warn(
                f"{path} is of an earlier run, so this one writes {Path(new).name} or a later "
                "number: to continue the earlier one, write trainer.fit(..., ckpt_path=...); to "
                "start anew, another dirpath or enable_version_counter=False, which overwrites"
            )
