# SPDX-License-Identifier: MIT
"""Masks of one model, with their counts, history and removed weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer, Rprop

from regrow.distributed.parameters import Shards
from regrow.distributed.shard import is_dtensor, local_tensor, reshard_fsdp, to_dtensor_like
from regrow.masks.masks import Masks, PackedMasks, check_shapes
from regrow.masks.targets import Target, TargetSelection
from regrow.pruning.enforcer import MaskEnforcer, SoftMaskEnforcer
from regrow.pruning.freezing import Freezer
from regrow.pruning.removed_weights import MOMENT, RemovedWeights
from regrow.pruning.transaction import atomic
from regrow.utils.errors import ConfigError, StateError, check_patterns
from regrow.utils.optimizers import is_per_weight

KeepRemoved = bool | Literal["moments"]


class HistoryEntry(TypedDict, total=False):
    """One change of masks; `event` to `pruned` are always present."""

    event: int  # its number, from 0
    kind: str  # prune, dense, unprune, regrow, drop_and_grow, compact, expand or rollback
    before: float  # sparsity before
    after: float  # sparsity after
    target: float  # the sparsity last requested
    threshold: float  # scores below it were pruned
    pruned: int  # number of pruned weights after it
    step: int  # trainer.global_step, within a fit
    epoch: int  # trainer.current_epoch, within a fit
    by: str  # growth criterion of a regrowth, like the next three
    init: str  # its initializer
    count: int  # number of weights or channels that returned
    train: str | list[str]  # what trains afterwards
    share: float  # drop fraction of an update of sparse training
    moved: int  # number of kept weights that were not kept before it
    overlap: float  # Jaccard index of the kept weights before and after
    channels: dict[str, int]  # number of channels of each group that are masked, or were cut
    learned: float  # sparsity of learned masks before they were fixed
    refitted: dict[str, int]  # number of input rows on which each weight was refitted
    repair: str  # the repair of a network pruned after training; see `regrow.repair`
    agreement: float  # share of examples with the dense network's class after it
    explored: float  # fraction of the weights that sparse training has kept at some time
    phase: str  # "sparse" or "dense", of alternating phases
    cause: str  # why a callback let weights return
    rewound_to: int | None  # the step to which weights or learning rate were rewound
    lost: float | None  # loss of monitored accuracy by an event; None where it was not finite
    reason: str  # why the search of an accuracy budget ended


class MaskStateDict(TypedDict):
    """State of a `MaskState`: tensors and builtin types only."""

    masks: PackedMasks
    target: float  # the sparsity last requested
    sparsity_before_cut: float  # see `MaskState`
    history: list[HistoryEntry]
    # Values at pruned positions, see `RemovedWeights.values`; in a sharded checkpoint DTensors of
    # the parameters' shapes. None if not stored.
    removed_weights: dict[str, Tensor] | None
    dense: dict[str, Tensor] | None  # likewise the dense values under `soft=True`
    originals: dict[str, Tensor]  # remembered values by name
    train: PackedMasks | None  # what trains; None: everything


class MaskState:
    """Masks of the selected parameters of one model; a pruner decides when they change.

    Parameters are changed in place, never replaced, and no module is touched. For `keep_removed`
    and `soft` see `regrow.Pruner`.
    """

    def __init__(
        self,
        model: nn.Module,
        selection: TargetSelection,
        keep_removed: KeepRemoved,
        soft: bool = False,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.selection = selection
        self.keep_removed = keep_removed
        self.soft = soft
        self.seed = seed
        parameters = {target.name: target.parameter for target in self.targets}
        self.shards = Shards(parameters)
        self.enforcer = SoftMaskEnforcer(parameters) if soft else MaskEnforcer(parameters)
        self.freezer = Freezer(model, self.enforcer)
        self.target = 0.0  # the sparsity last requested
        # when another pruner cut channels out; it counts as reached from then on
        self.sparsity_before_cut = 0.0
        self.history: list[HistoryEntry] = []
        # under soft masks the dense values include the removed ones
        self.removed_weights = RemovedWeights() if keep_removed and not soft else None
        self.originals: dict[str, Tensor] = {}  # for `init="original"`
        self.momenta: dict[str, Tensor] = {}  # running means of dense gradients
        self.averages_gradients = False  # whether they are computed
        self._pruned = dict.fromkeys(self.enforcer.parameters, 0)

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.selection.targets

    @property
    def total(self) -> int:
        """The number of prunable weights."""
        return sum(target.parameter.numel() for target in self.targets)

    @property
    def pruned(self) -> int:
        """The number of pruned weights."""
        return sum(self._pruned.values())

    @property
    def sparsity(self) -> float:
        return self.pruned / self.total

    @property
    def densities(self) -> dict[str, float]:
        """The kept fraction of each parameter."""
        return {t.name: 1 - self._pruned[t.name] / t.parameter.numel() for t in self.targets}

    @property
    def masks(self) -> Masks:
        """Bool masks, made on access; for sharded parameters DTensors, sharded alike."""
        kept = {t.name: t.parameter.numel() - self._pruned[t.name] for t in self.targets}
        pairs = ((target, self.enforcer.mask(target.name)) for target in self.targets)
        return Masks({t.name: to_dtensor_like(t.parameter, mask) for t, mask in pairs}, kept)

    @property
    def returned_weights(self) -> bool:
        """Whether the last event let pruned weights return, which may be zero since."""
        return bool(self.history) and self.history[-1]["kind"] not in ("prune", "compact")

    def working_masks(self) -> dict[str, Tensor]:
        """The masks of parameters of which something is pruned, non-zero = kept; no copies."""
        masks = {target.name: self.enforcer.kept(target.name) for target in self.targets}
        return {name: mask for name, mask in masks.items() if mask is not None}

    def pruned_count(self, name: str) -> int:
        """Return the number of pruned weights of one parameter, over all ranks."""
        return self._pruned[name]

    def pruned_in(self, names: Iterable[str] | str | None) -> int:
        """Return the number of pruned weights of the targets that patterns match."""
        return sum(self._pruned[target.name] for target in self.named(names))

    def named(self, names: Iterable[str] | str | None) -> list[Target]:
        """Return the targets that patterns match, each at least one; None: all."""
        patterns = ["*"] if names is None else check_patterns("names", names) or ()
        matched = {name for pattern in patterns for name in self.selection.match(pattern, "names")}
        return [target for target in self.targets if target.name in matched]

    def removed(self, target: Target) -> Tensor | None:
        """Return the removed values of one target in its shape; None where nothing was stored."""
        removed, name = self.removed_weights, target.name
        if removed is None or (name not in removed.values and target.shard is None):
            return None
        values = removed.scatter_like(name, target.weight, self.enforcer.mask(name))
        return torch.zeros_like(target.weight) if values is None else values  # of other ranks

    def enforce(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Apply the masks to weights, present gradients and the optimizers' state."""
        optimizers = list(optimizers)
        self.enforcer.transaction.check()
        self.apply()
        self.enforcer.gradients()
        self.enforcer.state(optimizers)
        for optimizer in optimizers:
            if isinstance(optimizer, Rprop):
                self._reset_step_sizes(optimizer)
        self.freezer.drop()

    def apply(self) -> None:
        """Apply the masks to the weights."""
        self.enforcer.weights()
        if self.shards.ranks is not None:
            reshard_fsdp(self.model)

    def flush_dense(self) -> None:
        """Move the dense values of soft pruning out of the parameters if no step did."""
        if isinstance(self.enforcer, SoftMaskEnforcer):
            self.enforcer.flush_dense()
        self.freezer.drop()

    def set(self, name: str, mask: Tensor, optimizers: Iterable[Optimizer] = ()) -> None:
        """Replace one mask; weights that it newly prunes are stored before they become zero."""
        self.enforcer.transaction.mark_started()
        parameter, removed = self.enforcer.parameters[name], self.removed_weights
        if removed is not None:
            before = self.enforcer.mask(name) if removed.values else None
            removed.store(name, local_tensor(parameter), mask, before)
            present = moments(parameter, optimizers) if self.keep_removed == "moments" else {}
            now = {f"{name}{MOMENT}{key}": moment for key, moment in present.items()}
            for key in removed.moments(name):  # without an optimizer they follow the mask too
                now.setdefault(key, torch.zeros(mask.shape, dtype=removed.values[key].dtype))
            for key, moment in now.items():
                removed.store(key, moment, mask, before)
        self.count(name, mask)

    def set_all(self, masks: Iterable[Tensor], optimizers: Iterable[Optimizer]) -> None:
        """Replace the masks of all targets, in their order, and enforce them."""
        optimizers = list(optimizers)
        if self.keep_removed == "moments":
            check_moments_stored(optimizers)
        for target, mask in zip(self.targets, masks, strict=True):
            self.set(target.name, mask, optimizers)
        self.enforce(optimizers)

    def count(self, name: str, mask: Tensor) -> None:
        """Replace one mask and its count; nothing is stored."""
        self.enforcer.set_mask(name, mask)
        pruned = mask.numel() - int(mask.count_nonzero())
        self._pruned[name] = self.shards.sums({name: pruned})[name]

    @atomic
    def set_masks(self, masks: Masks | Mapping[str, Tensor]) -> None:
        """Replace all masks and zero the weights that they prune; `StateError` names misfits."""
        masks = masks if isinstance(masks, Masks) else Masks(masks)
        masks.check(self.enforcer.parameters)
        for target in self.targets:
            mask, shard = masks[target.name], target.shard
            if shard is not None and not is_dtensor(mask):
                mask = mask[shard.start : shard.stop]
            self.set(target.name, local_tensor(mask))
        self.apply()

    def replace_targets(self, selection: TargetSelection) -> None:
        """Continue with parameters of other shapes, of which nothing is masked or stored."""
        self.selection = selection
        self.enforcer.reset({t.name: t.parameter for t in selection.targets})
        self._pruned = {target.name: 0 for target in selection.targets}
        self.removed_weights = None if self.removed_weights is None else RemovedWeights()

    @atomic
    def resize(self, change: Callable[[str, Tensor], Tensor]) -> None:
        """Change masks and stored tensors along with parameters that lost channels.

        `change(name, tensor)` returns a tensor of the new shape.
        """
        masks = {t.name: self.enforcer.mask(t.name).cpu() for t in self.targets}
        removed = self.removed_weights
        dense: dict[str, Tensor | None] = {}
        if removed is not None:
            for key, values in removed.values.items():
                old = masks[key.partition(MOMENT)[0]]
                dense[key] = removed.scatter_like(key, old.to(values.dtype), old)
            removed = self.removed_weights = RemovedWeights()
        self.enforcer.reset(self.enforcer.parameters)
        for name, old in masks.items():
            mask = change(name, old)
            for key, whole in dense.items():
                if key.partition(MOMENT)[0] == name and whole is not None and removed is not None:
                    removed.store(key, change(name, whole), mask)
            self.count(name, mask)
        self.freezer.resize(change)
        for tensors in (self.originals, self.momenta):
            tensors.update({name: change(name, values) for name, values in tensors.items()})

    def record_event(self, kind: str, before: float, after: float, **more: Any) -> HistoryEntry:
        """Add an entry to the history, and return it."""
        if kind not in ("prune", "compact"):
            self.sparsity_before_cut = 0.0
        entry = {
            "event": len(self.history),
            "kind": kind,
            "before": before,
            "after": after,
            "target": self.target,
            "pruned": self.pruned,
            **more,
        }
        self.history.append(cast("HistoryEntry", entry))
        return self.history[-1]

    def state_dict(self) -> MaskStateDict:
        """Return the state to save; `StateError` after a change that failed half-way.

        If parameters are sharded, every rank must call; only the first receives the tensors, but
        within `shards.keep_sharded()` each its own, as DTensors.
        """
        self.enforcer.transaction.check()
        soft = self.enforcer if isinstance(self.enforcer, SoftMaskEnforcer) else None
        stored = None if self.removed_weights is None else self.removed_weights.state_dict()
        gather, masks = self.shards.gather, self.enforcer.mask
        return {
            "masks": self.masks.pack(),
            "target": self.target,
            "sparsity_before_cut": self.sparsity_before_cut,
            "history": [entry.copy() for entry in self.history],
            "removed_weights": None if stored is None else gather(stored, masks),
            "dense": None if soft is None else gather(soft.dense_values(), masks),
            "originals": gather(self.originals),
            "train": self.freezer.state_dict(),
        }

    @atomic
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`; `StateError` names other parameters."""
        packed = state["masks"]
        check_shapes(packed.get("shapes", {}), self.enforcer.parameters)
        masks = Masks.unpack(packed, self.shards)
        if self.soft and state["dense"] is None:
            raise StateError("the masks were saved without soft=True: leave it out here too")
        if self.removed_weights is not None:
            if state["removed_weights"] is None and Masks.unpack(packed).pruned:
                raise StateError(
                    "the masks were saved with keep_removed=False, without the removed values: "
                    "write keep_removed=False here too"
                )
            values = self.shards.local_values(state["removed_weights"] or {}, packed["bits"], masks)
            self.removed_weights.load_state_dict(values, masks)
        self.enforcer.reset(self.enforcer.parameters)  # else old dense values would be written
        for name, mask in masks.items():
            self.count(name, mask)
        self.apply()
        if isinstance(self.enforcer, SoftMaskEnforcer):
            dense = self.shards.local_values(state["dense"], packed["bits"], masks)
            self.enforcer.load_dense_values(dense)
        self.target = float(state["target"])
        self.sparsity_before_cut = float(state["sparsity_before_cut"])
        self.history = [entry.copy() for entry in state["history"]]
        self.enforcer.transaction.reset()
        originals = self.shards.local_rows(state["originals"])
        self.originals = {name: values.clone() for name, values in originals.items()}
        self.freezer.load_state_dict(state["train"])

    @torch.no_grad()
    def _reset_step_sizes(self, optimizer: Rprop) -> None:
        """Set the step size of returned weights to the learning rate, its initial value.

        From zero it would become the smallest step size, which takes some fifty steps to grow.
        """
        names = {id(target.parameter): target.name for target in self.targets}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                size = optimizer.state.get(parameter, {}).get("step_size")
                if size is not None and id(parameter) in names:
                    size = local_tensor(size)
                    kept = self.enforcer.mask(names[id(parameter)])
                    size.masked_fill_(kept.logical_and_(size == 0), float(group["lr"]))


def check_moments_stored(optimizers: Iterable[Optimizer]) -> None:
    """Raise `ConfigError` for an optimizer whose state does not belong to single weights."""
    if any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
        raise ConfigError(
            "keep_removed='moments' cannot store the state of LBFGS, vectors over all parameters: "
            "write keep_removed=True"
        )


def moments(parameter: Tensor, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """Return the optimizers' state tensors with one number per weight, by name; local rows."""
    shape = local_tensor(parameter).shape
    states = [
        optimizer.state[parameter] for optimizer in optimizers if parameter in optimizer.state
    ]
    return {
        f"{key}@{number}" if number else str(key): value
        for number, state in enumerate(states)
        for key, item in state.items()
        if is_per_weight(value := local_tensor(item) if isinstance(item, Tensor) else item, shape)
    }
