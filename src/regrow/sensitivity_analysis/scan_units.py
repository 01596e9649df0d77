# SPDX-License-Identifier: MIT
"""Layers or channel groups that are pruned one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regrow.channels.channel_masker import channel_mask
from regrow.channels.config import ChannelConfig
from regrow.channels.cut.surgery import kept_indices
from regrow.channels.graph.groups import Group
from regrow.channels.importance import ChannelCriterion, get_channel_criterion
from regrow.channels.importance import channel_scores as channel_score
from regrow.channels.pruner import ChannelPruner
from regrow.criteria.base import Criterion, TrackingCriterion, compute_scores, get_criterion
from regrow.criteria.elementwise import magnitude
from regrow.masks.masks import Masks
from regrow.masks.targets import Target, select_targets
from regrow.masks.topk import global_topk_masks
from regrow.profiling.macs import positions
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.names import named_parameters, strip_compile_prefix

Zeros = list[tuple[nn.Parameter, Tensor]]  # parameters, and the places that become zero


@dataclass(frozen=True, eq=False)
class Part:
    """What is pruned alone.

    Attributes:
        name: Of the parameter, or of the group of channels.
        size: How many units it has, pruned ones included: weights, or channels.
        gone: How many of these are pruned already.
        weights: How many weights it holds; of channels everything that would go with them.
        macs: Multiply-accumulates of one example that these take part in; None: not known.
        zeros: How many units -> what becomes zero, least important first, what is gone included.
    """

    name: str
    size: int
    gone: int
    weights: int
    macs: float | None
    zeros: Callable[[int], Zeros]


def weight_parts(
    model: nn.Module,
    criterion: str | Criterion | TrackingCriterion = "magnitude",
    *,
    masks: Mapping[str, Tensor] | None = None,
    example_input: Any = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    seed: int = 0,
) -> tuple[list[Part], dict[str, str]]:
    """The weights of each layer, ranked within it.

    Returns:
        The parts in the order of the model, and why the other parameters are none.

    Raises:
        ConfigError: For a criterion that gathers its scores while training.
        StateError: For masks of another model; where gradients are needed and missing.
    """
    rule = get_criterion(criterion)
    if isinstance(rule, TrackingCriterion):
        raise ConfigError(
            f"criterion {criterion!r} gathers its scores while training, and nothing is trained "
            "here: write 'magnitude', or 'taylor' with gradients"
        )
    selection, masks = select_targets(model, include, exclude), checked_masks(model, masks)
    used = {} if example_input is None else positions(model, example_input)
    parts = []
    for target in selection.targets:
        kept, size = masks.get(target.name), target.parameter.numel()
        gone = 0 if kept is None else size - int(kept.count_nonzero())
        macs = None if example_input is None else size * used.get(target.name, 0.0)
        zeros = _weights(target, rule, kept, seed)
        parts.append(Part(target.name, size, gone, size, macs, zeros))
    return parts, dict(selection.reasons)


def channel_parts(
    model: nn.Module,
    criterion: str | ChannelCriterion = "l2",
    *,
    example_input: Any,
    masks: Mapping[str, Tensor] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    seed: int = 0,
) -> tuple[list[Part], dict[str, str]]:
    """The groups of channels that could be cut, ranked within each.

    A channel that is masked in all its parameters counts as gone.

    Returns:
        The parts, and why the other groups are none.

    Raises:
        ConfigError: If the model cannot be traced, or no channel can be cut.
    """
    method = ChannelConfig(criterion, include=include, exclude=exclude, seed=seed)
    pruner = ChannelPruner(model, example_input, method, keep_removed=False)
    tensors, masks = dict(model.named_parameters()), checked_masks(model, masks)
    used, rule = positions(model, example_input), get_channel_criterion(criterion, seed)
    parts = []
    for group in pruner.free:
        gone = _gone(group, tensors, masks)
        ranks = channel_score(group, tensors, rule)
        order = ranks.masked_fill(gone, -torch.inf).argsort(stable=True)
        zeros = _channels(group, tensors, order)
        held = {name: int(zero.count_nonzero()) for name, zero in _all(group, tensors).items()}
        macs = sum(
            used.get(strip_compile_prefix(name), 0.0) * count for name, count in held.items()
        )
        count = int(gone.count_nonzero())
        parts.append(Part(group.name, group.size, count, sum(held.values()), macs, zeros))
    return parts, {group.name: group.fixed_reason for group in pruner.groups if group.fixed_reason}


def checked_masks(model: nn.Module, masks: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    """The masks where the parameters are; they must be the model's, and pruned places zero.

    Raises:
        StateError: Naming the parameters where they are not.
    """
    if masks is None:
        return {}
    named = named_parameters(model)
    masks = masks if isinstance(masks, Masks) else Masks(masks)
    masks.check({name: named[name] for name in masks if name in named})
    there = {name: mask.to(named[name].device) for name, mask in masks.items()}
    for name, mask in there.items():
        if bool(named[name].detach()[~mask].count_nonzero()):
            raise StateError(
                f"the masks prune weights of {name} that are not zero: the model must be as the "
                "masks say, write regrow.enforce(model, masks) first"
            )
    return there


def _weights(
    target: Target, rule: Criterion, kept: Tensor | None, seed: int
) -> Callable[[int], Zeros]:
    weight = target.parameter
    by_magnitude = rule is magnitude
    scores = weight.detach()
    if not by_magnitude:
        scores = compute_scores(rule, target.name, scores, weight.grad, (seed, 0))

    def zeros(count: int) -> Zeros:
        [mask] = global_topk_masks(
            [scores], count, [kept], magnitude=by_magnitude, names=[target.name]
        )
        return [(weight, ~mask)]

    return zeros


def _channels(
    group: Group, tensors: Mapping[str, nn.Parameter], order: Tensor
) -> Callable[[int], Zeros]:
    def zeros(count: int) -> Zeros:
        found = _zeros(group, tensors, order[:count])
        return [(tensors[name], zero) for name, zero in found.items()]

    return zeros


def _all(group: Group, tensors: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return _zeros(group, tensors, torch.arange(group.size))


def _zeros(
    group: Group, tensors: Mapping[str, nn.Parameter], channels: Tensor
) -> dict[str, Tensor]:
    """The places of some channels in all parameters that hold a part of them."""
    kept, found = kept_indices([group], {group.name: channels}), {}
    for name in dict.fromkeys(name for name, _ in group.members if name in tensors):
        mask = channel_mask(name, tensors[name], kept)
        if mask is not None:
            found[name] = ~mask
    return found


def _gone(group: Group, tensors: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> Tensor:
    """Which channels are masked in all their parameters, as a bool vector."""
    alive = torch.zeros(group.size + 1, dtype=torch.bool)
    for (name, dim), channels in group.members.items():
        if name not in tensors:
            continue
        mask = masks.get(strip_compile_prefix(name))
        rest = [d for d in range(tensors[name].ndim) if d != dim]
        if mask is None:
            alive[channels] = True
        else:
            places = mask.cpu().sum(rest) > 0 if rest else mask.cpu()
            alive[channels[places]] = True
    return ~alive[:-1]
