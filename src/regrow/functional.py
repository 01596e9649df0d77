# SPDX-License-Identifier: MIT
"""Pruning in one call, without a Trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from regrow.criteria import Criterion, TrackingCriterion
from regrow.masks import Masks
from regrow.method import Method, choose_masks
from regrow.pruner import Pruner
from regrow.sharding import as_part_of, forget_copies


def prune(
    model: nn.Module,
    sparsity: float,
    *,
    distribution: str = "global",
    criterion: str | Criterion | TrackingCriterion = "magnitude",
    granularity: str = "weight",
    layers: Mapping[str, float] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    seed: int = 0,
) -> Masks:
    """Prunes a model at once, in place, and returns the masks. No Trainer needed.

    Args:
        model: The model; its pruned weights become +0.0.
        sparsity: Fraction of the selected weights to prune, in [0, 1); hit exactly.
        distribution: "global", "uniform", "erk" or "lamp".
        criterion: A name or any callable `(weight, grad) -> scores`; those that need gradients
            read `parameter.grad`, so run a backward pass first.
        granularity: "weight", "2:4" (any "n:m") or "block:4x4".
        layers: Own sparsity for some layers, `{pattern: sparsity}`.
        include: Patterns of what is pruned; None: Conv, ConvTranspose and Linear weights.
        exclude: Patterns of what is not.
        seed: For random criteria.

    Returns:
        The masks by parameter name; give them to `regrow.enforce` to train on.

    Raises:
        ConfigError, StateError: Before anything is changed.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> masks = prune(net, 0.5, exclude=["@last"])
        >>> masks.sparsity, int((net[0].weight == 0).sum())
        (0.5, 32)
    """
    method = Method(criterion, distribution, granularity, layers, include, exclude, seed)
    pruner = Pruner(model, method)
    sparsity, dense = method.check_target(sparsity), [None] * len(pruner.targets)
    found = choose_masks(pruner.method, pruner.targets, dense, sparsity, pruner.own, event=0)
    for target, mask in zip(pruner.targets, found, strict=True):
        target.weight.masked_fill_(~mask, 0.0)
    if pruner.shards.ranks is not None:
        forget_copies(model)
    pairs = zip(pruner.targets, found, strict=True)
    return Masks({target.name: as_part_of(target.parameter, mask) for target, mask in pairs})
