# SPDX-License-Identifier: MIT
"""MaskState: masks, counts, history, state dict (held, not inherited)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, Rprop

from regrow.distributed.parameters import Shards
from regrow.distributed.shard import is_dtensor, local_tensor, reshard_fsdp, to_dtensor_like
from regrow.masks.masks import Masks, check_shapes
from regrow.masks.targets import Target, TargetSelection
from regrow.pruning.enforcer import Enforcer, SoftEnforcer, dense_state
from regrow.pruning.removed_weights import MOMENT, RemovedWeights
from regrow.pruning.transaction import atomic
from regrow.utils.errors import StateError
from regrow.utils.optimizers import is_per_weight

KeepRemoved = bool | Literal["moments"]


class MaskState:
    """Masks of the selected parameters of one model; what changes them is the pruner's.

    Args:
        model: The model; parameters are changed in place, never replaced, and no module is touched.
        selection: What is pruned.
        keep_removed: What goes to the vault: values (True), with optimizer moments ("moments"), or
            nothing (False).
        soft: Whether dense values go on learning beneath the masks.

    Attributes:
        vault: What was removed; None where nothing is kept.
        history: One dict an event (event, kind, before, after, target, pruned); callers may add
            to it.
        target: The sparsity last asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        selection: TargetSelection,
        keep_removed: KeepRemoved,
        soft: bool = False,
    ) -> None:
        self.model = model
        self.selection = selection
        self.keep_removed = keep_removed
        self.soft = soft
        parameters = {target.name: target.parameter for target in self.targets}
        self.shards = Shards(parameters)
        self.enforcer = SoftEnforcer(parameters) if soft else Enforcer(parameters)
        self.target = 0.0
        self.sparsity_before_cut = (
            0.0  # a sparsity that was there when others cut channels out, and counts on
        )
        self.history: list[dict[str, Any]] = []
        # dense values beside soft masks are more than a vault could keep
        self.removed_weights = RemovedWeights() if keep_removed and not soft else None
        self._pruned = dict.fromkeys(self.enforcer.parameters, 0)

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.selection.targets

    @property
    def total(self) -> int:
        """How many weights may be pruned."""
        return sum(target.parameter.numel() for target in self.targets)

    @property
    def pruned(self) -> int:
        """How many of them are."""
        return sum(self._pruned.values())

    @property
    def sparsity(self) -> float:
        return self.pruned / self.total

    @property
    def densities(self) -> dict[str, float]:
        """The kept fraction of each parameter."""
        return {
            target.name: 1 - self._pruned[target.name] / target.parameter.numel()
            for target in self.targets
        }

    @property
    def masks(self) -> Masks:
        """The masks as bool tensors, made now; of sharded parameters DTensors, cut alike."""
        kept = {t.name: t.parameter.numel() - self._pruned[t.name] for t in self.targets}
        return Masks(
            {
                t.name: to_dtensor_like(t.parameter, self.enforcer.mask(t.name))
                for t in self.targets
            },
            kept,
        )

    def enforce(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Applies the masks to weights, present gradients and the optimizers' state."""
        optimizers = list(optimizers)
        self.enforcer.changes.check()
        self.apply()
        self.enforcer.gradients()
        self.enforcer.state(optimizers)
        for optimizer in optimizers:
            if isinstance(optimizer, Rprop):
                self._restart(optimizer)

    def apply(self) -> None:
        """Applies the masks to the weights."""
        self.enforcer.weights()
        if self.shards.ranks is not None:
            reshard_fsdp(self.model)

    def flush_dense(self) -> None:
        """Takes dense values of soft pruning out of the parameters, if no step did."""
        if isinstance(self.enforcer, SoftEnforcer):
            self.enforcer.settle()

    @atomic
    def set_masks(self, masks: Masks | Mapping[str, Tensor]) -> None:
        """Takes masks made elsewhere and zeroes the weights they prune.

        Raises:
            StateError: If they do not fit, naming the parameters.
        """
        masks = masks if isinstance(masks, Masks) else Masks(masks)
        masks.check(self.enforcer.parameters)
        for target in self.targets:
            mask, shard = masks[target.name], target.shard
            if shard is not None and not is_dtensor(mask):
                mask = mask[shard.start : shard.stop]
            self._set(target.name, local_tensor(mask))
        self.apply()

    @atomic
    def resize(self, change: Callable[[str, Tensor], Tensor]) -> None:
        """Changes masks and what is held along with parameters that lost channels.

        Args:
            change: `(name, tensor) -> tensor`, of the shapes before and after.
        """
        masks = {t.name: self.enforcer.mask(t.name).cpu() for t in self.targets}
        wholes = {}
        if self.removed_weights is not None:
            for key, values in self.removed_weights.values.items():
                old = masks[key.partition(MOMENT)[0]]
                wholes[key] = self.removed_weights.scatter_like(key, old.to(values.dtype), old)
            self.removed_weights = RemovedWeights()
        self.enforcer.reset(self.enforcer.parameters)
        for name, old in masks.items():
            mask = change(name, old)
            for key, held in wholes.items():
                if key.partition(MOMENT)[0] == name and held is not None:
                    assert self.removed_weights is not None
                    self.removed_weights.store(key, change(name, held), mask)
            self._count(name, mask)

    def state_dict(self) -> dict[str, Any]:
        """Packed masks, history, removed values: tensors and builtin types only.

        Where parameters are sharded every rank must ask; removed values go to the first alone.

        Raises:
            StateError: If the last change failed half-way.
        """
        self.enforcer.changes.check()
        dense = dense_state(self.enforcer)
        return {
            "masks": self.masks.pack(),
            "target": self.target,
            "held": self.sparsity_before_cut,
            "history": [dict(entry) for entry in self.history],
            "vault": None
            if self.removed_weights is None
            else self.shards.gather(self.removed_weights.state_dict()),
            "dense": None if dense is None else self.shards.gather(dense),
        }

    @atomic
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave.

        Raises:
            StateError: If it is of other parameters, naming them.
        """
        packed = state["masks"]
        check_shapes(packed.get("shapes", {}), self.enforcer.parameters)
        masks = Masks.unpack(packed, self.shards)
        if self.soft and state["dense"] is None:
            raise StateError("the masks were saved without soft=True: leave it out here too")
        if self.removed_weights is not None:
            if state["vault"] is None and Masks.unpack(packed).pruned:
                raise StateError(
                    "the masks were saved with keep_removed=False, so what they removed is gone: "
                    "write keep_removed=False here too"
                )
            held = self.shards.local_values(state["vault"] or {}, packed["bits"])
            self.removed_weights.load_state_dict(held, masks)
        for name, mask in masks.items():
            self._count(name, mask)
        self.apply()
        if isinstance(self.enforcer, SoftEnforcer):
            self.enforcer.load_dense_values(
                self.shards.local_values(state["dense"], packed["bits"])
            )
        self.target, self.sparsity_before_cut = (
            float(state["target"]),
            float(state.get("held", 0.0)),
        )
        self.history = [dict(entry) for entry in state["history"]]
        self.enforcer.changes.reset()

    def _set(self, name: str, mask: Tensor, optimizers: Iterable[Optimizer] = ()) -> None:
        """Takes a new mask; what it removes goes to the vault, before anything is zeroed."""
        parameter = self.enforcer.parameters[name]
        self.enforcer.changes.mark_started()
        if self.removed_weights is not None:
            before = self.enforcer.mask(name) if self.removed_weights.values else None
            self.removed_weights.store(name, local_tensor(parameter), mask, before)
            found = moments(parameter, optimizers) if self.keep_removed == "moments" else {}
            now = {f"{name}{MOMENT}{key}": moment for key, moment in found.items()}
            for key in self.removed_weights.moments(
                name
            ):  # without an optimizer they follow the mask too
                now.setdefault(
                    key, torch.zeros(mask.shape, dtype=self.removed_weights.values[key].dtype)
                )
            for key, moment in now.items():
                self.removed_weights.store(key, moment, mask, before)
        self._count(name, mask)

    @torch.no_grad()
    def _restart(self, optimizer: Rprop) -> None:
        """Lets weights that came back begin with the learning rate for a step, as all weights do.

        The zero of a pruned place would become the least step size, and fifty steps be lost.
        """
        names = {id(target.parameter): target.name for target in self.targets}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                size = optimizer.state.get(parameter, {}).get("step_size")
                if size is not None and id(parameter) in names:
                    size = local_tensor(size)
                    kept = self.enforcer.mask(names[id(parameter)])
                    size.masked_fill_(kept.logical_and_(size == 0), float(group["lr"]))

    def _count(self, name: str, mask: Tensor) -> None:
        self.enforcer.set_mask(name, mask)
        pruned = mask.numel() - int(mask.count_nonzero())
        self._pruned[name] = self.shards.sums({name: pruned})[name]

    def record_event(self, kind: str, before: float, **more: Any) -> dict[str, Any]:
        """Adds an entry to the history, and returns it."""
        if kind not in ("prune", "compact"):
            self.sparsity_before_cut = 0.0
        self.history.append(
            {
                "event": len(self.history),
                "kind": kind,
                "before": before,
                "after": self.sparsity,
                "target": self.target,
                "pruned": self.pruned,
                **more,
            }
        )
        return self.history[-1]


def moments(parameter: Tensor, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """The optimizers' state tensors with one number a weight, by their names; their rows here."""
    shape = local_tensor(parameter).shape
    states = [
        optimizer.state[parameter] for optimizer in optimizers if parameter in optimizer.state
    ]
    return {
        f"{key}@{number}" if number else str(key): value
        for number, state in enumerate(states)
        for key, found in state.items()
        if is_per_weight(
            value := local_tensor(found) if isinstance(found, Tensor) else found, shape
        )
    }
