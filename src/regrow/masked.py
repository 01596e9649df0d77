# SPDX-License-Identifier: MIT
"""A model with masks: what is held, enforced, counted and saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, Rprop

from regrow.enforcement import Enforcer
from regrow.errors import StateError
from regrow.masks import Masks
from regrow.soft import SoftEnforcer, dense_state
from regrow.targets import Selection, Target
from regrow.vault import MOMENT, Vault

Keep = bool | Literal["moments"]


class MaskedModel:
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
        self, model: nn.Module, selection: Selection, keep_removed: Keep, soft: bool = False
    ) -> None:
        self.model = model
        self.selection = selection
        self.keep_removed = keep_removed
        self.soft = soft
        parameters = {target.name: target.parameter for target in self.targets}
        self.enforcer = SoftEnforcer(parameters) if soft else Enforcer(parameters)
        self.target = 0.0
        self.held = 0.0  # a sparsity that was there when others cut channels out, and counts on
        self.history: list[dict[str, Any]] = []
        # dense values beside soft masks are more than a vault could keep
        self.vault = Vault() if keep_removed and not soft else None
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
        """The masks as bool tensors, made now."""
        return Masks({target.name: self.enforcer.mask(target.name) for target in self.targets})

    def enforce(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Applies the masks to weights, present gradients and the optimizers' state."""
        optimizers = list(optimizers)
        self.enforcer.weights()
        self.enforcer.gradients()
        self.enforcer.state(optimizers)
        for optimizer in optimizers:
            if isinstance(optimizer, Rprop):
                self._restart(optimizer)

    def settle(self) -> None:
        """Takes dense values of soft pruning out of the parameters, if no step did."""
        if isinstance(self.enforcer, SoftEnforcer):
            self.enforcer.settle()

    def set_masks(self, masks: Masks | Mapping[str, Tensor]) -> None:
        """Takes masks made elsewhere and zeroes the weights they prune.

        Raises:
            StateError: If they do not fit, naming the parameters.
        """
        masks = masks if isinstance(masks, Masks) else Masks(masks)
        masks.check(self.enforcer.parameters)
        for target in self.targets:
            self._set(target.name, masks[target.name])
        self.enforcer.weights()

    def change(self, change: Callable[[str, Tensor], Tensor]) -> None:
        """Changes masks and what is held along with parameters that lost channels.

        Args:
            change: `(name, tensor) -> tensor`, of the shapes before and after.
        """
        masks = {t.name: self.enforcer.mask(t.name).cpu() for t in self.targets}
        wholes = {}
        if self.vault is not None:
            for key, values in self.vault.values.items():
                old = masks[key.partition(MOMENT)[0]]
                wholes[key] = self.vault.values_like(key, old.to(values.dtype), old)
            self.vault = Vault()
        self.enforcer.reset(self.enforcer.parameters)
        for name, old in masks.items():
            mask = change(name, old)
            for key, whole in wholes.items():
                if key.partition(MOMENT)[0] == name and whole is not None:
                    assert self.vault is not None
                    self.vault.keep(key, change(name, whole), mask)
            self._count(name, mask)

    def state_dict(self) -> dict[str, Any]:
        """Packed masks, history, removed values: tensors and builtin types only."""
        return {
            "masks": self.masks.pack(),
            "target": self.target,
            "held": self.held,
            "history": [dict(entry) for entry in self.history],
            "vault": None if self.vault is None else self.vault.state_dict(),
            "dense": dense_state(self.enforcer),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave.

        Raises:
            StateError: If it is of other parameters, naming them.
        """
        masks = Masks.unpack(state["masks"])
        masks.check(self.enforcer.parameters)
        if self.soft and state["dense"] is None:
            raise StateError("the masks were saved without soft=True: leave it out here too")
        if self.vault is not None:
            if state["vault"] is None and masks.pruned:
                raise StateError(
                    "the masks were saved with keep_removed=False, so what they removed is gone: "
                    "write keep_removed=False here too"
                )
            self.vault.load_state_dict(state["vault"] or {}, masks)
        for name, mask in masks.items():
            self._count(name, mask)
        self.enforcer.weights()
        if isinstance(self.enforcer, SoftEnforcer):
            self.enforcer.load_dense_values(state["dense"])
        self.target, self.held = float(state["target"]), float(state.get("held", 0.0))
        self.history = [dict(entry) for entry in state["history"]]

    def _set(self, name: str, mask: Tensor, optimizers: Iterable[Optimizer] = ()) -> None:
        """Takes a new mask; what it removes goes to the vault, before anything is zeroed."""
        parameter = self.enforcer.parameters[name]
        if self.vault is not None:
            before = self.enforcer.mask(name) if self.vault.values else None
            self.vault.keep(name, parameter, mask, before)
            found = moments(parameter, optimizers) if self.keep_removed == "moments" else {}
            now = {f"{name}{MOMENT}{key}": moment for key, moment in found.items()}
            for key in self.vault.moments(name):  # without an optimizer they follow the mask too
                now.setdefault(key, torch.zeros(mask.shape, dtype=self.vault.values[key].dtype))
            for key, moment in now.items():
                self.vault.keep(key, moment, mask, before)
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
                    kept = self.enforcer.mask(names[id(parameter)])
                    size.masked_fill_(kept.logical_and_(size == 0), float(group["lr"]))

    def _count(self, name: str, mask: Tensor) -> None:
        self.enforcer.set_mask(name, mask)
        self._pruned[name] = mask.numel() - int(mask.count_nonzero())

    def note(self, kind: str, before: float, **more: Any) -> dict[str, Any]:
        """Adds an entry to the history, and returns it."""
        if kind not in ("prune", "compact"):
            self.held = 0.0
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
    """The optimizers' state tensors of a parameter's shape, by their names."""
    states = [
        optimizer.state[parameter] for optimizer in optimizers if parameter in optimizer.state
    ]
    return {
        f"{key}@{number}" if number else str(key): value
        for number, state in enumerate(states)
        for key, value in state.items()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    }
