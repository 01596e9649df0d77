# SPDX-License-Identifier: MIT
"""The pruner: one change of masks at a time, without a Trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.criteria import TrackingCriterion, make_criterion, needs_gradients
from regrow.enforcement import Enforcer
from regrow.errors import ConfigError, StateError, check_patterns, check_sparsity
from regrow.granularity import make_granularity
from regrow.masks import Masks
from regrow.method import Method, choose_masks
from regrow.targets import Selection, Target, select
from regrow.vault import Vault


class Pruner:
    """Masks of one model: prunes, enforces, remembers.

    Args:
        model: The model; parameters are changed in place, never replaced, and no module is touched.
        method: How to rank and group.
        keep_removed: Whether removed values go to a vault, for `unprune`.

    Attributes:
        vault: What was removed; None where nothing is kept.
        history: One dict an event (event, kind, before, after, target, pruned); callers may add
            to it.
        target: The sparsity last asked for.
        needs_gradients: Whether an event must wait until gradients are there.
        tracks: Whether the criterion looks at the gradients of every step.

    Raises:
        ConfigError, StateError: See `regrow.targets.select`; for a granularity that does not fit.

    Example:
        >>> pruner = Pruner(nn.Linear(10, 10))
        >>> pruner.prune_to(0.9)["pruned"], pruner.sparsity
        (90, 0.9)
    """

    def __init__(
        self, model: nn.Module, method: Method | None = None, *, keep_removed: bool = False
    ) -> None:
        self.method = (method or Method()).checked()
        self.model = model
        self.selection: Selection = select(model, self.method.include, self.method.exclude)
        self.criterion = make_criterion(self.method.criterion)
        # asked at every step, and slow to find out
        self.needs_gradients = needs_gradients(self.criterion)
        self.tracks = isinstance(self.criterion, TrackingCriterion)
        self.granularity = make_granularity(self.method.granularity)
        for target in self.targets:
            self.granularity.check(target)
        self.own: dict[str, float] = {}
        for pattern, sparsity in (self.method.layers or {}).items():
            for name in self.selection.match(pattern, "layers"):
                self.own.setdefault(name, sparsity)
        self.enforcer = Enforcer({target.name: target.parameter for target in self.targets})
        self.target = 0.0
        self.history: list[dict[str, Any]] = []
        self.vault = Vault() if keep_removed else None
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

    @property
    def free_sparsity(self) -> float:
        """The sparsity of the targets without one of their own (of all, if all have one)."""
        free = self._free
        pruned = sum(self._pruned[target.name] for target in free)
        return pruned / sum(target.parameter.numel() for target in free)

    def units(self, sparsity: float) -> int:
        """How many units (weights, groups, blocks) of the free targets a sparsity prunes."""
        weights = sum(target.parameter.numel() for target in self._free)
        return round(sparsity * weights / self.granularity.weights)

    def trained_by(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer trains all targets."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return all(id(target.parameter) in held for target in self.targets)

    def prune_to(
        self,
        sparsity: float,
        optimizers: Iterable[Optimizer] = (),
        own: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Prunes until `sparsity` of all prunable weights is masked, and enforces it.

        What is pruned stays pruned. 0 brings everything back, at zero.

        Args:
            sparsity: Fraction of all prunable weights (never of what remains); of those without a
                target of their own, where some have one.
            optimizers: Whose state at pruned places is zeroed.
            own: Sparsity now for layers with a target of their own; None: their final ones.

        Returns:
            The new entry of `history`.

        Raises:
            ConfigError: For a sparsity out of range, below the present one, or out of reach.
            StateError: For NaN scores or missing gradients, naming the layer.
        """
        sparsity = check_sparsity("sparsity", sparsity)
        if sparsity > self.granularity.limit:
            raise ConfigError(
                f"granularity {self.method.granularity!r} reaches sparsity "
                f"{self.granularity.limit:.4g} at most, got {sparsity}"
            )
        before, own = self.sparsity, self.own if own is None else dict(own)
        if sparsity == 0 and not any(own.values()):
            masks = [torch.ones_like(t.parameter, dtype=torch.bool) for t in self.targets]
        else:
            self._refuse_less(sparsity)
            kept = [self.enforcer.kept(target.name) for target in self.targets]
            event = len(self.history)
            masks = choose_masks(self.method, self.targets, kept, sparsity, own, event)
        for target, mask in zip(self.targets, masks, strict=True):
            self._set(target.name, mask)
        self.enforce(optimizers)
        free = self.total - sum(t.parameter.numel() for t in self.targets if t.name in own)
        owned = sum(t.parameter.numel() * own.get(t.name, 0.0) for t in self.targets)
        self.target = (sparsity * free + owned) / self.total
        return self._note("prune" if self.sparsity >= before else "dense", before)

    def unprune(
        self, names: Iterable[str] | str | None = None, optimizers: Iterable[Optimizer] = ()
    ) -> dict[str, Any]:
        """Puts removed values back to the bit; those weights are dense again.

        Args:
            names: Patterns of parameters; None: all.
            optimizers: Whose state is masked where pruned places remain.

        Returns:
            The new entry of `history`.

        Raises:
            StateError: If nothing was kept (`keep_removed=False`).
            ConfigError: If a pattern matches no pruned parameter.

        Example:
            >>> layer = nn.Linear(10, 10)
            >>> before, pruner = layer.weight.clone(), Pruner(layer, keep_removed=True)
            >>> _ = pruner.prune_to(0.9)
            >>> _ = pruner.unprune()
            >>> bool((layer.weight == before).all())
            True
        """
        if self.vault is None:
            raise StateError("nothing was kept to put back: write keep_removed=True before pruning")
        patterns = ["*"] if names is None else check_patterns("names", names) or ()
        before = self.sparsity
        for pattern in patterns:
            for name in self.selection.match(pattern, "names"):
                self.vault.restore(name, self.enforcer.parameters[name])
                self._count(name, torch.ones_like(self.enforcer.parameters[name], dtype=torch.bool))
        self.enforce(optimizers)
        return self._note("unprune", before)

    def enforce(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Applies the masks to weights, present gradients and the optimizers' state."""
        self.enforcer.weights()
        self.enforcer.gradients()
        self.enforcer.state(optimizers)

    def update(self, optimizer: Optimizer | None = None) -> None:
        """Lets a tracking criterion take in this step's gradients, of one optimizer or of all."""
        if not isinstance(self.criterion, TrackingCriterion):
            return
        groups = [] if optimizer is None else optimizer.param_groups
        held = {id(parameter) for group in groups for parameter in group["params"]}
        for target in self.targets:
            weight = target.parameter
            if weight.grad is not None and (optimizer is None or id(weight) in held):
                self.criterion.update(target.name, weight.detach(), weight.grad)

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

    def state_dict(self) -> dict[str, Any]:
        """Packed masks, history and the criterion's evidence: tensors and builtin types only."""
        criterion = self.criterion
        return {
            "masks": self.masks.pack(),
            "target": self.target,
            "history": [dict(entry) for entry in self.history],
            "criterion": criterion.state_dict() if isinstance(criterion, TrackingCriterion) else {},
            "vault": None if self.vault is None else self.vault.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave.

        Raises:
            StateError: If it is of other parameters, naming them.
        """
        masks = Masks.unpack(state["masks"])
        self.set_masks(masks)
        self.target = float(state["target"])
        self.history = [dict(entry) for entry in state["history"]]
        if isinstance(self.criterion, TrackingCriterion):
            self.criterion.load_state_dict(state["criterion"])
        if self.vault is not None:
            if state["vault"] is None and masks.pruned:
                raise StateError(
                    "the masks were saved with keep_removed=False, so what they removed is gone: "
                    "write keep_removed=False here too"
                )
            self.vault.load_state_dict(state["vault"] or {}, masks)

    @property
    def _free(self) -> list[Target]:
        return [t for t in self.targets if t.name not in self.own] or list(self.targets)

    def _refuse_less(self, sparsity: float) -> None:
        shared = len(self.own) < len(self.targets)  # else the sparsity is nobody's
        if shared and self.units(sparsity) < self.units(self.free_sparsity):
            raise ConfigError(
                f"the model has sparsity {self.free_sparsity:.6g} already, {sparsity:g} is less: "
                "what is pruned stays pruned; prune_to(0) brings everything back"
            )

    def _set(self, name: str, mask: Tensor) -> None:
        if self.vault is not None:
            self.vault.keep(name, self.enforcer.parameters[name], mask)
        self._count(name, mask)

    def _count(self, name: str, mask: Tensor) -> None:
        self.enforcer.set_mask(name, mask)
        self._pruned[name] = mask.numel() - int(mask.count_nonzero())

    def _note(self, kind: str, before: float) -> dict[str, Any]:
        self.history.append(
            {
                "event": len(self.history),
                "kind": kind,
                "before": before,
                "after": self.sparsity,
                "target": self.target,
                "pruned": self.pruned,
            }
        )
        return self.history[-1]
