# SPDX-License-Identifier: MIT
"""One-shot pruning (`prune`) and mask enforcement (`enforce`) without a Trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.criteria.base import Criterion, TrackingCriterion
from regrow.distributed.shard import local_tensor, reshard_fsdp, to_dtensor_like
from regrow.masks.masks import Masks
from regrow.pruning.compute_masks import choose_masks
from regrow.pruning.config import PruningConfig
from regrow.pruning.enforcer import Handle, MaskEnforcer
from regrow.pruning.migration import answer_other_arguments
from regrow.pruning.pruner import Pruner
from regrow.utils.errors import ConfigError
from regrow.utils.names import named_parameters
from regrow.utils.optimizers import as_list, find_optimizers


def enforce(
    model: nn.Module,
    masks: Masks | Mapping[str, Tensor],
    optimizer: Optimizer | Iterable[Optimizer],
) -> Handle:
    """Keep masked weights at zero during plain PyTorch training.

    Weights, gradients and optimizer state are masked now; from then on gradients before each
    `optimizer.step()`, also inside its closure, and weights after it.

    Args:
        model: The model, compiled or not.
        masks: Bool masks by parameter name, as `regrow.prune` returns; those of sharded parameters
            are DTensors, sharded alike.
        optimizer: One optimizer, or all that train the masked parameters. Optimizers that it holds
            (SAM, Lookahead) are found.

    Returns:
        A handle; `handle.remove()` ends the enforcement.

    Raises:
        StateError: If a mask has no parameter, or another shape.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 2)
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> keep = torch.tensor([[True, False], [False, True]])
        >>> with enforce(net, {"weight": keep}, sgd):
        ...     net(torch.ones(1, 2)).sum().backward()
        ...     sgd.step()
        >>> net.weight[~keep].tolist()
        [0.0, 0.0]
    """
    reshard_fsdp(model)
    named = named_parameters(model)
    masks = masks if isinstance(masks, Masks) else Masks(masks)
    masks.check({name: named[name] for name in masks if name in named})
    enforcer = MaskEnforcer({name: named[name] for name in masks})
    for name, mask in masks.items():
        enforcer.set_mask(name, local_tensor(mask))
    given = as_list(optimizer)
    enforcer.weights()
    enforcer.gradients()
    enforcer.state(find_optimizers(*given))
    return enforcer.install(given)


@answer_other_arguments
def prune(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    threshold: float | None = None,
    distribution: str = "global",
    criterion: str | Criterion | TrackingCriterion = "magnitude",
    granularity: str = "weight",
    layers: Mapping[str, float] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    seed: int = 0,
    on_misfit: str = "raise",
    min_density: float = 0.0,
) -> Masks:
    """Prune a model in place, once, and return the masks.

    Args:
        model: The model; its pruned weights become +0.0.
        sparsity: Fraction of the selected weights to prune, in [0, 1), reached exactly; or
        threshold: prune every weight whose score is below it: by magnitude |w| < threshold.
        distribution: "global", "uniform", "erk" or "lamp".
        criterion: A name as in `MagnitudePruning`, or any callable `(weight, grad) -> scores`;
            those that need gradients read `parameter.grad`, so run a backward pass first.
        granularity: "weight", "2:4" (any "n:m"), "block:4x4" or "head" (of attention).
        layers: Separate sparsity for some layers, `{pattern: sparsity}`.
        include: Patterns of parameters or modules to prune; None: the weights of convolutions,
            Linear and recurrent layers and attention.
        exclude: Patterns of parameters not to prune.
        seed: For random criteria.
        on_misfit: "skip" leaves layers dense that the granularity does not divide.
        min_density: Fraction of its weights that each layer keeps at least.

    Returns:
        The masks by parameter name; pass them to `regrow.enforce` to train further.

    Raises:
        ConfigError, StateError: Before anything is changed.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> masks = prune(net, 0.5, exclude=["@last"])
        >>> masks.sparsity, int((net[0].weight == 0).sum())
        (0.5, 32)
    """
    _check_goal(sparsity, threshold)
    config = PruningConfig(criterion, distribution, granularity, layers, include, exclude, seed)
    config = config._replace(on_misfit=on_misfit, min_density=min_density, threshold=threshold)
    pruner = Pruner(model, config)
    final = config.check_target(sparsity) if threshold is None else 0.0
    own, dense = pruner.layer_targets, [None] * len(pruner.targets)
    chosen = choose_masks(pruner.config, pruner.targets, dense, final, own, 0, threshold)
    pairs = list(zip(pruner.targets, chosen, strict=True))
    for target, mask in pairs:
        target.weight.masked_fill_(~mask, 0.0)
    if pruner.state.shards.ranks is not None:
        reshard_fsdp(model)
    masks = Masks({t.name: to_dtensor_like(t.parameter, mask) for t, mask in pairs})
    pruner.warn_of_thin_layers({name: masks.density(name) for name in masks}, threshold)
    return masks


def _check_goal(sparsity: float | None, threshold: float | None) -> None:
    """Check that either a sparsity or a threshold is given."""
    if (sparsity is None) == (threshold is None):
        given = "neither" if sparsity is None else f"sparsity={sparsity} and threshold={threshold}"
        raise ConfigError(
            f"prune takes a sparsity or a threshold, got {given}: write sparsity=0.9 to prune 90 "
            "%, or threshold=0.01 to prune every |w| < 0.01"
        )
