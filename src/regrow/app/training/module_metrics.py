# SPDX-License-Identifier: MIT
"""Evaluate a module, and name the metric by which its networks are compared."""

from __future__ import annotations

import re
from typing import Any, Literal

from omegaconf import DictConfig

from regrow.app.training.classifier import Classifier
from regrow.app.training.lightning_packages import follow, lightning_package
from regrow.data.data_module import ResumableDataModule
from regrow.utils.errors import ConfigError, check_choice, join_limited, suggest
from regrow.utils.lightning_classes import overrides, pl

LOGGED = ("val/accuracy", "val/accuracy_top5", "val/loss")  # by a Classifier, in validation
# Arguments of a Trainer that writes and prints nothing.
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
# Arguments of the fit's Trainer with which networks are evaluated too.
_OF_EVALUATION = [
    "accelerator",
    "precision",
    "inference_mode",
    "limit_val_batches",
    "limit_test_batches",
]
Split = Literal["val", "test"]
_PREFIX = re.compile(r"^(validation|valid|val|test)(?=[/_.-])")
_LOADER = re.compile(r"/dataloader_idx_\d+$")  # Lightning adds it where there are several loaders


def metric_of(cfg: DictConfig, module: pl.LightningModule) -> tuple[str, str]:
    """Return the metric by which networks are compared, and whether "max" or "min" is best.

    It is the accuracy of a `Classifier`, else what `monitor` names, without "val/" or "val_" and
    without the number of a loader.
    """
    if isinstance(module, Classifier):
        return "accuracy", "max"
    return short_name(cfg.monitor), str(cfg.monitor_mode)


def without_split(name: str) -> str:
    """Remove the name of a split from the name of a metric.

    Example:
        >>> without_split("val/acc"), without_split("test_f1"), without_split("loss")
        ('acc', 'f1', 'loss')
    """
    found = _PREFIX.match(name)
    return name[found.end() + 1 :] if found else name


def short_name(monitor: str) -> str:
    """Remove the split, and the number of a loader, from the name of a monitored metric.

    Example:
        >>> short_name("val_acc/dataloader_idx_1")
        'acc'
    """
    return _LOADER.sub("", without_split(monitor))


def split_of(module: pl.LightningModule, data: pl.LightningDataModule) -> Split:
    """Return the split that networks are measured on: "val" if there is no test step or set."""
    if not overrides(module, "test_step", "LightningModule"):
        return "val"
    if isinstance(data, ResumableDataModule):
        data.prepare_data()
        data.setup("test")
        return "val" if data.test is None else "test"
    return "test" if overrides(data, "test_dataloader", "LightningDataModule") else "val"


def evaluate(
    cfg: DictConfig, module: pl.LightningModule, data: pl.LightningDataModule
) -> dict[str, float]:
    """Compute the metrics that the module logs, on the split of `split_of`, by short names."""
    return _by_short_name(cfg, _run(cfg, module, data, split_of(module, data)))


def _by_short_name(cfg: DictConfig, scores: dict[str, float]) -> dict[str, float]:
    """Return metrics without the split; of several loaders, that of the monitored one by name."""
    found = {without_split(name): value for name, value in scores.items()}
    monitored = without_split(cfg.monitor)
    if monitored in found:
        found[short_name(cfg.monitor)] = found.pop(monitored)
    return found


def validate(
    cfg: DictConfig, module: pl.LightningModule, data: pl.LightningDataModule
) -> dict[str, float]:
    """Compute the metrics that the module logs in validation, by the names of its log."""
    return _run(cfg, module, data, "val")


def check_metrics(
    cfg: DictConfig, module: pl.LightningModule, data: pl.LightningDataModule
) -> None:
    """Check, on one batch of each split, that the module logs what the command reads.

    Of a classification of own data, check the labels of two batches.
    """
    if isinstance(module, Classifier):
        check_choice("monitor", cfg.monitor, LOGGED)
        if getattr(data, "num_classes", None) is None:
            try:
                _run(cfg, module, data, "val", limit_val_batches=2)
            except IndexError as error:
                raise ConfigError(
                    f"a label of the validation data is no class of model "
                    f"{cfg.model['_target_']}: {error} Give the model as many outputs as there are "
                    "classes, and count these from 0"
                ) from error
        return
    name = type(module).__name__
    validated = _run(cfg, module, data, "val", limit_val_batches=1)
    if cfg.monitor not in validated:
        raise ConfigError(
            f"monitor={cfg.monitor} is not logged in validation by {name}: "
            f"{suggest(cfg.monitor, validated) if validated else 'it logs nothing there'} (write "
            "monitor=NAME, and monitor_mode=min where lower is better)"
        )
    split, (metric, _) = split_of(module, data), metric_of(cfg, module)
    measured = _run(cfg, module, data, split, limit_test_batches=1, limit_val_batches=1)
    if metric not in _by_short_name(cfg, measured):
        counterpart = _LOADER.sub("", _PREFIX.sub("test", cfg.monitor))
        raise ConfigError(
            f"monitor={cfg.monitor} needs its counterpart in test_step of {name}, which logs "
            f"{join_limited(measured) or 'nothing'}: log {counterpart!r} there"
        )


def _run(
    cfg: DictConfig,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    split: Split,
    **options: Any,
) -> dict[str, float]:
    package = lightning_package(module)
    given = {name: cfg.trainer[name] for name in _OF_EVALUATION if name in cfg.trainer}
    trainer = package.Trainer(**{**given, **QUIET, "devices": 1, **options})
    run = trainer.test if split == "test" else trainer.validate
    found = run(module, datamodule=follow(data, package), verbose=False)
    return {name: float(value) for scores in found for name, value in scores.items()}
