# SPDX-License-Identifier: MIT
"""Pruner: prunes, restores and regrows single weights, n:m groups and blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.criteria.base import TrackingCriterion, get_criterion, needs_gradients
from regrow.criteria.elementwise import magnitude
from regrow.criteria.movement import Movement
from regrow.criteria.precomputed import Scores
from regrow.io.integrity import verify_digest, with_digest
from regrow.masks.granularity import Head, make_granularity, weights_per_unit
from regrow.masks.heads import RECOGNISED
from regrow.masks.targets import Target, TargetSelection, select_targets
from regrow.masks.zeros import count_zeros, describe_zeros
from regrow.pruning.base import BasePruner
from regrow.pruning.compute_masks import choose_masks, mask_complete_units
from regrow.pruning.config import PruningConfig
from regrow.pruning.enforcer import Handle, SoftMaskEnforcer
from regrow.pruning.freezing import TrainSpec
from regrow.pruning.growth import GrowthCriterion, regrow_count
from regrow.pruning.initializers import Initializer
from regrow.pruning.restore import describe_regrowth, restore_removed, return_pruned
from regrow.pruning.state import HistoryEntry, KeepRemoved, MaskState, MaskStateDict
from regrow.pruning.transaction import atomic
from regrow.utils.errors import ConfigError, StateError, check_bool, check_sparsity
from regrow.utils.logging import warn
from regrow.utils.optimizers import as_list, find_optimizers, trained_parameters


class PrunerStateDict(MaskStateDict, total=False):
    """State of a `Pruner`: that of its `MaskState`, of its criterion, and digests."""

    criterion: dict[str, Any]  # state of a tracking criterion, else empty
    seal: dict[str, Any]  # see `regrow.io.integrity`


class Pruner(BasePruner):
    """Prunes single weights, n:m groups or blocks of one model, and restores them.

    Args:
        model: The model; parameters are changed in place, never replaced, and no module is touched.
        config: How to rank and group.
        keep_removed: What is stored for `unprune`: values (True), with optimizer moments
            ("moments"), or nothing (False).
        soft: Whether dense values keep training under the masks; weights return with these.
        from_zeros: Whether weights that are exactly zero are masked from the start; see
            `mask_zeros`.

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
        config: PruningConfig | None = None,
        *,
        keep_removed: KeepRemoved = False,
        soft: bool = False,
        from_zeros: bool = False,
    ) -> None:
        self.config = (config or PruningConfig()).validated()
        self.granularity = make_granularity(self.config.granularity)
        selection = self._select_fitting(model)
        self.state = MaskState(model, selection, keep_removed, soft, self.config.seed)
        self.criterion = get_criterion(self.config.criterion)
        # read at every step, and slow to compute
        self.needs_gradients = needs_gradients(self.criterion)
        self.collects_gradients = isinstance(self.criterion, TrackingCriterion)
        for target in self.targets:
            self._check_sharding(target)
        self._unit = weights_per_unit(self.granularity, self.targets)
        self.layer_targets = selection.own_targets(self.config.layers or {})
        self._thin: set[str] = set()  # layers that were warned of
        if check_bool("from_zeros", from_zeros):
            self.mask_zeros()

    @atomic
    def mask_zeros(self) -> None:
        """Mask the weights that are exactly zero, as those of a network that was pruned before.

        With n:m or blocks, only units that are complete: groups with m - n zeros, blocks of zeros.
        """
        nonzero = [target.weight != 0 for target in self.targets]
        complete = mask_complete_units(self.granularity, self.targets, nonzero)
        masks = {target.name: mask for target, mask in zip(self.targets, complete, strict=True)}
        kept = self.state.shards.sums({n: int(mask.count_nonzero()) for n, mask in masks.items()})
        if empty := [name for name in masks if not kept[name]]:
            raise ConfigError(
                f"all weights of {', '.join(empty[:5])} are zero, and masked by from_zeros=True "
                f"they would never train: write exclude={empty}"
            )
        for name, mask in masks.items():
            self.state.set(name, mask)
        self.state.apply()
        self.state.target = self.sparsity

    def progress_towards(self, final: float) -> float:
        """Return the sparsity of the layers without a separate target, on the way to `final`.

        If all have one: the part of `final` that corresponds to their progress together.
        """
        if len(self.layer_targets) < len(self.targets):
            return self._shared_sparsity()
        most = sum(round(self.layer_targets[t.name] * t.parameter.numel()) for t in self.targets)
        return final * self.pruned / most if most else final

    def layer_progress(self, own: Mapping[str, float]) -> float:
        least = 1.0
        for target in self.targets:
            wanted = own.get(target.name, 0.0) * target.parameter.numel()
            pruned = self.state.pruned_count(target.name)
            if wanted - pruned > self._unit / 2 + 1e-6:  # else as near as whole units can be
                least = min(least, pruned / wanted)
        return least

    def units(self, sparsity: float) -> int:
        """Return how many units (weights, groups, blocks) of the shared targets are pruned."""
        weights = sum(target.parameter.numel() for target in self._shared_targets())
        return round(sparsity * weights / self._unit)

    def check_reachable(self, sparsity: float) -> None:
        """Raise `ConfigError` if a sparsity cannot be distributed, as masks by magnitude show."""
        kept = [self.enforcer.kept(target.name) for target in self.targets]
        config = self.config._replace(criterion=magnitude)
        choose_masks(config, self.targets, kept, sparsity, self.layer_targets, 0)

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
            sparsity: Fraction of all prunable weights (never of the remaining ones); where some
                layers have a separate target, of those without.
            optimizers: Their state at pruned positions is zeroed.
            own: Present sparsity of layers with a separate target; None: their final ones.
            scores: Rank by these, by parameter name, instead of by the criterion.

        Returns:
            The new entry of `history`.

        Raises:
            ConfigError: For a sparsity out of range, below the present one, or out of reach.
            StateError: For NaN scores or missing gradients, naming the layer.
        """
        sparsity = check_sparsity("sparsity", sparsity)
        if sparsity > self.granularity.limit:
            raise ConfigError(
                f"granularity {self.config.granularity!r} reaches sparsity "
                f"{self.granularity.limit:.4g} at most, got {sparsity}"
            )
        if own is None:
            own = self.layer_targets if sparsity else dict.fromkeys(self.layer_targets, 0.0)
        elif unknown := [name for name in own if name not in self.layer_targets]:
            raise ConfigError(
                f"own= has {', '.join(unknown)}, which no pattern of layers= matches: there are "
                f"{', '.join(self.layer_targets) or 'none'}"
            )
        before = self.sparsity
        if sparsity == 0 and not any(own.values()):
            masks = [torch.ones_like(t.weight, dtype=torch.bool) for t in self.targets]
        else:
            self._check_not_below(sparsity)
            masks = self._next_masks(sparsity, own, scores)
        self.state.set_all(masks, optimizers)
        shared = self.total - sum(t.parameter.numel() for t in self.targets if t.name in own)
        separate = sum(t.parameter.numel() * own.get(t.name, 0.0) for t in self.targets)
        self.state.target = (sparsity * shared + separate) / self.total
        self.warn_of_thin_layers(self.densities)
        self._warn_of_partial_units(sparsity)
        return self.record_event("prune" if self.sparsity >= before else "dense", before)

    @atomic
    def prune_below(self, threshold: float, optimizers: Iterable[Optimizer] = ()) -> HistoryEntry:
        """Prune all weights whose score is below a threshold, and enforce it.

        By magnitude those with |w| < t; with criterion "relative_magnitude" those with
        |w| < t std(w). Pruned weights stay pruned. Each layer keeps `min_density` of its weights,
        at least one: the highest.

        Args:
            threshold: Above 0, in the unit of the criterion's scores.
            optimizers: Their state at pruned positions is zeroed.

        Returns:
            The new entry of `history`.

        Raises:
            ConfigError: For a threshold that is no number above 0, or beside a granularity, a
                distribution or targets of single layers.
            StateError: For NaN scores or missing gradients, naming the layer.

        Example:
            >>> pruner = Pruner(nn.Linear(3, 1))
            >>> pruner.targets[0].parameter.data = torch.tensor([[0.1, -0.5, 0.7]])
            >>> pruner.prune_below(0.6)["pruned"]
            2
        """
        threshold = self.config.check_threshold(threshold)
        before = self.sparsity
        self.state.set_all(self._next_masks(0.0, {}, None, threshold), optimizers)
        self.state.target = self.sparsity
        self.warn_of_thin_layers(self.densities, threshold)
        return self.record_event("prune", before, threshold=threshold)

    @atomic
    def unprune(
        self, names: Iterable[str] | str | None = None, optimizers: Iterable[Optimizer] = ()
    ) -> HistoryEntry:
        """Restore removed values bit-exactly; those weights are dense again.

        Args:
            names: Patterns of parameters; None: all.
            optimizers: Their state is masked where pruned positions remain.

        Returns:
            The new entry of `history`.

        Raises:
            StateError: If nothing was stored (`keep_removed=False`).
            ConfigError: If a pattern matches no parameter.

        Example:
            >>> layer = nn.Linear(10, 10)
            >>> before, pruner = layer.weight.clone(), Pruner(layer, keep_removed=True)
            >>> _ = pruner.prune_to(0.9)
            >>> _ = pruner.unprune()
            >>> bool((layer.weight == before).all())
            True
        """
        if self.state.removed_weights is None and not self.state.soft:
            raise StateError(
                "no removed values were stored to restore: write keep_removed=True before pruning"
            )
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
        """Restore pruned weights with new values; no other weight changes.

        Args:
            fraction: Of the pruned weights in `names`; or
            count: how many weights.
            by: Which return: "random", "gradient", "momentum", "removed", or a
                `regrow.pruning.growth.GrowthCriterion`.
            init: Their values; see the callback `Regrow`.
            names: Patterns of parameters; None: all.
            train: What trains from now on: "all", "regrown" (only the weights of this call), or
                patterns of parameters and modules: see `regrow.pruning.freezing.Freezer`.
            optimizers: Their state of returning weights is zero (Rprop's step size: the learning
                rate); with `keep_removed="moments"` and `init="removed"` it is restored.

        Returns:
            The new entry of `history`.

        Raises:
            ConfigError: If not exactly one of fraction and count is given, or more weights are
                requested than are pruned; if nothing would train.
            StateError: If the criterion or initializer lacks its input, naming the parameter.

        Example:
            >>> pruner = Pruner(nn.Linear(10, 10))
            >>> _ = pruner.prune_to(0.9)
            >>> pruner.regrow(0.5)["pruned"]
            45
        """
        if self.state.soft:
            raise ConfigError(
                "under soft pruning weights return by themselves, at each event: leave regrow out, "
                "or call unprune()"
            )
        before, optimizers, freezer = self.sparsity, list(optimizers), self.state.freezer
        train, targets = freezer.check(train), self.named(names)
        amount = regrow_count(fraction, count, self.state.pruned_in(names))
        if train == "regrown" and not amount:
            raise ConfigError("no weight returns, so train='regrown' leaves nothing to train")
        freezer.set(train, return_pruned(self.state, targets, amount, by, init, optimizers))
        self.enforce(optimizers)
        return self.record_event("regrow", before, **describe_regrowth(by, init, amount, train))

    def warn_of_thin_layers(
        self, densities: Mapping[str, float], threshold: float | None = None
    ) -> None:
        """Warn, once, of layers that keep under 1 % although nobody asked for that.

        With a threshold, also of those that it would have emptied.
        """
        if self.config.distribution == "uniform":
            return
        sizes = {t.name: t.parameter.numel() for t in self.targets}
        thin = {
            name: round(density * sizes[name])
            for name, density in densities.items()
            if (density < 0.01 or (threshold and round(density * sizes[name]) == 1))
            and name not in self._thin
            and name not in self.layer_targets
        }
        if thin:
            self._thin.update(thin)
            listed = ", ".join(f"{name} ({thin[name]:,} of {sizes[name]:,})" for name in thin)
            share = "one weight or under 1 %" if threshold else "under 1 %"
            other = "a lower threshold" if threshold else "distribution='erk'"
            warn(
                f"{share} of the weights are kept in {listed}: to keep more in every layer, write "
                f"min_density=0.01, or {other}"
            )

    def _warn_of_partial_units(self, sparsity: float) -> None:
        reached = self._shared_sparsity()
        beyond = self.units(reached) - self.units(sparsity)
        if self._unit > 1 and sparsity and beyond > len(self.targets):
            warn(
                f"sparsity {reached:.4g} instead of {sparsity:g}: of {self.config.granularity} "
                "units to which regrow returned some weights, the others stay pruned too"
            )

    def hook(self, optimizer: Optimizer | Iterable[Optimizer]) -> Handle:
        """Enforce the masks in a training loop, also after they change.

        Masks gradients before each `optimizer.step()` and weights after it; the present ones now.
        Warns if more than 1 % of the weights are zero and not masked, unless they were regrown.

        Args:
            optimizer: One optimizer, or all that train the targets; Fabric's too.

        Returns:
            A handle; `handle.remove()` ends the enforcement.

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
        given = as_list(optimizer)
        self.enforce(find_optimizers(*given))
        self._warn_of_zeros()
        return self.enforcer.install(given)

    def update(self, optimizer: Optimizer | None = None) -> None:
        """Pass this step's gradients, of one optimizer or of all, to a tracking criterion."""
        if not isinstance(self.criterion, TrackingCriterion):
            return
        trained = set() if optimizer is None else trained_parameters(optimizer)
        soft = self.enforcer if isinstance(self.enforcer, SoftMaskEnforcer) else None
        for target in self.targets:
            grad = target.grad
            if grad is not None and (optimizer is None or id(target.parameter) in trained):
                # scores of pruned weights accumulate too, by the value they would return with
                weight = target.weight if soft is None else soft.dense(target.name)
                self.criterion.update(target.name, weight, grad)

    def state_dict(self) -> PrunerStateDict:
        """Return the state of masks and criterion."""
        criterion = self.criterion
        tracked = criterion.state_dict() if isinstance(criterion, TrackingCriterion) else {}
        own = {"criterion": self.state.shards.gather(tracked)}
        return cast("PrunerStateDict", with_digest({**self.state.state_dict(), **own}))

    @atomic
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state.load_state_dict(verify_digest(state))
        if isinstance(self.criterion, TrackingCriterion):
            self.criterion.load_state_dict(self.state.shards.local_rows(state["criterion"]))

    def _shared_targets(self) -> list[Target]:
        """Return the targets without a separate sparsity; all, if all have one."""
        return [t for t in self.targets if t.name not in self.layer_targets] or list(self.targets)

    def _shared_sparsity(self) -> float:
        shared = self._shared_targets()
        pruned = sum(self.state.pruned_count(target.name) for target in shared)
        return pruned / sum(target.parameter.numel() for target in shared)

    def _select_fitting(self, model: nn.Module) -> TargetSelection:
        """Select the targets; those that the granularity does not divide raise, or stay dense."""
        selection = select_targets(model, self.config.include, self.config.exclude)
        reasons = {t.name: self.granularity.misfit(t) for t in selection.targets}
        misfits = {name: why for name, why in reasons.items() if why is not None}
        if not misfits:
            return selection
        heads = isinstance(self.granularity, Head)
        listed = "; ".join(misfits.values()) + (f" ({RECOGNISED})" if heads else "")
        if self.config.on_misfit == "raise":
            raise ConfigError(
                f"{listed}: write exclude={[*misfits]}, or on_misfit='skip' to leave such layers "
                "dense"
            )
        why = "it has no head" if heads else f"{self.config.granularity} does not divide its shape"
        reason = f"excluded by on_misfit='skip': {why}"
        fitting = selection.without(misfits, reason)
        warn(f"{len(misfits)} layers stay dense: {listed}")
        return fitting

    def _warn_of_zeros(self) -> None:
        """Warn of zeros that no mask covers, unless this pruner may have written them."""
        if self.state.returned_weights:
            return
        kept = {name: [mask] for name, mask in self.state.working_masks().items()}
        sizes = {target.name: target.parameter.numel() for target in self.targets}
        if message := describe_zeros(count_zeros(self.targets, kept), sizes):
            warn(message)

    def _check_sharding(self, target: Target) -> None:
        """Check that nothing needs the whole of a sharded layer."""
        if target.shard is None:
            return
        if self.config.distribution == "lamp":
            raise ConfigError(
                f"distribution='lamp' sums over all weights of a layer in order, and "
                f"{target.name} is sharded among ranks: write 'global', 'uniform' or 'erk'"
            )
        if self.collects_gradients and not isinstance(self.criterion, Movement):
            raise ConfigError(
                f"{type(self.criterion).__name__} has its own state, which cannot be sharded as "
                f"{target.name} is: write criterion='movement', or a callable (weight, grad) -> "
                "scores"
            )
        self.granularity.check_rows(target, target.shard)

    def _next_masks(
        self,
        sparsity: float,
        own: Mapping[str, float],
        scores: Mapping[str, Tensor] | None,
        threshold: float | None = None,
    ) -> list[Tensor]:
        """Compute the masks of the next event; an error changes nothing."""
        kept = list(map(self.enforcer.kept, self.enforcer.parameters))
        try:
            if isinstance(self.enforcer, SoftMaskEnforcer):  # all compete, by their dense values
                kept = [None] * len(kept)
                self.enforcer.insert()
            event, config = len(self.history), self.config
            if scores is not None:
                config = config._replace(criterion=Scores(scores))
            return choose_masks(config, self.targets, kept, sparsity, own, event, threshold)
        except BaseException:
            self.enforcer.weights()  # move the dense values of soft pruning out again
            raise

    def _check_not_below(self, sparsity: float) -> None:
        present = self._shared_sparsity()
        any_shared = len(self.layer_targets) < len(self.targets)
        if any_shared and Pruner.units(self, sparsity) < Pruner.units(self, present):
            raise ConfigError(
                f"the model has sparsity {present:.6g} already, {sparsity:g} is less: pruned "
                "weights stay pruned; prune_to(0) makes all dense"
            )
