# SPDX-License-Identifier: MIT
"""Find the layers or channel groups that a scan prunes one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regrow.channels.channel_masker import channel_mask
from regrow.channels.config import ChannelConfig
from regrow.channels.cut.surgery import kept_indices
from regrow.channels.graph.groups import Group
from regrow.channels.importance import ChannelCriterion, channel_scores, get_channel_criterion
from regrow.channels.pruner import ChannelPruner
from regrow.criteria.base import Criterion, TrackingCriterion, compute_scores, get_criterion
from regrow.criteria.elementwise import magnitude
from regrow.masks.targets import Target, select_targets
from regrow.masks.topk import global_topk_masks
from regrow.profiling.macs import positions
from regrow.profiling.pruned_counts import checked_masks
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.names import named_parameters, strip_compile_prefix

Zeros = list[tuple[nn.Parameter, Tensor]]  # parameters, and bool masks of what becomes zero


@dataclass(frozen=True, eq=False)
class PruningUnit:
    """A layer or a group of channels; fields as in `Sensitivity`, but counts, not fractions."""

    name: str
    size: int
    n_pruned: int  # already
    weights: int
    macs: float | None
    zeros: Callable[[int], Zeros]  # what becomes zero at a number of pruned weights or channels


def weight_units(
    model: nn.Module,
    criterion: str | Criterion | TrackingCriterion = "magnitude",
    *,
    masks: Mapping[str, Tensor] | None = None,
    example_input: Any = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    seed: int = 0,
) -> tuple[list[PruningUnit], dict[str, str]]:
    """Find the layers to prune, and why others are not, and rank the weights within each."""
    rule = get_criterion(criterion)
    if isinstance(rule, TrackingCriterion):
        raise ConfigError(
            f"criterion {criterion!r} collects its scores in training, and nothing is trained "
            "here: write 'magnitude', or 'taylor' with gradients"
        )
    selection, masks = select_targets(model, include, exclude), _zeroed_masks(model, masks)
    used = {} if example_input is None else positions(model, example_input)
    units = []
    for target in selection.targets:
        kept, size = masks.get(target.name), target.parameter.numel()
        n_pruned = 0 if kept is None else size - int(kept.count_nonzero())
        macs = None if example_input is None else size * used.get(target.name, 0.0)
        zeros = partial(_zero_weights, target, _scores(target, rule, seed), kept, rule is magnitude)
        units.append(PruningUnit(target.name, size, n_pruned, size, macs, zeros))
    return units, dict(selection.reasons)


def channel_units(
    model: nn.Module,
    criterion: str | ChannelCriterion = "l2",
    *,
    example_input: Any,
    masks: Mapping[str, Tensor] | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    seed: int = 0,
) -> tuple[list[PruningUnit], dict[str, str]]:
    """Find the groups that could be cut, and why others cannot, and rank channels within each."""
    method = ChannelConfig(criterion, include=include, exclude=exclude, seed=seed)
    pruner = ChannelPruner(model, example_input, method, keep_removed=False)
    tensors, masks = dict(model.named_parameters()), _zeroed_masks(model, masks)
    used, rule = positions(model, example_input), get_channel_criterion(criterion, seed)
    units = []
    for group in pruner.free:
        pruned = _pruned_channels(group, tensors, masks)
        scores = channel_scores(group, tensors, rule).masked_fill(pruned, -torch.inf)
        order = scores.argsort(stable=True)
        places = _positions_of(group, tensors, order)
        counts = {name: int(mask.count_nonzero()) for name, mask in places.items()}
        macs = sum(used.get(strip_compile_prefix(name), 0.0) * n for name, n in counts.items())
        zeros = partial(_zero_channels, group, tensors, order)
        n_pruned, weights = int(pruned.count_nonzero()), sum(counts.values())
        units.append(PruningUnit(group.name, group.size, n_pruned, weights, macs, zeros))
    return units, {group.name: group.fixed_reason for group in pruner.groups if group.fixed_reason}


def _zeroed_masks(model: nn.Module, masks: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    """Check that masks fit the model and masked weights are zero; move them to its device."""
    named, masks = named_parameters(model), checked_masks(model, masks)
    moved = {name: mask.to(named[name].device) for name, mask in masks.items()}
    for name, mask in moved.items():
        if bool(named[name].detach()[~mask].count_nonzero()):
            raise StateError(
                f"the masks prune weights of {name} that are not zero: call "
                "regrow.enforce(model, masks) first"
            )
    return moved


def _scores(target: Target, rule: Criterion, seed: int) -> Tensor:
    """Return the scores of a layer; its weights if they are ranked by magnitude."""
    weight = target.parameter.detach()
    if rule is magnitude:
        return weight
    return compute_scores(rule, target.name, weight, target.parameter.grad, (seed, 0))


def _zero_weights(
    target: Target, scores: Tensor, kept: Tensor | None, by_magnitude: bool, count: int
) -> Zeros:
    names = [target.name]
    [mask] = global_topk_masks([scores], count, [kept], magnitude=by_magnitude, names=names)
    return [(target.parameter, ~mask)]


def _zero_channels(
    group: Group, tensors: Mapping[str, nn.Parameter], order: Tensor, count: int
) -> Zeros:
    masks = _positions_of(group, tensors, order[:count])
    return [(tensors[name], mask) for name, mask in masks.items()]


def _positions_of(
    group: Group, tensors: Mapping[str, nn.Parameter], channels: Tensor
) -> dict[str, Tensor]:
    """Return the positions of some channels in all parameters, as bool masks."""
    kept, found = kept_indices([group], {group.name: channels}, masked=True), {}
    for name in dict.fromkeys(name for name, _ in group.members if name in tensors):
        mask = channel_mask(name, tensors[name], kept)
        if mask is not None:
            found[name] = ~mask
    return found


def _pruned_channels(
    group: Group, tensors: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]
) -> Tensor:
    """Return which channels are masked in all their parameters, as a bool vector."""
    alive = torch.zeros(group.size + 1, dtype=torch.bool)
    for (name, dim), channels in group.members.items():
        if name not in tensors or (name, dim) in group.unmasked:
            continue
        mask = masks.get(strip_compile_prefix(name))
        rest = [d for d in range(tensors[name].ndim) if d != dim]
        if mask is None:
            alive[channels] = True
        else:
            kept = mask.cpu().sum(rest) > 0 if rest else mask.cpu()
            alive[channels[kept]] = True
    return ~alive[:-1]
