# SPDX-License-Identifier: MIT
"""What a pruning callback may hold."""

from regrow.channel_pruner import ChannelPruner
from regrow.pruner import Pruner

AnyPruner = Pruner | ChannelPruner


def as_sparse(pruner: AnyPruner, sparsity: float, final: float) -> bool:
    """Whether a model is as sparse as that, or was when others cut channels out of it.

    Args:
        pruner: Of the model.
        sparsity: To compare with.
        final: Where the schedule ends.
    """
    if pruner.held >= sparsity > 0:
        return True
    return pruner.units(pruner.stand(final)) >= pruner.units(sparsity)
