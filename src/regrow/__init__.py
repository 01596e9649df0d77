# SPDX-License-Identifier: MIT
"""Neural network pruning in PyTorch Lightning, with restorable weights.

Public names are imported on first use: `import regrow` imports neither torch nor lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regrow.calibration.calibrate import calibrate as calibrate
    from regrow.calibration.free_sparsity import free_sparsity as free_sparsity
    from regrow.calibration.ranked_checkpoint import load_ranked as load_ranked
    from regrow.calibration.ranked_checkpoint import save_ranked as save_ranked
    from regrow.calibration.repair_ladder import repair as repair
    from regrow.callbacks.accuracy_budget import AccuracyBudget as AccuracyBudget
    from regrow.callbacks.alternating_phases import AlternatingPhases as AlternatingPhases
    from regrow.callbacks.channel_pruning import ChannelPruning as ChannelPruning
    from regrow.callbacks.distill import Distill as Distill
    from regrow.callbacks.dynamic_sparse_training import (
        DynamicSparseTraining as DynamicSparseTraining,
    )
    from regrow.callbacks.learned_masks import LearnedMasks as LearnedMasks
    from regrow.callbacks.magnitude_pruning import MagnitudePruning as MagnitudePruning
    from regrow.callbacks.post_training_pruning import PostTrainingPruning as PostTrainingPruning
    from regrow.callbacks.prune_at_init import PruneAtInit as PruneAtInit
    from regrow.callbacks.regrow import Regrow as Regrow
    from regrow.callbacks.rewind import Rewind as Rewind
    from regrow.callbacks.slimming import Slimming as Slimming
    from regrow.callbacks.sparse_early_stopping import SparseEarlyStopping as SparseEarlyStopping
    from regrow.callbacks.sparse_model_checkpoint import (
        SparseModelCheckpoint as SparseModelCheckpoint,
    )
    from regrow.callbacks.sparsity_monitor import SparsityMonitor as SparsityMonitor
    from regrow.callbacks.support.checkpoint_shapes import ChannelsMixin as ChannelsMixin
    from regrow.callbacks.support.lr_rounds import restart_each_round as restart_each_round
    from regrow.channels.cut.channel_cut import load as load
    from regrow.channels.pruner import ChannelPruner as ChannelPruner
    from regrow.criteria.block_fisher import BlockFisher as BlockFisher
    from regrow.criteria.movement import Movement as Movement
    from regrow.criteria.precomputed import Scores as Scores
    from regrow.criteria.saliency import grasp as grasp
    from regrow.criteria.saliency import snip as snip
    from regrow.criteria.synflow import synflow as synflow
    from regrow.data.random_state import RandomState as RandomState
    from regrow.io.export import export as export
    from regrow.io.onnx_network import quantize_onnx as quantize_onnx
    from regrow.learned.methods import SoftMovement as SoftMovement
    from regrow.masks.masks import Masks as Masks
    from regrow.masks.zeros import sparsity as sparsity
    from regrow.profiling.cost import cost as cost
    from regrow.profiling.latency import compare_latency as compare_latency
    from regrow.profiling.metrics import EffectiveMACs as EffectiveMACs
    from regrow.profiling.metrics import MaskOverlap as MaskOverlap
    from regrow.profiling.metrics import Sparsity as Sparsity
    from regrow.pruning.config import PruningConfig as PruningConfig
    from regrow.pruning.functional import enforce as enforce
    from regrow.pruning.functional import prune as prune
    from regrow.pruning.pruner import Pruner as Pruner
    from regrow.runtime.accelerate import accelerate as accelerate
    from regrow.runtime.diagnosis import diagnose as diagnose
    from regrow.schedules.cyclic import ACDC as ACDC
    from regrow.schedules.cyclic import Cyclic as Cyclic
    from regrow.schedules.gradual import Cosine as Cosine
    from regrow.schedules.gradual import Cubic as Cubic
    from regrow.schedules.gradual import Linear as Linear
    from regrow.schedules.iterative import Exponential as Exponential
    from regrow.schedules.one_shot import OneShot as OneShot
    from regrow.schedules.one_shot import Table as Table
    from regrow.schedules.triggers import Drop as Drop
    from regrow.schedules.triggers import Plateau as Plateau
    from regrow.sensitivity_analysis.scan import sensitivity as sensitivity
    from regrow.utils.errors import ConfigError as ConfigError
    from regrow.utils.errors import StateError as StateError

__version__ = "0.1.0"

_NAMES = {
    "calibration.calibrate": "calibrate",
    "calibration.free_sparsity": "free_sparsity",
    "calibration.ranked_checkpoint": "load_ranked save_ranked",
    "calibration.repair_ladder": "repair",
    "callbacks.accuracy_budget": "AccuracyBudget",
    "callbacks.alternating_phases": "AlternatingPhases",
    "callbacks.channel_pruning": "ChannelPruning",
    "callbacks.distill": "Distill",
    "callbacks.dynamic_sparse_training": "DynamicSparseTraining",
    "callbacks.learned_masks": "LearnedMasks",
    "callbacks.magnitude_pruning": "MagnitudePruning",
    "callbacks.post_training_pruning": "PostTrainingPruning",
    "callbacks.prune_at_init": "PruneAtInit",
    "callbacks.regrow": "Regrow",
    "callbacks.rewind": "Rewind",
    "callbacks.slimming": "Slimming",
    "callbacks.sparse_early_stopping": "SparseEarlyStopping",
    "callbacks.sparse_model_checkpoint": "SparseModelCheckpoint",
    "callbacks.sparsity_monitor": "SparsityMonitor",
    "callbacks.support.checkpoint_shapes": "ChannelsMixin",
    "callbacks.support.lr_rounds": "restart_each_round",
    "channels.cut.channel_cut": "load",
    "channels.pruner": "ChannelPruner",
    "criteria.block_fisher": "BlockFisher",
    "criteria.movement": "Movement",
    "criteria.precomputed": "Scores",
    "criteria.saliency": "grasp snip",
    "criteria.synflow": "synflow",
    "data.random_state": "RandomState",
    "io.export": "export",
    "io.onnx_network": "quantize_onnx",
    "learned.methods": "SoftMovement",
    "masks.masks": "Masks",
    "masks.zeros": "sparsity",
    "profiling.cost": "cost",
    "profiling.latency": "compare_latency",
    "profiling.metrics": "EffectiveMACs MaskOverlap Sparsity",
    "pruning.config": "PruningConfig",
    "pruning.functional": "enforce prune",
    "pruning.pruner": "Pruner",
    "runtime.accelerate": "accelerate",
    "runtime.diagnosis": "diagnose",
    "schedules.cyclic": "ACDC Cyclic",
    "schedules.gradual": "Cosine Cubic Linear",
    "schedules.iterative": "Exponential",
    "schedules.one_shot": "OneShot Table",
    "schedules.triggers": "Drop Plateau",
    "sensitivity_analysis.scan": "sensitivity",
    "utils.errors": "ConfigError StateError",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [*_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in ("channels", "data"):  # public subpackages
        return importlib.import_module(f"regrow.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'regrow' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"regrow.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
