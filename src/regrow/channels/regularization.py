# SPDX-License-Identifier: MIT
"""Penalties that draw whole channels to zero while a network trains."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from regrow.channels.graph.groups import Group, Place
from regrow.channels.importance import is_scale
from regrow.utils.errors import ConfigError


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
    scales = [t.abs().sum() for name, t in tensors.items() if is_scale(name, tensors)]
    if not scales:
        raise ConfigError("the model has no norm with a scale: there is nothing to slim")
    return torch.stack(scales).sum()


def sparse_group_factors(squares: Tensor) -> Tensor:
    """Compute how strongly each channel of a group is drawn to zero, from 1 to 16.

    `2^(4 (max - n_k) / (max - min))` for squared norms n; channels that are zero do not count.

    Source: Fang et al. 2023 (DepGraph), arXiv 2301.12900, section on group-level pruning.
    """
    alive = squares[squares > 0]
    if not len(alive) or alive.max() == alive.min():
        return torch.ones_like(squares)
    share = (alive.max() - squares) / (alive.max() - alive.min())
    return torch.exp2(4 * share.clamp(max=1))


class GroupPenalty:
    """The penalty `sum over channels k of f_k / 2 * |w_k|^2`, w_k in all members of a group."""

    def __init__(self, groups: Sequence[Group], tensors: Mapping[str, Tensor]) -> None:
        self._tensors, self._sizes = tensors, {group.name: group.size for group in groups}
        self._channels: dict[str, dict[Place, Tensor]] = {
            group.name: {
                (name, dim): channels.where(channels >= 0, group.size).to(tensors[name].device)
                for (name, dim), channels in group.members.items()
                if name in tensors
            }
            for group in groups
        }

    @torch.no_grad()
    def squares(self, name: str) -> Tensor:
        """Return the squared norm of each channel of a group."""
        places = self._channels[name]
        total = torch.zeros(self._sizes[name] + 1, device=next(iter(places.values())).device)
        for (tensor, dim), channels in places.items():
            rows = self._tensors[tensor].movedim(dim, 0).reshape(len(channels), -1).float()
            total.index_add_(0, channels, rows.square().sum(1))
        return total[:-1]  # the last is for positions without a channel

    @torch.no_grad()
    def add_gradients(
        self, factors: Mapping[str, Tensor], trained: Collection[int] | None = None
    ) -> None:
        """Add `f_k w_k` to gradients, f by group; `trained` are ids of parameters, None: all."""
        for name, factor in factors.items():
            padded = torch.cat([factor, factor.new_zeros(1)])
            for (tensor, dim), channels in self._channels[name].items():
                weight = self._tensors[tensor]
                if weight.grad is not None and (trained is None or id(weight) in trained):
                    shape = [-1 if d == dim else 1 for d in range(weight.ndim)]
                    each = padded.to(weight.device)[channels].reshape(shape)
                    weight.grad.add_(weight * each.to(weight.dtype))
