# SPDX-License-Identifier: MIT
"""ChannelMasker: channels as masks of parameters; back again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.channels.cut.surgery import KeptIndices, kept_indices
from regrow.channels.graph.groups import Group
from regrow.masks.targets import Target, TargetSelection
from regrow.pruning.freezing import TrainSpec
from regrow.pruning.growth import GrowthCriterion, regrow_count
from regrow.pruning.initializers import Initializer, RegrownWeights, make_initializer, zero
from regrow.pruning.initializers import removed_values as removed_values
from regrow.pruning.pruner import Undo
from regrow.pruning.removed_weights import RemovedWeights
from regrow.pruning.state import KeepRemoved
from regrow.pruning.transaction import atomic
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.names import buffers
from regrow.utils.random import make_generator

STATISTICS = ("running_mean", "running_var")


def channel_mask(name: str, tensor: Tensor, kept: KeptIndices) -> Tensor | None:
    """The mask of a tensor: what all its dimensions keep; None where all is kept."""
    dims = kept.get(name)
    if dims is None:
        return None
    mask = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
    for dim, keep in dims.items():
        places = [-1 if d == dim else 1 for d in range(tensor.ndim)]
        mask &= keep.to(mask.device).reshape(places)
    return mask


def pruned_now(name: str, tensor: Tensor, kept: KeptIndices, before: KeptIndices) -> Tensor | None:
    """Where a tensor is pruned now and was not before; None where it has no channel that went."""
    mask, old = channel_mask(name, tensor, kept), channel_mask(name, tensor, before)
    return mask if mask is None else ~mask if old is None else old & ~mask


def initial_channel(
    back: RegrownWeights, initializer: Initializer, columns: Tensor | None
) -> Tensor:
    """New rows, scale 1 and shift 0 for norms, zero for what reads a returning channel."""
    if back.weight.ndim < 2:
        return torch.full_like(back.weight, float(not back.name.endswith("bias")))
    values = initializer(back).clone()
    if columns is not None and back.input_dim is not None:
        values.index_fill_(back.input_dim, columns.nonzero().flatten().to(values.device), 0)
    return values


def channel_norms(group: Group, held: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm of what the vault holds of each channel."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for (name, dim), channels in group.members.items():
        values = held.get(name)
        if values is None or values.ndim < 2:
            continue
        rest = [d for d in range(values.ndim) if d != dim]
        places = values.double().square().sum(rest).cpu()
        total.index_add_(0, channels[channels >= 0], places[channels >= 0])
    return total.sqrt()


def read_columns(
    targets: Sequence[Target], groups: Sequence[Group], back: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Where weights read returning channels: bool vectors along their input dimension."""
    inputs = {target.name: target.input_dim for target in targets}
    found: dict[str, Tensor] = {}
    for group in groups:
        for name, dim in group.members:
            if name in inputs and dim == inputs[name] and len(back.get(group.name, ())):
                places = group.places(name, dim, back[group.name])
                found[name] = found[name] | places if name in found else places
    return found


def restore_buffer(name: str, buffer: Tensor, places: Tensor, held: Tensor | None) -> None:
    """A buffer of returning channels: what is held of it, else mean 0 and variance 1 of a norm."""
    if held is not None:
        buffer[places] = held.to(buffer.device, buffer.dtype)[places]
    elif name.endswith(STATISTICS):
        buffer[places] = float(name.endswith("running_var"))


def rank_channels(
    groups: Sequence[Group],
    pool: Mapping[str, Tensor],
    seed: tuple[int, int],
    held: Mapping[str, Tensor] | None,
) -> dict[tuple[str, int], float]:
    """A number for each masked channel: the norm of what is held of it, or by lot."""
    ranks: dict[tuple[str, int], float] = {}
    for group in groups:
        if group.name not in pool:
            continue
        generator = make_generator(*seed, group.name)
        values = torch.rand(group.size, generator=generator, dtype=torch.float64)
        values = values if held is None else channel_norms(group, held)
        ranks |= {(group.name, int(c)): float(values[c]) for c in pool[group.name]}
    return ranks


class ChannelUndo(Undo):
    """A model with masked channels that can come back.

    Args:
        model: See `MaskState`, like the next two.
        selection: Every parameter that holds a part of a channel.
        keep_removed: What goes to the vault.
        seed: For random draws.

    Attributes:
        groups: The model's groups, as it is now.
        removed: The channels that are masked now, by group.
    """

    groups: Sequence[Group]
    removed: dict[str, Tensor]

    def __init__(
        self, model: nn.Module, selection: TargetSelection, keep_removed: KeepRemoved, seed: int
    ) -> None:
        super().__init__(model, selection, keep_removed, False, seed)
        self._stats: dict[str, Tensor] = {}  # buffers of masked channels, as they were

    def unprune(
        self, names: Iterable[str] | str | None = None, optimizers: Iterable[Optimizer] = ()
    ) -> dict[str, Any]:
        """Puts masked channels back to the bit, in all their members.

        Args:
            names: Patterns of layers; channels that have a part in one come back; None: all.
            optimizers: Whose state is masked where masked channels remain.

        Returns:
            The new entry of `history`.

        Raises:
            StateError: If nothing was kept.
            ConfigError: If a pattern matches nothing.
        """
        if self.removed_weights is None:
            raise StateError("nothing was kept to put back: write keep_removed=True before pruning")
        before = self.sparsity
        self._bring(self._named_channels(names), removed_values, list(optimizers))
        return self.record_event("unprune", before)

    @atomic
    @torch.no_grad()
    def regrow(
        self,
        fraction: float | None = None,
        count: int | None = None,
        *,
        by: str | GrowthCriterion = "random",
        init: str | Initializer = "he",
        names: Iterable[str] | str | None = None,
        train: TrainSpec = "all",
        optimizers: Iterable[Optimizer] = (),
    ) -> dict[str, Any]:
        """Brings masked channels back, whole ones.

        With `init="removed"` everything is as it was. With any other, the layers that make a
        channel get new rows, norms scale 1 and shift 0, and the columns that read it are zero:
        what the network computes does not change, and both sides can learn.

        Args:
            fraction: Of the masked channels in `names`; or
            count: how many channels.
            by: "random" or "removed" (the largest norm in the vault first).
            init: With what values, see `regrow.pruning.initializers`.
            names: Patterns of layers; None: all.
            train: What trains from now on, see `Undo.regrow`.
            optimizers: Their state at the places that come back is zero.

        Returns:
            The new entry of `history`.

        Raises:
            ConfigError: For a rule that needs gradients: those of a masked channel are zero on
                both sides. For `init="zero"`: two zero sides would never learn.
        """
        initializer = self.check_regrowth(by, init)
        train, before = self.freezer.check(train), self.sparsity
        pool = self._named_channels(names)
        amount = regrow_count(fraction, count, sum(len(channels) for channels in pool.values()))
        if by == "removed" and self.removed_weights is None:
            raise StateError("by='removed' needs removed values: write keep_removed=True")
        held = self._held() if by == "removed" else None
        ranks = rank_channels(self.groups, pool, (self.seed, len(self.history)), held)
        chosen = sorted(ranks, key=lambda key: (-ranks[key], key))[:amount]
        back = {
            name: torch.tensor(sorted(c for n, c in chosen if n == name), dtype=torch.int64)
            for name in pool
        }
        regrown = self._bring(back, initializer, list(optimizers))
        self.freezer.set(train, regrown)
        trains = train if isinstance(train, str) else list(train)
        named = init if isinstance(init, str) else getattr(init, "__name__", type(init).__name__)
        return self.record_event("regrow", before, by=by, init=named, count=amount, train=trains)

    def check_regrowth(self, by: str | GrowthCriterion, init: str | Initializer) -> Initializer:
        """The initialiser of channels that come back.

        Raises:
            ConfigError: If such channels could not be ranked, or would never learn.
        """
        if by not in ("random", "removed"):
            raise ConfigError(
                f"channels come back by 'random' or 'removed', got {by!r}: a masked channel is "
                "zero on both sides, and so are its gradients"
            )
        initializer = make_initializer(init)
        if initializer is zero:
            raise ConfigError(
                "init='zero' leaves a channel with zeros on both sides, which never learns: write "
                "init='he' (rows) or init='removed'"
            )
        return initializer

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "removed": {name: channels.clone() for name, channels in self.removed.items()},
            "stats": dict(self._stats),
        }

    @atomic
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.removed = {name: channels.clone() for name, channels in state["removed"].items()}
        self._stats = {name: values.clone() for name, values in state["stats"].items()}

    def _take(self, selection: TargetSelection) -> None:
        """The same parameters in other shapes: nothing of them is masked."""
        self.selection = selection
        self.enforcer.reset({t.name: t.parameter for t in selection.targets})
        self._pruned = {target.name: 0 for target in selection.targets}
        self.removed_weights = None if self.removed_weights is None else RemovedWeights()
        self._stats = {}

    @atomic
    def _mask(self, removed: dict[str, Tensor], optimizers: list[Optimizer]) -> None:
        """Masks channels; their values go to the vault."""
        kept, before = kept_indices(self.groups, removed), kept_indices(self.groups, self.removed)
        self.enforcer.changes.mark_started()
        for name, buffer in buffers(self.model).items() if self.removed_weights is not None else ():
            # statistics drift while nothing comes through
            places = pruned_now(name, buffer, kept, before)
            if places is not None:
                held = self._stats.setdefault(name, torch.zeros_like(buffer, device="cpu"))
                held[places.cpu()] = buffer[places].detach().cpu()
        self.removed = removed
        for target in self.targets:
            mask = channel_mask(target.name, target.parameter, kept)
            if mask is not None and not torch.equal(mask, self.enforcer.mask(target.name)):
                self._set(target.name, mask, optimizers)
        self.enforce(optimizers)

    @atomic
    @torch.no_grad()
    def _bring(
        self, back: Mapping[str, Tensor], initializer: Initializer, optimizers: list[Optimizer]
    ) -> dict[str, Tensor]:
        """Brings channels back; returns the places that are live again, by parameter."""
        restore = initializer is removed_values
        left = {
            name: channels[~torch.isin(channels, back[name])] if name in back else channels
            for name, channels in self.removed.items()
        }
        before, after = kept_indices(self.groups, self.removed), kept_indices(self.groups, left)
        columns = read_columns(self.targets, self.groups, back)
        seed, regrown = (self.seed, len(self.history)), {}
        self.enforcer.changes.mark_started()
        for target in self.targets:
            old = channel_mask(target.name, target.parameter, before)
            places = pruned_now(target.name, target.parameter, before, after)
            if old is None or places is None or not bool(places.any()):
                continue
            make = partial(
                RegrownWeights,
                target.name,
                target.parameter.detach(),
                old,
                places,
                make_generator(*seed, f"{target.name} init"),
                target.input_dim,
                target.groups,
                None if self.removed_weights is None else self.removed_weights.dense(target, old),
                self.originals.get(target.name),
            )
            value = initializer
            if not restore:
                value = partial(
                    initial_channel, initializer=initializer, columns=columns.get(target.name)
                )
            self._bring_back(make, value, restore, optimizers)
            regrown[target.name] = places
        for name, buffer in buffers(self.model).items():
            places = pruned_now(name, buffer, before, after)
            if places is not None:
                known = restore or not name.endswith(STATISTICS)
                restore_buffer(name, buffer, places, self._stats.get(name) if known else None)
        self.removed = left
        self.enforce(optimizers)
        return regrown

    def _held(self) -> dict[str, Tensor]:
        """What the vault holds, of the parameters' shapes."""
        found = {target.name: self._removed(target) for target in self.targets}
        return {name: values for name, values in found.items() if values is not None}

    def _named_channels(self, names: Iterable[str] | str | None) -> dict[str, Tensor]:
        """Masked channels of the groups with a member that patterns mean."""
        if names is None:
            return dict(self.removed)
        meant = {target.name for target in self.named(names)}
        return {
            group.name: self.removed[group.name]
            for group in self.groups
            if group.name in self.removed and meant & {name for name, _ in group.members}
        }
