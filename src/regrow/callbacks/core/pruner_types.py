# SPDX-License-Identifier: MIT
"""Pruners that a pruning callback can hold."""

from __future__ import annotations

from regrow.channels.pruner import ChannelPruner
from regrow.pruning.pruner import Pruner

AnyPruner = Pruner | ChannelPruner


def as_sparse(pruner: AnyPruner, sparsity: float, final: float) -> bool:
    """Whether a model is as sparse as that, or was when others cut channels out of it.

    Args:
        pruner: Of the model.
        sparsity: To compare with.
        final: Where the schedule ends.
    """
    if pruner.state.sparsity_before_cut >= sparsity > 0:
        return True
    return pruner.units(pruner.progress_towards(final)) >= pruner.units(sparsity)
