# SPDX-License-Identifier: MIT
"""SparsityMonitor: logs sparsity and densities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from regrow.callbacks.core.base import Callback, PruneEvent
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.core.queries import check_has_pruner, pruners
from regrow.distributed.shard import ShardedCounts, shard_of
from regrow.utils.errors import check_bool
from regrow.utils.lightning_classes import pl

_WORDS = ("overlap", "explored")
_LAYER = "pruning/density/"


class SparsityMonitor(Callback):
    """Log `pruning/sparsity`, `pruning/target` and, per layer, `pruning/density/NAME`.

    `pruning/sparsity` is the masked fraction of the prunable weights, `pruning/sparsity_total` that
    of all parameters of the model. Values go to the progress bar and `trainer.callback_metrics`,
    and at each event and epoch end to the loggers. Several pruning callbacks are combined: a weight
    counts as masked if any of them masks it. Sparse training adds `pruning/overlap` and
    `pruning/explored` of its last event.

    At each event the densities of layers also go to TensorBoard as the histogram
    `pruning/densities`, to Weights & Biases and MLflow as the table `pruning/layers`.

    Args:
        layers: Whether densities of single layers are logged.
        prog_bar: Whether the progress bar shows the sparsity.

    Raises:
        ConfigError: If there is no pruning callback.

    Example:
        >>> SparsityMonitor(layers=False).layers
        False
    """

    def __init__(self, layers: bool = True, prog_bar: bool = True) -> None:
        super().__init__()
        self.layers = check_bool("layers", layers)
        self.prog_bar = check_bool("prog_bar", prog_bar)
        self._values: dict[str, float] = {}
        self._shown = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        check_has_pruner(trainer, self, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._values, self._shown = {}, False

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if not self._values:  # a resumed pruner has its masks after all of on_train_start
            self._values = self._measure(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._shown = False

    def on_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: PruneEvent
    ) -> None:
        self._values, self._shown = self._measure(trainer), False
        for logger in trainer.loggers:
            logger.log_metrics(self._values, step=event.step)
            if self.layers:
                _log_layers(logger, self._values, event.step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        if any(callback.changes_between_events for callback in pruners(trainer)):
            now = self._measure(trainer)
            self._shown, self._values = self._shown and now == self._values, now
        if not self._shown:  # Lightning shows a value until the epoch's end
            for name, value in self._values.items():
                bar = self.prog_bar and name == "pruning/sparsity"
                pl_module.log(name, value, prog_bar=bar, logger=False, on_step=True)
            self._shown = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # equal on all ranks: the largest is exact, where a mean would round
        pl_module.log_dict(
            self._values, on_step=False, on_epoch=True, reduce_fx="max", sync_dist=True
        )

    def _measure(self, trainer: pl.Trainer) -> dict[str, float]:
        found = pruners(trainer)
        weights = {t.name: t.parameter.numel() for p in found for t in p.pruner.targets}
        densities: dict[str, float] = {}
        for callback in found:
            for name, density in callback.densities.items():
                densities[name] = density if name not in densities else _both(found, name)
        total = sum(weights.values())
        kept = sum(densities[n] * weights[n] for n in weights)
        values = {
            "pruning/sparsity": 1 - kept / total,
            "pruning/sparsity_total": (total - kept) / found[0].pruner.state.selection.total,
            "pruning/target": sum(p.target * p.pruner.total for p in found)
            / sum(p.pruner.total for p in found),
        }
        if len(found) == 1:
            values["pruning/sparsity"] = found[0].sparsity
        if self.layers:
            values |= {f"{_LAYER}{name}": d for name, d in densities.items()}
        for callback in found:  # what sparse training says of its last event
            last: Mapping[str, Any] = callback.history[-1] if callback.history else {}
            values |= {f"pruning/{word}": last[word] for word in _WORDS if word in last}
        return values


def _both(found: list[PruningCallback], name: str) -> float:
    """The density of a parameter that several callbacks mask."""
    owners = [c.pruner for c in found if name in c.pruner.enforcer.parameters]
    kept = owners[0].enforcer.mask(name)
    for pruner in owners[1:]:
        kept = kept & pruner.enforcer.mask(name)
    parameter = owners[0].enforcer.parameters[name]
    everywhere = ShardedCounts([shard_of(name, parameter)])
    return float(everywhere.sums([int(kept.count_nonzero())])[0] / max(1, parameter.numel()))


def _log_layers(logger: Any, values: Mapping[str, float], step: int) -> None:
    """Log the densities of layers as a histogram or table, to a logger that has one."""
    rows = {k.removeprefix(_LAYER): v for k, v in values.items() if k.startswith(_LAYER)}
    kinds = {kind.__name__ for kind in type(logger).__mro__}
    if "TensorBoardLogger" in kinds:
        densities = torch.tensor([*rows.values()])
        logger.experiment.add_histogram("pruning/densities", densities, step)
    elif "WandbLogger" in kinds:
        logger.log_table(
            "pruning/layers", ["layer", "density"], [*map(list, rows.items())], step=step
        )
    elif "MLFlowLogger" in kinds:
        table = {"step": [step] * len(rows), "layer": [*rows], "density": [*rows.values()]}
        logger.experiment.log_table(logger.run_id, table, "pruning/layers.json")
