# SPDX-License-Identifier: MIT
"""User-facing log lines, quiet third-party loggers."""

from __future__ import annotations

import logging
import os
import warnings

from lightning_utilities.core.rank_zero import rank_zero_only

_log = logging.getLogger("regrow")


def info(message: str) -> None:
    """Log one line for the user, on rank 0 only; Hydra writes it to the run's log too."""
    if _is_first_rank():
        _log.info(message)


def warn(message: str, stacklevel: int = 2) -> None:
    """Warn the user, on rank 0 only."""
    if _is_first_rank():
        warnings.warn(message, stacklevel=stacklevel + 1)


def _is_first_rank() -> bool:
    """Whether this is rank 0, also where Lightning, which sets the rank, was never imported."""
    rank = getattr(rank_zero_only, "rank", None)
    return int(os.environ.get("RANK", "0") if rank is None else rank) == 0


def quiet_third_party() -> None:
    """Silence Lightning below warnings: a run sets up many Trainers, each with a banner."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(f"{name}.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
