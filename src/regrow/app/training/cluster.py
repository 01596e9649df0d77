# SPDX-License-Identifier: MIT
"""SLURM and submitit plugins."""

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
    """Whether submitit started this process: it then answers time-outs and preemption."""
    return "SUBMITIT_EXECUTOR" in env


def cluster_plugins(env: Mapping[str, str], ranks: int = 1) -> list[Any]:
    """The plugins of a Trainer on a cluster; none where Lightning's own choice is right.

    Under SLURM Lightning requeues a job that is running out of time, and waits for ranks that srun
    has started. It must not where submitit requeues, nor where one task starts its own ranks.

    Args:
        env: The environment's variables.
        ranks: Processes that train together.
    """
    on_slurm = any(name.startswith("SLURM_") for name in env)
    if on_slurm and (under_submitit(env) or ranks > 1):
        return [LightningEnvironment()]
    return []


def cluster_callbacks(env: Mapping[str, str]) -> list[pl.Callback]:
    """The callbacks of a Trainer that let a job live until submitit has put it into the queue."""
    return [_OutliveSigterm()] if under_submitit(env) else []


class _OutliveSigterm(pl.Callback):
    """Passes SIGTERM over, as submitit does; Lightning would end the fit.

    A scheduler announces preemption by SIGTERM, and the signal at which submitit requeues may come
    after it. Lightning puts the former handler back when the fit is over.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        signal.signal(signal.SIGTERM, _pass_over)


def _pass_over(signum: int, frame: FrameType | None) -> None:
    _log.warning("SIGTERM: going on until the job is requeued or ended")
