# SPDX-License-Identifier: MIT
"""Pruner: prunes, restores and regrows single weights, n:m groups and blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.criteria.base import TrackingCriterion, get_criterion, needs_gradients
from regrow.criteria.elementwise import magnitude
from regrow.criteria.movement import Movement
from regrow.criteria.precomputed import Scores
from regrow.io.integrity import verify_digest, with_digest
from regrow.masks.granularity import make_granularity
from regrow.masks.targets import Target, select_targets
from regrow.pruning.base import BasePruner
from regrow.pruning.compute_masks import choose_masks
from regrow.pruning.config import PruningConfig
from regrow.pruning.enforcer import Handle, SoftMaskEnforcer
from regrow.pruning.freezing import TrainSpec
from regrow.pruning.growth import GrowthCriterion
from regrow.pruning.initializers import Initializer
from regrow.pruning.restore import (
    check_not_soft,
    describe_regrowth,
    restore_removed,
    select_returning,
    write_selected,
)
from regrow.pruning.state import HistoryEntry, KeepRemoved, MaskState
from regrow.pruning.transaction import atomic
from regrow.utils.errors import ConfigError, StateError, check_sparsity
from regrow.utils.optimizers import find_optimizers, trained_parameters


class Pruner(BasePruner):
    """Prunes single weights, n:m groups or blocks of one model, and restores them.

    Args:
        model: The model; parameters are changed in place, never replaced, and no module is touched.
        method: How to rank and group.
        keep_removed: What is stored for `unprune`: values (True), with optimizer moments
            ("moments"), or nothing (False).
        soft: Whether dense values keep training under the masks; they are then what returns.

    Attributes:
        needs_gradients: Whether an event must wait until gradients are there.
        tracks: Whether the criterion looks at the gradients of every step.

    Raises:
        ConfigError, StateError: See `regrow.masks.targets.select_targets`; also for a granularity
            that does not fit.

    Example:
        >>> pruner = Pruner(nn.Linear(10, 10))
        >>> pruner.prune_to(0.9)["pruned"], pruner.sparsity
        (90, 0.9)
    """

    def __init__(
        self,
        model: nn.Module,
        method: PruningConfig | None = None,
        *,
        keep_removed: KeepRemoved = False,
        soft: bool = False,
    ) -> None:
        self.method = (method or PruningConfig()).validated()
        selection = select_targets(model, self.method.include, self.method.exclude)
        self.state = MaskState(model, selection, keep_removed, soft, self.method.seed)
        self.criterion = get_criterion(self.method.criterion)
        # read at every step, and slow to compute
        self.needs_gradients = needs_gradients(self.criterion)
        self.collects_gradients = isinstance(self.criterion, TrackingCriterion)
        self.granularity = make_granularity(self.method.granularity)
        for target in self.targets:
            self.granularity.check(target)
        self._check_sharding()
        self.layer_targets: dict[str, float] = {}
        for pattern, sparsity in (self.method.layers or {}).items():
            names = selection.match(pattern, "layers")
            if all(self.layer_targets.get(name, sparsity) != sparsity for name in names):
                raise ConfigError(
                    f"layers {pattern!r} never counts: the first pattern that matches does, and "
                    f"all it means ({', '.join(names)}) have a target already: write it first"
                )
            for name in names:
                self.layer_targets.setdefault(name, sparsity)

    @property
    def shared_sparsity(self) -> float:
        """The sparsity of the targets without one of their own (of all, if all have one)."""
        free = self._shared_targets
        pruned = sum(self.state.pruned_count(target.name) for target in free)
        return pruned / sum(target.parameter.numel() for target in free)

    def progress_towards(self, final: float) -> float:
        """How far the layers without a target of their own are on their way to `final`.

        If all have one: what theirs together are in proportion to.
        """
        if len(self.layer_targets) < len(self.targets):
            return self.shared_sparsity
        most = sum(round(self.layer_targets[t.name] * t.parameter.numel()) for t in self.targets)
        return final * self.pruned / most if most else final

    def units(self, sparsity: float) -> int:
        """How many units (weights, groups, blocks) of the free targets a sparsity prunes."""
        weights = sum(target.parameter.numel() for target in self._shared_targets)
        return round(sparsity * weights / self.granularity.weights)

    def check_reachable(self, sparsity: float) -> None:
        """Check that a final sparsity can be reached, by computing masks by magnitude.

        Raises:
            ConfigError: If the layers cannot have it; better now than at the last event.
        """
        kept = [self.enforcer.kept(target.name) for target in self.targets]
        method = self.method._replace(criterion=magnitude)
        choose_masks(method, self.targets, kept, sparsity, self.layer_targets, 0)

    @atomic
    def prune_to(
        self,
        sparsity: float,
        optimizers: Iterable[Optimizer] = (),
        own: Mapping[str, float] | None = None,
        scores: Mapping[str, Tensor] | None = None,
    ) -> HistoryEntry:
        """Prune until `sparsity` of all prunable weights is masked, and enforce it.

        Pruned weights stay pruned. 0 makes everything dense, with zeros.

        Args:
            sparsity: Fraction of all prunable weights (never of what remains); of those without a
                target of their own, where some have one.
            optimizers: Whose state at pruned places is zeroed.
            own: Sparsity now for layers with a target of their own; None: their final ones.
            scores: Rank by these, by parameter name, instead of by the criterion.

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
            own = self.layer_targets if sparsity else dict.fromkeys(self.layer_targets, 0.0)
        before = self.sparsity
        if sparsity == 0 and not any(own.values()):
            masks = [torch.ones_like(t.weight, dtype=torch.bool) for t in self.targets]
        else:
            self._check_not_below(sparsity)
            masks = self._next_masks(sparsity, own, scores)
        for target, mask in zip(self.targets, masks, strict=True):
            self.state.set(target.name, mask, optimizers)
        self.enforce(optimizers)
        free = self.total - sum(t.parameter.numel() for t in self.targets if t.name in own)
        owned = sum(t.parameter.numel() * own.get(t.name, 0.0) for t in self.targets)
        self.state.target = (sparsity * free + owned) / self.total
        return self.record_event("prune" if self.sparsity >= before else "dense", before)

    @atomic
    def unprune(
        self, names: Iterable[str] | str | None = None, optimizers: Iterable[Optimizer] = ()
    ) -> HistoryEntry:
        """Restore removed values bit-exactly; those weights are dense again.

        Args:
            names: Patterns of parameters; None: all.
            optimizers: Whose state is masked where pruned positions remain.

        Returns:
            The new entry of `history`.

        Raises:
            StateError: If nothing was stored (`keep_removed=False`).
            ConfigError: If a pattern matches no pruned parameter.

        Example:
            >>> layer = nn.Linear(10, 10)
            >>> before, pruner = layer.weight.clone(), Pruner(layer, keep_removed=True)
            >>> _ = pruner.prune_to(0.9)
            >>> _ = pruner.unprune()
            >>> bool((layer.weight == before).all())
            True
        """
        if self.removed_weights is None and not self.soft:
            raise StateError("nothing was kept to put back: write keep_removed=True before pruning")
        before, optimizers = self.sparsity, list(optimizers)
        restore_removed(self.state, self.named(names), optimizers)
        self.enforce(optimizers)
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
    ) -> HistoryEntry:
        """Let pruned weights return; no other weight changes.

        Args:
            fraction: Of what is pruned in `names`; or
            count: how many weights.
            by: Which return: "random", "gradient", "momentum", "removed", or a
                `regrow.pruning.growth.GrowthCriterion`.
            init: With what value: see `regrow.pruning.initializers`.
            names: Patterns of parameters; None: all.
            train: What trains from now on: "all", "regrown" (only what returns with this call), or
                patterns of parameters and modules: see `regrow.pruning.freezing.Freezer`.
            optimizers: Their state of returning weights is zero (Rprop's step size: the learning
                rate); with `keep_removed="moments"` and `init="removed"` it is restored.

        Returns:
            The new entry of `history`.

        Raises:
            ConfigError: If not exactly one of fraction and count is given, or more is asked for
                than is pruned; if nothing would train.
            StateError: If the rule or the initializer lacks what it needs, naming the parameter.

        Example:
            >>> pruner = Pruner(nn.Linear(10, 10))
            >>> _ = pruner.prune_to(0.9)
            >>> pruner.regrow(0.5)["pruned"]
            45
        """
        check_not_soft(self.state)
        before, optimizers = self.sparsity, list(optimizers)
        train = self.freezer.check(train)
        chosen = select_returning(self.state, self.named(names), fraction, count, by, init, train)
        write_selected(self.state, chosen, optimizers)
        self.freezer.set(train, chosen.places)
        self.enforce(optimizers)
        more = describe_regrowth(by, init, chosen.amount, train)
        return self.record_event("regrow", before, **more)

    def hook(self, optimizer: Optimizer | Iterable[Optimizer]) -> Handle:
        """Enforce the masks in a training loop, as they change.

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
        given = [optimizer] if hasattr(optimizer, "param_groups") else list(optimizer)
        self.enforce(find_optimizers(*given))
        return self.enforcer.handle(*given)

    def update(self, optimizer: Optimizer | None = None) -> None:
        """Let a tracking criterion read this step's gradients, of one optimizer or of all."""
        if not isinstance(self.criterion, TrackingCriterion):
            return
        trained = set() if optimizer is None else trained_parameters(optimizer)
        soft = self.enforcer if isinstance(self.enforcer, SoftMaskEnforcer) else None
        for target in self.targets:
            grad = target.grad
            if grad is not None and (optimizer is None or id(target.parameter) in trained):
                # pruned weights keep collecting, by the value they would return with
                weight = target.weight if soft is None else soft.dense(target.name)
                self.criterion.update(target.name, weight, grad)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of masks and criterion; see `MaskStateDict`."""
        criterion = self.criterion
        tracked = criterion.state_dict() if isinstance(criterion, TrackingCriterion) else {}
        tracked = self.shards.gather(tracked)
        return with_digest({**self.state.state_dict(), "criterion": tracked})

    @atomic
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state.load_state_dict(verify_digest(state))
        if isinstance(self.criterion, TrackingCriterion):
            self.criterion.load_state_dict(self.shards.local_rows(state["criterion"]))

    @property
    def _shared_targets(self) -> list[Target]:
        return [t for t in self.targets if t.name not in self.layer_targets] or list(self.targets)

    def _check_sharding(self) -> None:
        """Check that nothing needs whole layers if ranks store parts of them."""
        for target in self.targets:
            shard = target.shard
            if shard is None:
                continue
            if self.method.distribution == "lamp":
                raise ConfigError(
                    f"distribution='lamp' sums over all weights of a layer in order, and "
                    f"{target.name} is sharded among ranks: write 'global', 'uniform' or 'erk'"
                )
            if self.collects_gradients and not isinstance(self.criterion, Movement):
                raise ConfigError(
                    f"{type(self.criterion).__name__} gathers evidence of its own, and "
                    f"{target.name} is sharded among ranks: nobody knows how to cut it; write "
                    "criterion='movement', or a callable (weight, grad) -> scores"
                )
            self.granularity.check_rows(target, shard)

    def _next_masks(
        self,
        sparsity: float,
        own: Mapping[str, float],
        scores: Mapping[str, Tensor] | None,
    ) -> list[Tensor]:
        """Compute the masks of the next event; an error changes nothing."""
        kept = list(map(self.enforcer.kept, self.enforcer.parameters))
        if isinstance(self.enforcer, SoftMaskEnforcer):  # all compete, by their dense values
            kept = [None] * len(kept)
        try:
            if isinstance(self.enforcer, SoftMaskEnforcer):
                self.enforcer.insert()
            event, method = len(self.history), self.method
            if scores is not None:
                method = method._replace(criterion=Scores(scores))
            return choose_masks(method, self.targets, kept, sparsity, own, event)
        except BaseException:
            self.enforcer.weights()  # take the dense values of soft pruning out again
            raise

    def _check_not_below(self, sparsity: float) -> None:
        shared = len(self.layer_targets) < len(self.targets)  # else the sparsity is nobody's
        if shared and self.units(sparsity) < self.units(self.shared_sparsity):
            raise ConfigError(
                f"the model has sparsity {self.shared_sparsity:.6g} already, {sparsity:g} is less: "
                "what is pruned stays pruned; prune_to(0) brings everything back"
            )
