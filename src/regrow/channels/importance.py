# SPDX-License-Identifier: MIT
"""Scores of channels: L1, L2, batch-norm scale, Taylor, FPGM, random.

A channel is scored over all members of its group: rows of the layers that compute it and columns of
those that read it. Scores that depend on a layer's scale are divided by the group's mean.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from regrow.channels.graph.groups import Group
from regrow.utils.errors import ConfigError, StateError, check_choice

ChannelCriterion = Callable[[Group, Mapping[str, Tensor]], Tensor]


def l1(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Sum of absolute weights, divided by the group's mean; `(group.size,)` (Li et al. 2017)."""
    return _normalised(sum_by_channel(group, tensors, torch.abs))


def l2(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm of the weights, divided by the group's mean; `(group.size,)`."""
    return _normalised(sum_by_channel(group, tensors, torch.square).sqrt())


def bn_scale(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Absolute scale of the norms of a channel (Liu et al. 2017); train with `slimming` for it."""
    total = torch.zeros(group.size, dtype=torch.float64)
    scales = [(n, d) for n, d in group.members if _is_scale(n, tensors)]
    if not scales:
        raise ConfigError(
            f"criterion 'bn' ranks by the scale of norms, and {group.name} has none: exclude it, "
            "or choose 'l2'"
        )
    for name, dim in scales:
        total += _gathered(group, name, dim, tensors[name].detach().abs())
    return total


def taylor(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Squared first-order change of the loss, `(sum of g * w)^2` (Molchanov et al. 2019, eq. 8)."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for name, dim in group.members:
        weight = tensors.get(name)
        if weight is None or not weight.requires_grad:
            continue
        if weight.grad is None:
            raise StateError(f"{name} has no gradient: run a backward pass before pruning")
        total += _gathered(group, name, dim, (weight * weight.grad).detach())
    return total.square()


def fpgm(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Sum of distances to all other filters of the layer (He et al. 2019, eq. 4)."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for name, dim in group.rows:
        if name not in tensors:
            continue
        rows = tensors[name].detach().movedim(dim, 0).flatten(1).double().cpu()
        total += _gathered(group, name, dim, torch.cdist(rows, rows).sum(1))
    return _normalised(total)


def random(seed: int) -> ChannelCriterion:
    """Return a criterion of random scores, the same for the same seed and group."""

    def draw(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{group.name}".encode()))
        return torch.rand(group.size, generator=generator, dtype=torch.float64)

    return draw


CHANNEL_CRITERIA: dict[str, ChannelCriterion] = {
    "l1": l1,
    "l2": l2,
    "bn": bn_scale,
    "taylor": taylor,
    "fpgm": fpgm,
}


def get_channel_criterion(criterion: str | ChannelCriterion, seed: int) -> ChannelCriterion:
    """Return a criterion by its name; raise `ConfigError` for an unknown one."""
    if callable(criterion):
        return criterion
    if criterion == "random":
        return random(seed)
    return CHANNEL_CRITERIA[check_choice("criterion", criterion, (*CHANNEL_CRITERIA, "random"))]


def channel_scores(
    group: Group, tensors: Mapping[str, Tensor], criterion: ChannelCriterion
) -> Tensor:
    """Score a group; check that there is one finite number a channel."""
    scores = criterion(group, tensors).detach().double().cpu()
    if scores.shape != (group.size,):
        raise ConfigError(
            f"the criterion gave {tuple(scores.shape)} for the {group.size} channels of "
            f"{group.name}: give one score each"
        )
    if not bool(scores.isfinite().all()):
        raise StateError(f"scores of {group.name} are not finite: has training diverged?")
    return scores


def slimming(tensors: Mapping[str, Tensor]) -> Tensor:
    """Compute the penalty of Network Slimming: the sum of absolute norm scales (Liu et al. 2017).

    Args:
        tensors: Parameters by name, such as `dict(model.named_parameters())`.

    Example:
        >>> from torch import nn
        >>> norm = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))
        >>> slimming(dict(norm.named_parameters())).item()
        3.0
    """
    scales = [t.abs().sum() for name, t in tensors.items() if _is_scale(name, tensors)]
    if not scales:
        raise ConfigError("the model has no norm with a scale: there is nothing to slim")
    return torch.stack(scales).sum()


def _is_scale(name: str, tensors: Mapping[str, Tensor]) -> bool:
    return name.rpartition(".")[2] == "weight" and name in tensors and tensors[name].ndim == 1


def sum_by_channel(
    group: Group, tensors: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]
) -> Tensor:
    """Sum a function of the weights of each channel; norms and biases are left out."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for name, dim in group.members:
        if name in tensors and tensors[name].ndim > 1:
            total += _gathered(group, name, dim, change(tensors[name].detach()))
    return total


def _gathered(group: Group, name: str, dim: int, values: Tensor) -> Tensor:
    """Sum the values of each channel of one member."""
    rest = [d for d in range(values.ndim) if d != dim] if values.ndim > 1 else []
    places = (values.sum(rest, dtype=torch.float64) if rest else values.double()).cpu()
    channels = group.members[name, dim]
    used = channels >= 0
    return torch.zeros(group.size, dtype=torch.float64).index_add(0, channels[used], places[used])


def _normalised(scores: Tensor) -> Tensor:
    alive = scores[scores > 0]  # without channels that are zeroed already
    return scores / alive.mean() if len(alive) else scores
