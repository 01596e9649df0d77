# SPDX-License-Identifier: MIT
"""Count the zeros among the prunable weights of a model, masked or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from regrow.distributed.shard import ShardedCounts
from regrow.masks.targets import Target, select_targets
from regrow.utils.errors import join_limited

_FEW = 0.01  # a smaller share of zeros may be chance


def sparsity(
    model: nn.Module,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
) -> float:
    """Compute the fraction of the prunable weights that are exactly zero, masked or not.

    Args:
        model: The model; not changed.
        include: Patterns of parameters or modules to count; None: as in `regrow.prune`.
        exclude: Patterns of those to leave out.

    Raises:
        ConfigError, StateError: See `regrow.masks.targets.select_targets`.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        >>> sparsity(layer)
        0.75
    """
    targets = select_targets(model, include, exclude).targets
    return sum(count_zeros(targets).values()) / sum(t.parameter.numel() for t in targets)


@torch.no_grad()
def count_zeros(
    targets: Sequence[Target], kept: Mapping[str, Sequence[Tensor]] | None = None
) -> dict[str, int]:
    """Count the zeros of each target that no mask (non-zero = kept) prunes, over all ranks."""
    counts = []
    for target in targets:
        weight = target.weight
        zeros = weight.numel() - int(weight.count_nonzero())
        masks = (kept or {}).get(target.name, ())
        if zeros and masks:
            unmasked = weight == 0
            for mask in masks:
                unmasked.logical_and_(mask.to(weight.device) != 0)
            zeros = int(unmasked.count_nonzero())
        counts.append(zeros)
    sums = ShardedCounts([target.shard for target in targets]).sums(counts)
    return {target.name: count for target, count in zip(targets, sums, strict=True)}


def describe_zeros(zeros: Mapping[str, int], sizes: Mapping[str, int]) -> str | None:
    """Describe zeros that training would change; None if they are 1 % of the weights or less."""
    count, total = sum(zeros.values()), sum(sizes.values())
    if count <= _FEW * total:
        return None
    most = [name for name in sorted(zeros, key=lambda name: -zeros[name]) if zeros[name]]
    listed = join_limited(f"{name} ({zeros[name]:,} of {sizes[name]:,})" for name in most)
    whole = [name for name in most if zeros[name] == sizes[name]]
    empty = (
        f" (all of {', '.join(whole[:3])} is zero: if it was initialised so, exclude it then)"
        if whole
        else ""
    )
    return (
        f"{count:,} of {total:,} prunable weights ({count / total:.1%}) are exactly zero and not "
        f"masked: {listed}. They are trained as all other weights, and pruned anew. To keep "
        "the zeros of an earlier pruning as masks, write from_zeros=True (MagnitudePruning, "
        f"DynamicSparseTraining, Pruner){empty}"
    )
