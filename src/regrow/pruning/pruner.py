# SPDX-License-Identifier: MIT
"""Pruner: prune_to, unprune, regrow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.criteria.base import TrackingCriterion, get_criterion, needs_gradients
from regrow.criteria.elementwise import magnitude
from regrow.criteria.movement import Movement
from regrow.criteria.precomputed import Scores
from regrow.distributed.sharded_counts import ShardedCounts
from regrow.io.integrity import verify_digest, with_digest
from regrow.masks.granularity import make_granularity
from regrow.masks.targets import Target, TargetSelection, select_targets
from regrow.pruning.compute_masks import choose_masks
from regrow.pruning.config import PruningConfig
from regrow.pruning.enforcer import Handle, SoftEnforcer
from regrow.pruning.freezing import Freezer, TrainSpec
from regrow.pruning.growth import (
    GrowthCriterion,
    check_supports_sharding,
    get_growth_criterion,
    gradient_growth,
    regrow_count,
    select_regrown,
)
from regrow.pruning.initializers import (
    BY_ROWS,
    Initializer,
    MakeRegrown,
    RegrownWeights,
    callable_name,
    initial_values,
    make_initializer,
)
from regrow.pruning.initializers import removed_values as removed_values
from regrow.pruning.removed_weights import MOMENT
from regrow.pruning.state import KeepRemoved, MaskState, moments
from regrow.pruning.transaction import atomic
from regrow.utils.errors import ConfigError, StateError, check_patterns, check_sparsity
from regrow.utils.random import make_generator


class Undo(MaskState):
    """A masked model whose weights can come back.

    Args:
        model: See `MaskState`, like the next two.
        selection: What is pruned.
        keep_removed: What goes to the vault.
        soft: Whether dense values go on learning.
        seed: For random draws, with the number of the event and the parameter's name.

    Attributes:
        hold: What trains after regrowth, while the rest is held.
        momenta: Running means of dense gradients by name, where somebody tracks them.
        tracks_means: Whether somebody does.
        originals: Remembered values by name, for `init="original"`.
    """

    def __init__(
        self,
        model: nn.Module,
        selection: TargetSelection,
        keep_removed: KeepRemoved,
        soft: bool,
        seed: int,
    ) -> None:
        super().__init__(model, selection, keep_removed, soft)
        self.seed = seed
        self.freezer = Freezer(model, self.enforcer)
        self.momenta: dict[str, Tensor] = {}
        self.averages_gradients = False
        self.originals: dict[str, Tensor] = {}

    @atomic
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
            >>> from regrow import Pruner
            >>> layer = nn.Linear(10, 10)
            >>> before, pruner = layer.weight.clone(), Pruner(layer, keep_removed=True)
            >>> _ = pruner.prune_to(0.9)
            >>> _ = pruner.unprune()
            >>> bool((layer.weight == before).all())
            True
        """
        if self.removed_weights is None and not self.soft:
            raise StateError("nothing was kept to put back: write keep_removed=True before pruning")
        before, optimizers, named = self.sparsity, list(optimizers), self.named(names)
        self.enforcer.changes.mark_started()
        for target in named:
            parameter = target.weight
            if self.removed_weights is None:  # the dense values come back by themselves
                self._count(target.name, torch.ones_like(parameter, dtype=torch.bool))
                continue
            mask = self.enforcer.mask(target.name)
            self.removed_weights.restore(target.name, parameter, mask)
            for key, moment in moments(target.parameter, optimizers).items():
                self.removed_weights.restore(f"{target.name}{MOMENT}{key}", moment, mask)
            self.removed_weights.drop(target.name)  # moments whose optimizer is gone
            self._count(target.name, torch.ones_like(parameter, dtype=torch.bool))
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
    ) -> dict[str, Any]:
        """Brings pruned weights back; no other weight changes a bit.

        Args:
            fraction: Of what is pruned in `names`; or
            count: how many weights.
            by: Which come back: "random", "gradient", "momentum", "removed", or a rule (see
                `regrow.pruning.growth.GrowthCriterion`).
            init: With what value: see `regrow.pruning.initializers`.
            names: Patterns of parameters; None: all.
            train: What trains from now on: "all", "regrown" (all that does not come back with this
                call is held), or patterns of parameters and modules: see
                `regrow.pruning.freezing.Freezer`.
            optimizers: Their state at the places that come back is zero (Rprop's step size: the
                learning rate); with `keep_removed="moments"` and `init="removed"` it is restored.

        Returns:
            The new entry of `history`.

        Raises:
            ConfigError: If not exactly one of fraction and count is given, or more is asked for
                than is pruned; if nothing would train.
            StateError: If the rule or the initialiser lacks what it needs, naming the parameter.

        Example:
            >>> from regrow import Pruner
            >>> pruner = Pruner(nn.Linear(10, 10))
            >>> _ = pruner.prune_to(0.9)
            >>> pruner.regrow(0.5)["pruned"]
            45
        """
        if self.soft:
            raise ConfigError(
                "soft pruning brings weights back by itself, at each event: leave regrow out, or "
                "call unprune()"
            )
        targets, optimizers, before = self.named(names), list(optimizers), self.sparsity
        amount = regrow_count(fraction, count, sum(self._pruned[target.name] for target in targets))
        growth, initializer = get_growth_criterion(by), make_initializer(init)
        if self.shards.ranks is not None:
            check_supports_sharding(growth, initializer, targets)
        train = self.freezer.check(train)
        if train == "regrown" and not amount:
            raise ConfigError("no weight comes back, so train='regrown' leaves nothing to train")
        if growth is gradient_growth and amount:
            self._check_gradients_dense(targets)
        kept = [self.enforcer.kept(target.name) for target in targets]
        seed = (self.seed, len(self.history))
        regrown = select_regrown(
            growth, targets, kept, amount, momenta=self.momenta, removed=self._removed, seed=seed
        )
        places = {t.name: back for t, back in zip(targets, regrown, strict=True)}
        if self.shards.ranks is None:  # else all ranks must do the same
            targets = [target for target in targets if places[target.name].any()]
        makes = [partial(self._return, t, places[t.name], seed, initializer) for t in targets]
        values = initial_values(initializer, makes)
        self.enforcer.changes.mark_started()
        for make, value in zip(makes, values, strict=True):
            self._bring_back(make, value, initializer is removed_values, optimizers)
        self.freezer.set(train, {target.name: places[target.name] for target in targets})
        self.enforce(optimizers)
        trains = train if isinstance(train, str) else list(train)
        words = {
            "by": callable_name(by),
            "init": callable_name(init),
            "count": amount,
            "train": trains,
        }
        return self.record_event("regrow", before, **words)

    def enforce(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Applies the masks; what was noted of held places is noted anew."""
        super().enforce(optimizers)
        self.freezer.drop()

    def flush_dense(self) -> None:
        super().flush_dense()
        self.freezer.drop()

    def remember_original(self) -> None:
        """Keeps the present values of all targets, for `init="original"`."""
        self.originals = {t.name: t.weight.clone() for t in self.targets}

    def resize(self, change: Callable[[str, Tensor], Tensor]) -> None:
        """Changes masks and all that is held along with parameters that lost channels."""
        super().resize(change)
        self.freezer.resize(change)
        for held in (self.originals, self.momenta):
            held.update({name: change(name, values) for name, values in held.items()})

    def state_dict(self) -> dict[str, Any]:
        """Everything that is held, remembered values included."""
        return super().state_dict() | {
            "originals": self.shards.gather(self.originals),
            "train": self.freezer.state_dict(),
        }

    @atomic
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        originals = self.shards.local_rows(state["originals"])
        self.originals = {name: values.clone() for name, values in originals.items()}
        self.freezer.load_state_dict(state["train"])

    def named(self, names: Iterable[str] | str | None) -> list[Target]:
        """The targets that patterns mean; None: all.

        Raises:
            ConfigError: If a pattern matches none, with the nearest names.
        """
        patterns = ["*"] if names is None else check_patterns("names", names) or ()
        found = {name for pattern in patterns for name in self.selection.match(pattern, "names")}
        return [target for target in self.targets if target.name in found]

    def pruned_in(self, names: Iterable[str] | str | None) -> int:
        """How many weights of the targets that patterns mean are pruned."""
        return sum(self._pruned[target.name] for target in self.named(names))

    def _check_gradients_dense(self, targets: Iterable[Target]) -> None:
        """Refuses to grow by gradients that a mask has been over: they are zero where it prunes."""
        found = []
        for target in targets:
            grad, kept = target.grad, self.enforcer.kept(target.name)
            if grad is None:
                found.append(1)
            else:
                found.append(0 if kept is None else int(((grad != 0) & (kept == 0)).any()))
        if any(ShardedCounts([target.shard for target in targets]).sums(found)):
            return
        raise StateError(
            "every gradient at a pruned place is zero, so they have been masked already: grow by "
            "'gradient' after backward() and before masks are applied; within a fit write "
            "Regrow(by='gradient', ...), which does"
        )

    def _removed(self, target: Target) -> Tensor | None:
        """The removed values of one target, made now; None where nothing was kept."""
        if self.removed_weights is None or not self.removed_weights.has(target):
            return None
        return self.removed_weights.dense(target, self.enforcer.mask(target.name))

    def _return(
        self, target: Target, places: Tensor, seed: tuple[int, int], initializer: Initializer
    ) -> RegrownWeights:
        """The places of one target that come back, as an initialiser sees them."""
        wanted = initializer is removed_values or initializer not in BY_ROWS
        return RegrownWeights(
            target.name,
            target.weight,
            self.enforcer.mask(target.name),
            places,
            make_generator(*seed, f"{target.name} init"),
            target.input_dim,
            target.groups,
            self._removed(target) if wanted else None,
            self.originals.get(target.name),
            target.shard,
        )

    def _bring_back(
        self, make: MakeRegrown, value: Initializer, restore: bool, optimizers: list[Optimizer]
    ) -> None:
        """Writes the values of the places that come back, and clears or restores their moments."""
        back = make()
        name, values = back.name, value(back).to(back.weight.device, back.weight.dtype)
        torch.where(back.regrown, values, back.weight, out=back.weight)
        for key, moment in moments(self.enforcer.parameters[name], optimizers).items():
            held = (
                self.removed_weights.scatter_like(f"{name}{MOMENT}{key}", moment, back.kept)
                if restore and self.removed_weights is not None
                else None
            )
            if held is None:
                moment.masked_fill_(back.regrown, 0)
            else:
                torch.where(back.regrown, held, moment, out=moment)
        mask = back.kept | back.regrown
        del back, values  # the vault needs their room
        self._set(name, mask, optimizers)


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
        super().__init__(model, selection, keep_removed, soft, self.method.seed)
        self.criterion = get_criterion(self.method.criterion)
        # asked at every step, and slow to find out
        self.needs_gradients = needs_gradients(self.criterion)
        self.collects_gradients = isinstance(self.criterion, TrackingCriterion)
        self.granularity = make_granularity(self.method.granularity)
        for target in self.targets:
            self.granularity.check(target)
        self._check_sharding()
        self.layer_targets: dict[str, float] = {}
        for pattern, sparsity in (self.method.layers or {}).items():
            names = self.selection.match(pattern, "layers")
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
        pruned = sum(self._pruned[target.name] for target in free)
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
        choose_masks(method, self.targets, kept, sparsity, self.layer_targets, 0)

    @atomic
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
            own = self.layer_targets if sparsity else dict.fromkeys(self.layer_targets, 0.0)
        before = self.sparsity
        if sparsity == 0 and not any(own.values()):
            masks = [torch.ones_like(t.weight, dtype=torch.bool) for t in self.targets]
        else:
            self._check_not_below(sparsity)
            masks = self._next_masks(sparsity, own)
        for target, mask in zip(self.targets, masks, strict=True):
            self._set(target.name, mask, optimizers)
        self.enforce(optimizers)
        free = self.total - sum(t.parameter.numel() for t in self.targets if t.name in own)
        owned = sum(t.parameter.numel() * own.get(t.name, 0.0) for t in self.targets)
        self.target = (sparsity * free + owned) / self.total
        return self.record_event("prune" if self.sparsity >= before else "dense", before)

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
        tracked = self.shards.gather(tracked)
        return with_digest(super().state_dict() | {"criterion": tracked})

    @atomic
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(verify_digest(state))
        if isinstance(self.criterion, TrackingCriterion):
            self.criterion.load_state_dict(self.shards.local_rows(state["criterion"]))

    @property
    def _shared_targets(self) -> list[Target]:
        return [t for t in self.targets if t.name not in self.layer_targets] or list(self.targets)

    def _check_sharding(self) -> None:
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
            if self.collects_gradients and not isinstance(self.criterion, Movement):
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

    def _check_not_below(self, sparsity: float) -> None:
        shared = len(self.layer_targets) < len(self.targets)  # else the sparsity is nobody's
        if shared and self.units(sparsity) < self.units(self.shared_sparsity):
            raise ConfigError(
                f"the model has sparsity {self.shared_sparsity:.6g} already, {sparsity:g} is less: "
                "what is pruned stays pruned; prune_to(0) brings everything back"
            )


def prune_by(
    pruner: Pruner,
    scores: Mapping[str, Tensor],
    sparsity: float,
    optimizers: Iterable[Optimizer] = (),
) -> dict[str, Any]:
    """Prunes as `Pruner.prune_to` does, by scores instead of the pruner's criterion.

    Returns:
        The new entry of `history`.

    Raises:
        ConfigError: For a sparsity out of range, below the present one, or out of reach.
        StateError: For scores that are missing or NaN, naming the layer.
    """
    method = pruner.method
    pruner.method = method._replace(criterion=Scores(scores))
    try:
        return pruner.prune_to(sparsity, optimizers)
    finally:
        pruner.method = method
