# SPDX-License-Identifier: MIT
"""ChannelMasker: masks channels in all their parameters, and restores them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer

from regrow.channels.cut.surgery import KeptIndices, RemovedChannels, kept_indices, kept_mask
from regrow.channels.graph.groups import Group
from regrow.channels.importance import sum_by_channel
from regrow.masks.targets import Target, TargetSelection
from regrow.pruning.initializers import Initializer, RegrownWeights, removed_values
from regrow.pruning.restore import make_regrown, write_regrown
from regrow.pruning.state import MaskState
from regrow.pruning.transaction import atomic
from regrow.utils.names import buffers
from regrow.utils.random import make_generator

STATISTICS = ("running_mean", "running_var")


def channel_mask(name: str, tensor: Tensor, kept: KeptIndices) -> Tensor | None:
    """Return the mask of a tensor; None where everything is kept."""
    return kept_mask(tensor.shape, kept[name], tensor.device) if name in kept else None


def pruned_now(name: str, tensor: Tensor, kept: KeptIndices, before: KeptIndices) -> Tensor | None:
    """Return where a tensor is pruned now and was not before; None for one that is not cut."""
    mask, old = channel_mask(name, tensor, kept), channel_mask(name, tensor, before)
    return mask if mask is None else ~mask if old is None else old & ~mask


def initial_channel(
    back: RegrownWeights, initializer: Initializer, columns: Tensor | None
) -> Tensor:
    """Make new rows; norms get scale 1 and shift 0, columns that read a returning channel zero."""
    if back.weight.ndim < 2:
        is_bias = "bias" in back.name.rpartition(".")[2]  # also `bias_ih_l0`
        return torch.full_like(back.weight, float(not is_bias))
    values = initializer(back).clone()
    if columns is not None and back.input_dim is not None:
        values.index_fill_(back.input_dim, columns.nonzero().flatten().to(values.device), 0)
    return values


def read_columns(
    targets: Sequence[Target], groups: Sequence[Group], back: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return where weights read returning channels, as bool vectors over their inputs."""
    inputs = {target.name: target.input_dim for target in targets}
    found: dict[str, Tensor] = {}
    for group in groups:
        for name, dim in group.members:
            if name in inputs and dim == inputs[name] and len(back.get(group.name, ())):
                places = group.places(name, dim, back[group.name])
                found[name] = found[name] | places if name in found else places
    return found


def restore_buffer(name: str, buffer: Tensor, places: Tensor, stored: Tensor | None) -> None:
    """Restore a buffer where channels return; without stored values mean 0 and variance 1."""
    if stored is not None:
        buffer[places] = stored.to(buffer.device, buffer.dtype)[places]
    elif name.endswith(STATISTICS):
        buffer[places] = float(name.endswith("running_var"))


def rank_channels(
    groups: Sequence[Group],
    pool: Mapping[str, Tensor],
    seed: tuple[int, int],
    stored: Mapping[str, Tensor] | None,
) -> dict[tuple[str, int], float]:
    """Score each masked channel of a pool by the norm of its stored values, or at random."""
    ranks: dict[tuple[str, int], float] = {}
    for group in groups:
        if group.name not in pool:
            continue
        generator = make_generator(*seed, group.name)
        values = torch.rand(group.size, generator=generator, dtype=torch.float64)
        if stored is not None:
            values = sum_by_channel(group, stored, torch.square).sqrt()
        ranks |= {(group.name, int(c)): float(values[c]) for c in pool[group.name]}
    return ranks


class ChannelMaskerState(TypedDict):
    """The attributes `removed` and `statistics` of `ChannelMasker`."""

    removed: dict[str, Tensor]
    statistics: dict[str, Tensor]


class ChannelMasker:
    """Masks channels in all their parameters, and restores them."""

    def __init__(self, state: MaskState, groups: Sequence[Group]) -> None:
        self.state, self.groups = state, groups
        self.enforcer = state.enforcer
        self.removed: dict[str, Tensor] = {}  # indices of the masked channels, by group
        # buffers as they were when their channels were masked; zero elsewhere
        self.statistics: dict[str, Tensor] = {}

    def replace_groups(self, groups: Sequence[Group], selection: TargetSelection) -> None:
        """Continue with parameters of other shapes, in which nothing is masked."""
        self.state.replace_targets(selection)
        self.groups, self.removed, self.statistics = groups, {}, {}

    def _kept(self, removed: RemovedChannels) -> KeptIndices:
        return kept_indices(self.groups, removed, masked=True)

    def unmasked_values(self, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights that are cut without being masked, with the stored values in them.

        `before` are their values before the cut. Empty if values are not stored.
        """
        stored, kept, found = self.state.removed_weights, self._kept(self.removed), {}
        if stored is None:
            return {}
        for name in {name: None for group in self.groups for name, _ in group.unmasked}:
            found[name] = before[name]
            mask = channel_mask(name, before[name], kept)
            values = None if mask is None else stored.scatter_like(name, before[name], mask)
            if mask is not None and values is not None:
                found[name] = torch.where(mask, before[name], values)
        return found

    @atomic
    def mask(self, removed: dict[str, Tensor], optimizers: Sequence[Optimizer]) -> None:
        """Mask channels, and store their values."""
        state, statistics = self.state, self.statistics
        kept, before = self._kept(removed), self._kept(self.removed)
        self.enforcer.transaction.mark_started()
        if state.removed_weights is not None:
            for name, buffer in buffers(state.model).items():
                places = pruned_now(name, buffer, kept, before)
                if places is not None:  # statistics change while a channel is zero
                    stored = statistics.setdefault(name, torch.zeros_like(buffer, device="cpu"))
                    stored[places.cpu()] = buffer[places].detach().cpu()
        self.removed = removed
        for target in state.targets:
            mask = channel_mask(target.name, target.parameter, kept)
            if mask is not None and not torch.equal(mask, self.enforcer.mask(target.name)):
                state.set(target.name, mask, optimizers)
        state.enforce(optimizers)

    @atomic
    @torch.no_grad()
    def bring_back(
        self, back: Mapping[str, Tensor], initializer: Initializer, optimizers: Sequence[Optimizer]
    ) -> dict[str, Tensor]:
        """Unmask channels; return bool tensors of the weights that are kept again."""
        state, restore = self.state, initializer is removed_values
        left = {
            name: channels[~torch.isin(channels, back[name])] if name in back else channels
            for name, channels in self.removed.items()
        }
        before, after = self._kept(self.removed), self._kept(left)
        columns = read_columns(state.targets, self.groups, back)
        seed, regrown = (state.seed, len(state.history)), {}
        self.enforcer.transaction.mark_started()
        for target in state.targets:
            places = pruned_now(target.name, target.parameter, before, after)
            if places is None or not bool(places.any()):
                continue
            make = partial(make_regrown, state, target, places, seed, initializer)
            read = columns.get(target.name)
            new = partial(initial_channel, initializer=initializer, columns=read)
            write_regrown(state, make, initializer if restore else new, restore, optimizers)
            regrown[target.name] = places
        for name, buffer in buffers(state.model).items():
            places = pruned_now(name, buffer, before, after)
            if places is not None:
                known = restore or not name.endswith(STATISTICS)
                restore_buffer(name, buffer, places, self.statistics.get(name) if known else None)
        self.removed = left
        state.enforce(optimizers)
        return regrown

    def removed_values(self) -> dict[str, Tensor]:
        """Return the stored values in float64, in the parameters' shapes."""
        found = {target.name: self.state.removed(target) for target in self.state.targets}
        return {name: values.double() for name, values in found.items() if values is not None}

    def named(self, names: Iterable[str] | str | None) -> dict[str, Tensor]:
        """Return the masked channels of groups with a member that patterns match; None: of all."""
        if names is None:
            return dict(self.removed)
        meant = {target.name for target in self.state.named(names)}
        return {
            group.name: self.removed[group.name]
            for group in self.groups
            if group.name in self.removed and meant & {name for name, _ in group.members}
        }

    def state_dict(self) -> ChannelMaskerState:
        """Return masked channels and their statistics; masks are part of `MaskState`."""
        removed = {name: channels.clone() for name, channels in self.removed.items()}
        return {"removed": removed, "statistics": dict(self.statistics)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.removed = {name: channels.clone() for name, channels in state["removed"].items()}
        self.statistics = {name: kept.clone() for name, kept in state["statistics"].items()}
