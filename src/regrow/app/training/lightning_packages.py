# SPDX-License-Identifier: MIT
"""The distribution of Lightning, `lightning` or `pytorch_lightning`, that trains a module."""

from __future__ import annotations

import copy
import importlib
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from regrow.app.config.instantiate import moved
from regrow.utils.lightning_classes import lightning_classes


def lightning_package(module: nn.Module) -> Any:
    """Return the package of a LightningModule: a Trainer accepts modules of its own only."""
    [kind] = [one for one in lightning_classes("LightningModule") if isinstance(module, one)]
    return importlib.import_module(kind.__module__.partition(".core.")[0])


def follow(data: Any, package: Any) -> Any:
    """Make a data module an instance of the package's class too, in place."""
    own, needed = type(data), package.LightningDataModule
    if not isinstance(data, needed):
        data.__class__ = type(own.__name__, (own, needed), {"__module__": own.__module__})
    return data


def with_package(cfg: DictConfig, package: Any) -> DictConfig:
    """Return a configuration whose trainer, callbacks and logger are those of the package.

    Example:
        >>> import pytorch_lightning
        >>> cfg = OmegaConf.create({"trainer": {"_target_": "lightning.Trainer"}})
        >>> with_package(cfg, pytorch_lightning).trainer
        {'_target_': 'pytorch_lightning.Trainer'}
    """
    if package.__name__ == "lightning.pytorch":
        return cfg
    changed = copy.deepcopy(cfg)
    for group in ("trainer", "callbacks", "logger"):
        node = OmegaConf.select(changed, group)
        for one in (node, *node.values()) if node else ():
            if isinstance(one, DictConfig) and "_target_" in one:
                one["_target_"] = moved(str(one["_target_"]), package.__name__)
    return changed
