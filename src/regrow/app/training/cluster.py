# SPDX-License-Identifier: MIT
"""Trainer plugins and callbacks for SLURM and submitit."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

_log = logging.getLogger("regrow")


def under_submitit(env: Mapping[str, str]) -> bool:
    """Whether submitit started this process and handles time-outs and preemption."""
    return "SUBMITIT_EXECUTOR" in env


def cluster_plugins(env: Mapping[str, str], ranks: int = 1) -> list[Any]:
    """Return the Trainer plugins for a cluster; empty where Lightning's default is right.

    Under SLURM Lightning requeues a job before its time limit and waits for ranks started by srun.
    Both must be off if submitit requeues, or if one task starts all `ranks` processes.
    """
    on_slurm = any(name.startswith("SLURM_") for name in env)
    if on_slurm and (under_submitit(env) or ranks > 1):
        return [LightningEnvironment()]
    return []


def cluster_callbacks(env: Mapping[str, str]) -> list[pl.Callback]:
    """Return the callbacks that keep a job alive until submitit has requeued it."""
    return [_IgnoreSigterm()] if under_submitit(env) else []


class _IgnoreSigterm(pl.Callback):
    """Ignore SIGTERM during a fit, as submitit does.

    A scheduler announces preemption by SIGTERM, possibly before the signal at which submitit
    requeues. Lightning restores the former handler after the fit.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signal.signal(signal.SIGTERM, _log_sigterm)


def _log_sigterm(signum: int, frame: FrameType | None) -> None:
    _log.warning("SIGTERM ignored: training continues until the job is requeued or killed")
