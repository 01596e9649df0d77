# SPDX-License-Identifier: MIT
"""SNIP and GraSP: scores from gradients over some batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from regrow.criteria.elementwise import taylor
from regrow.criteria.precomputed import Scores
from regrow.distributed.shard import is_dtensor
from regrow.masks.targets import Target, select_targets
from regrow.utils.errors import ConfigError, StateError

Loss = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> the loss, a scalar."""

Mean = Callable[[Tensor], Tensor]
"""A tensor -> its mean over all ranks, the same on each."""

# Words of PyTorch's errors for operators without second derivative.
_NO_SECOND_DERIVATIVE = ("derivative for", "differentiate twice", "double backward")


def snip(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    mean: Mean | None = None,
) -> Scores:
    """Compute SNIP scores |g w|, with g the gradient of the mean loss over the batches.

    This is the change of the loss, to first order, without the weight. Weights and their `grad` do
    not change, batch-norm statistics do.

    Args:
        model: The model, in the mode in which it is scored.
        batches: Second arguments of `loss`; all have the same weight.
        loss: `(model, batch) -> loss`, a scalar.
        include: Patterns of parameters or modules; None: as in `regrow.prune`.
        exclude: Patterns of those to leave out.
        mean: Averages a gradient over ranks; None for one rank.

    Returns:
        Scores by parameter name, of the weights' shapes.

    Raises:
        ConfigError: Without batches; for weights without a gradient, or sharded ones.

    Source: Lee et al. 2019, arXiv 1810.02340, eq. 5 (without the division by the sum).

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> snip(net, [torch.tensor([[1.0, 5.0]])], lambda net, x: net(x).sum())["weight"]
        tensor([[3., 5.]])
    """
    targets = unsharded_targets(model, include, exclude)
    gradients = _mean_gradients(model, batches, loss, targets, mean)
    pairs = zip(targets, gradients, strict=True)
    return Scores({target.name: taylor(target.weight, grad) for target, grad in pairs})


def grasp(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    mean: Mean | None = None,
) -> Scores:
    """Compute GraSP scores w (H g), with g the gradient and H the Hessian of the mean loss.

    To first order, removing a weight changes the squared norm of the gradient by -2 w (H g). The
    paper removes the weights with the highest -w (H g), which reduce that norm least. Scores may be
    negative.

    Second derivatives depend on the scale of the logits: the authors' code divides them by 200
    within the loss while it scores, and `loss` can do the same.

    Each batch is passed twice, once with second derivatives: about four times the cost of `snip`.
    Attention uses PyTorch's math kernel, the only one with second derivatives.

    Args and Returns: as `snip`; the batches are stored.

    Raises:
        ConfigError: As `snip`, and for operators that have no second derivative.

    Source: Wang et al. 2020, arXiv 2002.07376, eq. 8 (without its softmax temperature).

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> loss = lambda net, x: (net.weight**2 / 2).sum()      # H is 1, and g is w
        >>> grasp(net, [None], loss)["weight"]
        tensor([[9., 1.]])
    """
    targets, batches = unsharded_targets(model, include, exclude), list(batches)
    weights = [target.parameter for target in targets]
    with sdpa_kernel(SDPBackend.MATH):
        flow = _mean_gradients(model, batches, loss, targets, mean)
        products = [torch.zeros_like(grad) for grad in flow]
        for batch in batches:
            try:
                gradients = _gradients(model, batch, loss, targets, create_graph=True)
                inner = [(g * f).sum() for g, f in zip(gradients, flow, strict=True)]
                total = torch.stack(inner).sum()
                if total.requires_grad:  # else the loss is linear
                    second = torch.autograd.grad(total, weights, materialize_grads=True)
                    _add_mean(products, second, len(batches))
            except RuntimeError as error:
                if not any(word in str(error) for word in _NO_SECOND_DERIVATIVE):
                    raise
                raise ConfigError(
                    f"GraSP needs second derivatives, and this network has none: {error}; write "
                    "method='snip' or 'synflow'"
                ) from error
    products = products if mean is None else [mean(product) for product in products]
    pairs = zip(targets, products, strict=True)
    return Scores({target.name: target.weight * product for target, product in pairs})


def unsharded_targets(
    model: nn.Module, include: Iterable[str] | None, exclude: Iterable[str] | None
) -> tuple[Target, ...]:
    """Select the parameters to score, which must not be sharded."""
    targets = select_targets(model, include, exclude).targets
    for target in targets:
        if is_dtensor(target.parameter):
            raise ConfigError(
                f"{target.name} is sharded among ranks, but scores need whole parameters: write "
                "strategy='ddp', or method='random'"
            )
    return targets


def _mean_gradients(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    targets: Sequence[Target],
    mean: Mean | None,
) -> list[Tensor]:
    batches = list(batches)
    if not batches:
        raise ConfigError("there are no batches to score weights by: give at least one")
    total = [torch.zeros_like(target.parameter, requires_grad=False) for target in targets]
    for batch in batches:
        _add_mean(total, _gradients(model, batch, loss, targets), len(batches))
    return total if mean is None else [mean(grad) for grad in total]


def _gradients(
    model: nn.Module,
    batch: Any,
    loss: Loss,
    targets: Sequence[Target],
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """Compute the gradients of one batch's loss, without changing the parameters' `grad`."""
    frozen = [target for target in targets if not target.parameter.requires_grad]
    if frozen:
        raise ConfigError(
            f"{frozen[0].name} is frozen, so it has no gradient to be scored by: train it, or "
            f"write exclude=[{frozen[0].name!r}]"
        )
    weights = [target.parameter for target in targets]
    with torch.enable_grad():
        value = loss(model, batch)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise StateError(f"the loss must be a scalar tensor with a gradient, got {value!r}")
        gradients = torch.autograd.grad(
            value.reshape(()), weights, create_graph=create_graph, allow_unused=True
        )
    for target, grad in zip(targets, gradients, strict=True):
        if grad is None:
            raise ConfigError(
                f"the loss does not depend on {target.name}, so it has no gradient to be scored "
                f"by: write exclude=[{target.name!r}]"
            )
    return gradients


def _add_mean(total: Sequence[Tensor], gradients: Sequence[Tensor], count: int) -> None:
    for running, grad in zip(total, gradients, strict=True):
        running.add_(grad.detach(), alpha=1 / count)
