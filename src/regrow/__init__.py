# SPDX-License-Identifier: MIT
"""Pruning inside `Trainer.fit` that never loses a weight you may want back.

Public names are resolved when first used: importing regrow imports neither torch nor lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regrow.callbacks.at_init import PruneAtInit as PruneAtInit
    from regrow.callbacks.budget import AccuracyBudget as AccuracyBudget
    from regrow.callbacks.channel_pruning import ChannelPruning as ChannelPruning
    from regrow.callbacks.conditions import Drop as Drop
    from regrow.callbacks.conditions import Plateau as Plateau
    from regrow.callbacks.distill import Distill as Distill
    from regrow.callbacks.dynamic import DynamicSparseTraining as DynamicSparseTraining
    from regrow.callbacks.early_stopping import SparseEarlyStopping as SparseEarlyStopping
    from regrow.callbacks.learned_masks import LearnedMasks as LearnedMasks
    from regrow.callbacks.magnitude import MagnitudePruning as MagnitudePruning
    from regrow.callbacks.model_checkpoint import SparseModelCheckpoint as SparseModelCheckpoint
    from regrow.callbacks.monitor import SparsityMonitor as SparsityMonitor
    from regrow.callbacks.phases import Phases as Phases
    from regrow.callbacks.random_state import RandomState as RandomState
    from regrow.callbacks.regrow_on import Regrow as Regrow
    from regrow.callbacks.rewind import Rewind as Rewind
    from regrow.callbacks.shapes import ChannelsMixin as ChannelsMixin
    from regrow.callbacks.slimming import Slimming as Slimming
    from regrow.channel_pruner import ChannelPruner as ChannelPruner
    from regrow.criteria import Movement as Movement
    from regrow.enforcement import enforce as enforce
    from regrow.errors import ConfigError as ConfigError
    from regrow.errors import StateError as StateError
    from regrow.exponential import Exponential as Exponential
    from regrow.exporting import export as export
    from regrow.functional import prune as prune
    from regrow.learned_movement import SoftMovement as SoftMovement
    from regrow.masks import Masks as Masks
    from regrow.metrics import EffectiveMACs as EffectiveMACs
    from regrow.metrics import MaskOverlap as MaskOverlap
    from regrow.metrics import Sparsity as Sparsity
    from regrow.pruner import Pruner as Pruner
    from regrow.saliency import grasp as grasp
    from regrow.saliency import snip as snip
    from regrow.schedules import ACDC as ACDC
    from regrow.schedules import Cosine as Cosine
    from regrow.schedules import Cubic as Cubic
    from regrow.schedules import Cyclic as Cyclic
    from regrow.schedules import Linear as Linear
    from regrow.schedules import OneShot as OneShot
    from regrow.schedules import Table as Table
    from regrow.scores import Scores as Scores
    from regrow.sensitivity_scan import sensitivity as sensitivity
    from regrow.synaptic_flow import synflow as synflow

__version__ = "0.1.0"

_HOME = {
    "ACDC": "schedules",
    "AccuracyBudget": "callbacks.budget",
    "ConfigError": "errors",
    "ChannelPruner": "channel_pruner",
    "ChannelPruning": "callbacks.channel_pruning",
    "ChannelsMixin": "callbacks.shapes",
    "Cosine": "schedules",
    "Cubic": "schedules",
    "Cyclic": "schedules",
    "Distill": "callbacks.distill",
    "Drop": "callbacks.conditions",
    "DynamicSparseTraining": "callbacks.dynamic",
    "EffectiveMACs": "metrics",
    "Exponential": "exponential",
    "LearnedMasks": "callbacks.learned_masks",
    "Linear": "schedules",
    "MagnitudePruning": "callbacks.magnitude",
    "MaskOverlap": "metrics",
    "Masks": "masks",
    "Movement": "criteria",
    "OneShot": "schedules",
    "Phases": "callbacks.phases",
    "Plateau": "callbacks.conditions",
    "PruneAtInit": "callbacks.at_init",
    "Pruner": "pruner",
    "RandomState": "callbacks.random_state",
    "Regrow": "callbacks.regrow_on",
    "Rewind": "callbacks.rewind",
    "Scores": "scores",
    "Slimming": "callbacks.slimming",
    "SoftMovement": "learned_movement",
    "SparseEarlyStopping": "callbacks.early_stopping",
    "SparseModelCheckpoint": "callbacks.model_checkpoint",
    "Sparsity": "metrics",
    "SparsityMonitor": "callbacks.monitor",
    "StateError": "errors",
    "Table": "schedules",
    "enforce": "enforcement",
    "export": "exporting",
    "grasp": "saliency",
    "prune": "functional",
    "sensitivity": "sensitivity_scan",
    "snip": "saliency",
    "synflow": "synaptic_flow",
}

__all__ = [*_HOME]  # noqa: PLE0604  (the names above)


def __getattr__(name: str) -> Any:
    if name == "channels":  # a part with functions of its own
        return importlib.import_module("regrow.channels")
    if name not in _HOME:
        raise AttributeError(f"module 'regrow' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"regrow.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
