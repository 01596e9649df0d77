# SPDX-License-Identifier: MIT
"""The pruner: one change of masks at a time, without a Trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.changes import whole
from regrow.criteria import Movement, TrackingCriterion, magnitude, make_criterion, needs_gradients
from regrow.enforcement import Handle
from regrow.errors import ConfigError, check_sparsity
from regrow.granularity import make_granularity
from regrow.masked import Keep
from regrow.method import Method, choose_masks
from regrow.seal import opened, sealed
from regrow.soft import SoftEnforcer
from regrow.targets import Target, select
from regrow.undo import Undo


class Pruner(Undo):
    """Masks of one model: prunes, enforces, remembers.

    Args:
        model: The model; parameters are changed in place, never replaced, and no module is touched.
        method: How to rank and group.
        keep_removed: What goes to a vault, for `unprune`: values (True), with optimizer moments
            ("moments"), or nothing (False).
        soft: Whether dense values go on learning beneath the masks; they are then what comes back.

    Attributes:
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
        self,
        model: nn.Module,
        method: Method | None = None,
        *,
        keep_removed: Keep = False,
        soft: bool = False,
    ) -> None:
        self.method = (method or Method()).checked()
        selection = select(model, self.method.include, self.method.exclude)
        super().__init__(model, selection, keep_removed, soft, self.method.seed)
        self.criterion = make_criterion(self.method.criterion)
        # asked at every step, and slow to find out
        self.needs_gradients = needs_gradients(self.criterion)
        self.tracks = isinstance(self.criterion, TrackingCriterion)
        self.granularity = make_granularity(self.method.granularity)
        for target in self.targets:
            self.granularity.check(target)
        self._refuse_uncut()
        self.own: dict[str, float] = {}
        for pattern, sparsity in (self.method.layers or {}).items():
            names = self.selection.match(pattern, "layers")
            if all(self.own.get(name, sparsity) != sparsity for name in names):
                raise ConfigError(
                    f"layers {pattern!r} never counts: the first pattern that matches does, and "
                    f"all it means ({', '.join(names)}) have a target already: write it first"
                )
            for name in names:
                self.own.setdefault(name, sparsity)

    @property
    def free_sparsity(self) -> float:
        """The sparsity of the targets without one of their own (of all, if all have one)."""
        free = self._free
        pruned = sum(self._pruned[target.name] for target in free)
        return pruned / sum(target.parameter.numel() for target in free)

    def stand(self, final: float) -> float:
        """How far the layers without a target of their own are on their way to `final`.

        If all have one: what theirs together are in proportion to.
        """
        if len(self.own) < len(self.targets):
            return self.free_sparsity
        most = sum(round(self.own[t.name] * t.parameter.numel()) for t in self.targets)
        return final * self.pruned / most if most else final

    def units(self, sparsity: float) -> int:
        """How many units (weights, groups, blocks) of the free targets a sparsity prunes."""
        weights = sum(target.parameter.numel() for target in self._free)
        return round(sparsity * weights / self.granularity.weights)

    def trained_by(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer trains all targets."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return all(id(target.parameter) in held for target in self.targets)

    def check_reachable(self, sparsity: float) -> None:
        """Tries masks of a final sparsity, by magnitude, and throws them away.

        Raises:
            ConfigError: If the layers cannot have it; better now than at the last event.
        """
        kept = [self.enforcer.kept(target.name) for target in self.targets]
        method = self.method._replace(criterion=magnitude)
        choose_masks(method, self.targets, kept, sparsity, self.own, 0)

    @whole
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
        sparsity, optimizers = check_sparsity("sparsity", sparsity), list(optimizers)
        if sparsity > self.granularity.limit:
            raise ConfigError(
                f"granularity {self.method.granularity!r} reaches sparsity "
                f"{self.granularity.limit:.4g} at most, got {sparsity}"
            )
        if own is None:
            own = self.own if sparsity else dict.fromkeys(self.own, 0.0)
        before = self.sparsity
        if sparsity == 0 and not any(own.values()):
            masks = [torch.ones_like(t.weight, dtype=torch.bool) for t in self.targets]
        else:
            self._refuse_less(sparsity)
            masks = self._next_masks(sparsity, own)
        for target, mask in zip(self.targets, masks, strict=True):
            self._set(target.name, mask, optimizers)
        self.enforce(optimizers)
        free = self.total - sum(t.parameter.numel() for t in self.targets if t.name in own)
        owned = sum(t.parameter.numel() * own.get(t.name, 0.0) for t in self.targets)
        self.target = (sparsity * free + owned) / self.total
        return self.note("prune" if self.sparsity >= before else "dense", before)

    def hook(self, optimizer: Optimizer | Iterable[Optimizer]) -> Handle:
        """Holds the masks through a training loop of your own, as they change.

        Gradients are masked before each `optimizer.step()`, weights after it; the present ones now.

        Args:
            optimizer: One optimizer, or all that train the targets; Fabric's too.

        Returns:
            A handle; `handle.remove()` ends it.

        Example:
            >>> net = nn.Linear(10, 10)
            >>> sgd, pruner = torch.optim.SGD(net.parameters(), lr=0.1), Pruner(net)
            >>> with pruner.hook(sgd):
            ...     _ = pruner.prune_to(0.9, [sgd])
            ...     net(torch.ones(1, 10)).sum().backward()
            ...     sgd.step()
            >>> int(net.weight.count_nonzero())
            10
        """
        optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        self.enforce(optimizers)
        hooks = (self.enforcer.gradient_hook, self.enforcer.hook)
        return Handle(hook(each) for each in optimizers for hook in hooks)

    def update(self, optimizer: Optimizer | None = None) -> None:
        """Lets a tracking criterion take in this step's gradients, of one optimizer or of all."""
        if not isinstance(self.criterion, TrackingCriterion):
            return
        groups = [] if optimizer is None else optimizer.param_groups
        held = {id(parameter) for group in groups for parameter in group["params"]}
        soft = self.enforcer if isinstance(self.enforcer, SoftEnforcer) else None
        for target in self.targets:
            grad = target.grad
            if grad is not None and (optimizer is None or id(target.parameter) in held):
                # what is masked goes on gathering evidence, by the value it would come back with
                weight = target.weight if soft is None else soft.dense(target.name)
                self.criterion.update(target.name, weight, grad)

    def state_dict(self) -> dict[str, Any]:
        """Everything that is held, and the criterion's evidence."""
        criterion = self.criterion
        tracked = criterion.state_dict() if isinstance(criterion, TrackingCriterion) else {}
        tracked = self.shards.whole(tracked)
        return sealed(super().state_dict() | {"criterion": tracked})

    @whole
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(opened(state))
        if isinstance(self.criterion, TrackingCriterion):
            self.criterion.load_state_dict(self.shards.rows(state["criterion"]))

    @property
    def _free(self) -> list[Target]:
        return [t for t in self.targets if t.name not in self.own] or list(self.targets)

    def _refuse_uncut(self) -> None:
        """Refuses what needs whole layers where ranks hold parts of them."""
        for target in self.targets:
            shard = target.shard
            if shard is None:
                continue
            if self.method.distribution == "lamp":
                raise ConfigError(
                    f"distribution='lamp' sums over all weights of a layer in order, and "
                    f"{target.name} is sharded among ranks: write 'global', 'uniform' or 'erk'"
                )
            if self.tracks and not isinstance(self.criterion, Movement):
                raise ConfigError(
                    f"{type(self.criterion).__name__} gathers evidence of its own, and "
                    f"{target.name} is sharded among ranks: nobody knows how to cut it; write "
                    "criterion='movement', or a callable (weight, grad) -> scores"
                )
            self.granularity.check_rows(target, shard)

    def _next_masks(self, sparsity: float, own: Mapping[str, float]) -> list[Tensor]:
        """The masks of the next event; if they cannot be had, all is as it was."""
        kept = [self.enforcer.kept(target.name) for target in self.targets]
        if isinstance(self.enforcer, SoftEnforcer):  # all compete, by their dense values
            kept = [None] * len(kept)
        try:
            if isinstance(self.enforcer, SoftEnforcer):
                self.enforcer.insert()
            event = len(self.history)
            return choose_masks(self.method, self.targets, kept, sparsity, own, event)
        except BaseException:
            self.enforcer.weights()  # soft pruning's dense values go out again
            raise

    def _refuse_less(self, sparsity: float) -> None:
        shared = len(self.own) < len(self.targets)  # else the sparsity is nobody's
        if shared and self.units(sparsity) < self.units(self.free_sparsity):
            raise ConfigError(
                f"the model has sparsity {self.free_sparsity:.6g} already, {sparsity:g} is less: "
                "what is pruned stays pruned; prune_to(0) brings everything back"
            )
