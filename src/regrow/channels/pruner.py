# SPDX-License-Identifier: MIT
"""ChannelPruner: ranks, masks and cuts whole channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.channels.allocation import allocate
from regrow.channels.channel_cutter import ChannelCutter
from regrow.channels.channel_masker import ChannelMasker, ChannelMaskerState, rank_channels
from regrow.channels.config import ChannelConfig
from regrow.channels.cut.channel_cut import ChannelCut, StoredCut
from regrow.channels.cut.surgery import RemovedChannels
from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.groups import Group, groups_from_trace
from regrow.channels.graph.trace import Trace, trace
from regrow.channels.importance import (
    MeanScores,
    channel_scores,
    data_criterion,
    get_channel_criterion,
)
from regrow.channels.latency_budget import LatencyTimer, LatencyTimerState, latency_budget
from regrow.channels.prune_channels import (
    by_group,
    describe_fixed,
    fix_groups,
    layer_targets,
    prunable_groups,
    select_groups,
    warn_of_unused,
)
from regrow.channels.size import Sizes
from regrow.io.integrity import verify_digest, with_digest
from regrow.masks.targets import TargetSelection, selection_by_name
from regrow.pruning.base import BasePruner
from regrow.pruning.freezing import TrainSpec
from regrow.pruning.growth import GrowthCriterion, regrow_count
from regrow.pruning.initializers import Initializer, make_initializer, removed_values, zero
from regrow.pruning.restore import describe_regrowth
from regrow.pruning.state import HistoryEntry, KeepRemoved, MaskState, MaskStateDict
from regrow.pruning.transaction import atomic
from regrow.utils.batches import two_examples
from regrow.utils.errors import ConfigError, StateError, check_sparsity
from regrow.utils.names import parameters


class ChannelPrunerState(MaskStateDict, ChannelMaskerState):
    """What `ChannelPruner.state_dict` returns, with a digest."""

    cuts: list[StoredCut]
    example: Any
    not_prunable: dict[str, str]
    dense_size: float
    saved: float  # fraction of the dense latency
    watch: LatencyTimerState
    collected: dict[str, Any]  # by a criterion


class ChannelPruner(BasePruner):
    """Masks whole channels of one model, and cuts them out.

    A masked channel is zero in all its parameters: rows, biases, scales and shifts of norms, and
    the columns that read it. So the cut model computes what the masked one does.

    Args:
        model: The model.
        example_input: A batch; a tuple holds positional arguments, a dict keyword arguments.
        config: Settings.
        keep_removed: Whether removed values are stored, for `unprune` and `expand`.

    Attributes:
        not_prunable: Groups that a trial at the start could not cut, with the error.
        dense: Size of the original model, in the unit `config.of`.

    Raises:
        ConfigError: If the model cannot be traced, or no channel can be cut.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> pruner = ChannelPruner(net, torch.zeros(2, 4))
        >>> entry = pruner.prune_to(0.5)
        >>> int((net[0].weight == 0).sum()), pruner.sparsity
        (16, 0.5)
        >>> _ = pruner.compact()
        >>> net[0].weight.shape
        torch.Size([4, 4])
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Any,
        config: ChannelConfig | None = None,
        *,
        keep_removed: KeepRemoved = True,
    ) -> None:
        self.config = (config or ChannelConfig()).validated()
        self.example_input = two_examples(example_input, model)
        self.needs_gradients = self.config.needs_gradients
        self.collected = data_criterion(self.config.criterion)
        self.collects_gradients = isinstance(self.collected, MeanScores)
        self.not_prunable: dict[str, str] = {}
        original = model if self.config.of == "latency" else None
        self.watch = LatencyTimer(self.config.timer, example_input, original)
        self._saved = 0.0  # fraction of the original latency
        traced = trace(model, self.example_input)
        groups = self._groups(traced, model)
        selection = _selection(model, groups)
        self.state = MaskState(model, selection, keep_removed, seed=self.config.seed)
        self.masker = ChannelMasker(self.state, groups)
        self.cutter = ChannelCutter(self.masker, self._trace, self._analyse)
        self._set_trial(traced)
        self._try_cuts()
        self.layer_targets = layer_targets(self.groups, model, self.config)
        self.dense = self.sizes.dense  # of prunable groups
        prunable_groups(self.groups, model, self.example_input)
        warn_of_unused(model, traced, self.groups)

    @property
    def groups(self) -> Sequence[Group]:
        """The groups of the present model."""
        return self.masker.groups

    @property
    def removed(self) -> dict[str, Tensor]:
        """Indices of the masked channels, by group."""
        return self.masker.removed

    @property
    def plan(self) -> ChannelCut:
        """All cuts since the original shapes as one."""
        return self.cutter.plan

    @property
    def sparsity(self) -> float:
        """The fraction of `config.of` that is masked or cut."""
        if self.config.of == "latency":
            return self._saved
        return 1 - self._left(self.removed) / self.dense

    @property
    def free(self) -> list[Group]:
        """The groups that can be cut."""
        return [group for group in self.groups if not group.fixed_reason]

    @property
    def layer_densities(self) -> dict[str, float]:
        """The kept fraction of the channels of each layer with a separate target."""
        kept: dict[str, float] = {}
        for group in self.groups:
            cut, gone = self.plan.removed.get(group.name, 0), len(self.removed.get(group.name, ()))
            own = (name for name, _ in group.rows if name in self.layer_targets)
            kept |= dict.fromkeys(own, (group.size - gone) / (group.size + cut))
        return dict.fromkeys(self.layer_targets, 1.0) | kept

    def progress_towards(self, final: float) -> float:
        """The sparsity last asked for, or the present one where it is lower."""
        return min(self.target, self.sparsity)

    def units(self, sparsity: float) -> int:
        """Return a sparsity as an integer, for comparisons."""
        return round(sparsity * 1_000_000)

    def check_reachable(self, sparsity: float) -> None:
        """Raise `ConfigError` if a sparsity cannot be reached with rounding and minimum counts."""
        nothing = {group.name: torch.zeros(group.size) for group in self.free}
        scores = nothing if self.config.needs_data else self._scores()
        self._chosen(sparsity, scores, self.layer_targets)

    def affordable(self) -> float:
        """The sparsity at which a forward pass takes `config.latency_ms`."""
        assert self.config.latency_ms is not None
        return max(0.0, 1 - self.config.latency_ms / self._original_ms())

    def choose(self, sparsity: float) -> dict[str, Tensor]:
        """Return the channels that `prune_to` would mask now, and those that are masked."""
        return self._chosen(sparsity, self._scores(), self.layer_targets)

    def update(self, optimizer: Optimizer | None = None) -> None:
        """Pass this step's gradients to a criterion that averages over steps."""
        if isinstance(self.collected, MeanScores) and (not optimizer or self.trained_by(optimizer)):
            self.collected.update(self.free, parameters(self.model))

    def prune_to(
        self,
        sparsity: float,
        optimizers: Iterable[Optimizer] = (),
        own: Mapping[str, float] | None = None,
    ) -> HistoryEntry:
        """Mask channels until at least `sparsity` of the original model is removed.

        Removed channels stay removed, but 0 restores all masked channels. `own` are the present
        fractions of `layer_targets`; None: the final ones.

        Raises:
            ConfigError: For a sparsity out of range, below the present one, or unreachable.
            StateError: For scores that are not finite, or missing gradients.
        """
        sparsity, optimizers = check_sparsity("sparsity", sparsity), list(optimizers)
        before = self.sparsity
        if sparsity == 0:
            entry = self.unprune(optimizers=optimizers)
            self.state.target = entry["target"] = 0.0
            return entry
        if self.units(sparsity) < self.units(self.progress_towards(sparsity)):
            raise ConfigError(
                f"the model has sparsity {before:.6g} already, {sparsity:g} is less: what is "
                "pruned stays pruned; unprune() brings masked channels back"
            )
        own = self.layer_targets if own is None else own
        if before < sparsity or own:
            self.masker.mask(self._chosen(sparsity, self._scores(), own), optimizers)
            self._saved = sparsity
        self.state.target = sparsity
        gone = {name: len(channels) for name, channels in self.removed.items() if len(channels)}
        return self.record_event("prune", before, channels=gone)

    def unprune(
        self, names: Iterable[str] | str | None = None, optimizers: Iterable[Optimizer] = ()
    ) -> HistoryEntry:
        """Restore masked channels bit-exactly, in all their parameters.

        Args:
            names: Patterns of layers; channels with a part in one of them return; None: all.
            optimizers: Their state is restored or zeroed.

        Raises:
            StateError: If nothing was stored, or the channels were cut: call `expand()`.
            ConfigError: If a pattern matches nothing.
        """
        channels = self.masker.named(names)
        if self.cutter.cuts and not any(map(len, channels.values())):
            cut = ", ".join(f"{count} of {name}" for name, count in self.plan.removed.items())
            raise StateError(
                f"these channels were cut, not only masked ({cut}): call expand(), which restores "
                "the original shapes, or prune with compact='end'"
            )
        self._check_stored()
        before = self.sparsity
        self._bring_back(channels, removed_values, list(optimizers))
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
        """Unmask some channels; see `Pruner.regrow` for the arguments.

        With `init="removed"` their values are restored. Otherwise layers that compute a channel get
        new rows, its norms scale 1 and shift 0, and the columns that read it are zero: the outputs
        do not change at first, and all its weights can learn.

        Args:
            fraction: Fraction of the masked channels in `names`; or
            count: number of channels.
            by: "random" or "removed" (the largest norm of the removed values first).
            init: New values, not "zero", with which a channel would never learn.
            names: Patterns of layers; None: all.
            train: Which weights train afterwards.
            optimizers: Their state of returning weights is zeroed.
        """
        initializer = check_regrowth(by, init)
        spec, before = self.state.freezer.check(train), self.sparsity
        pool = self.masker.named(names)
        amount = regrow_count(fraction, count, sum(map(len, pool.values())))
        if by == "removed":
            self._check_stored()
        values = self.masker.removed_values() if by == "removed" else None
        ranks = rank_channels(self.groups, pool, (self.state.seed, len(self.history)), values)
        chosen = sorted(ranks, key=lambda key: (-ranks[key], key))[:amount]
        back = {
            name: torch.tensor(sorted(c for n, c in chosen if n == name), dtype=torch.int64)
            for name in pool
        }
        self.state.freezer.set(spec, self._bring_back(back, initializer, list(optimizers)))
        return self.record_event("regrow", before, **describe_regrowth(by, init, amount, spec))

    @atomic
    def compact(self, optimizers: Iterable[Optimizer] = ()) -> ChannelCut | None:
        """Cut the masked channels out of parameters, buffers, optimizer state and masks.

        The cut model is verified; its parameters are the same objects. Optimizer state of another
        shape than its parameter is reset. Returns None if nothing is masked.

        Raises:
            StateError: If a masked group cannot be cut; the model is not changed.
        """
        before = self.sparsity
        cut = self.cutter.compact(list(optimizers))
        if cut is not None:
            self.record_event("compact", before, channels=dict(cut.removed))
        return cut

    @atomic
    def expand(self, optimizers: Iterable[Optimizer] = ()) -> HistoryEntry:
        """Restore the original shapes, and all removed values bit-exactly.

        Other weights keep their present values. Optimizer state of returning weights is zero, and
        everything trains. `StateError` if nothing was stored.
        """
        self._check_stored()
        before = self.sparsity
        self.cutter.expand(list(optimizers))
        self._saved = 0.0
        return self.record_event("expand", before)

    def reshape(self, cuts: Sequence[StoredCut]) -> None:
        """Set the shapes of the model after some cuts; see `ChannelCutter.reshape`."""
        self.cutter.reshape(cuts)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to continue; see `ChannelPrunerState`."""
        state: ChannelPrunerState = {
            **self.state.state_dict(),
            **self.masker.state_dict(),
            "cuts": [*self.cutter.cuts],
            "example": self.example_input,
            "not_prunable": dict(self.not_prunable),
            "dense_size": self.dense,
            "saved": self._saved,
            "watch": self.watch.state_dict(),
            "collected": {**self.collected.state_dict()} if self.collected else {},
        }
        return with_digest({**state})

    @atomic
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the model gets the shapes of that moment."""
        before, self.not_prunable = self.not_prunable, dict(verify_digest(state)["not_prunable"])
        self.dense, self._saved = float(state["dense_size"]), float(state["saved"])
        self.watch.load_state_dict(state["watch"])
        self.reshape(state["cuts"])
        if before != self.not_prunable:
            self._analyse(self._trace())
        if self.collected and state.get("collected"):
            self.collected.load_state_dict(state["collected"])
        self.state.load_state_dict(state)
        self.masker.load_state_dict(state)

    def _bring_back(
        self, back: Mapping[str, Tensor], initializer: Initializer, optimizers: list[Optimizer]
    ) -> dict[str, Tensor]:
        regrown = self.masker.bring_back(back, initializer, optimizers)
        if self.config.of == "latency":
            self._saved = self._measured()
        return regrown

    def _check_stored(self) -> None:
        if self.state.removed_weights is None:
            raise StateError("no removed values were stored: write keep_removed=True when pruning")

    def _measured(self) -> float:
        """Measure the saved fraction of the dense latency, with masked channels cut out."""
        if not self.cutter.cuts and not any(len(channels) for channels in self.removed.values()):
            return 0.0
        undo = self.cutter.trial.find_valid(self.removed).undo
        try:
            return max(0.0, 1 - self.watch(self.model, self.example_input) / self._original_ms())
        finally:
            undo()

    def _scores(self) -> dict[str, Tensor]:
        tensors = parameters(self.model)
        seed = self.config.seed * 1000 + len(self.history)
        rule = self.collected or get_channel_criterion(self.config.criterion, seed)
        return {group.name: channel_scores(group, tensors, rule) for group in self.free}

    def _chosen(
        self, sparsity: float, scores: Mapping[str, Tensor], own: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """Choose the channels to remove, in addition to the masked ones."""
        if self.config.of != "latency":
            budget = (1 - sparsity) * self.dense * (1 + 1e-12)  # 1 - 0.9 is less than 0.1
            return self._choose(scores, self._left, budget, own)
        dense = self._original_ms()
        macs = Sizes(self.model, self.free, self.example_input, "macs")
        chosen = latency_budget(
            lambda budget: self._choose(scores, macs.after, budget, own),
            macs.dense,
            self.cutter.trial,
            lambda model: self.watch(model, self.example_input),
            self.watch(self.model, self.example_input) if self.cutter.cuts else dense,
            (1 - sparsity) * dense,
        )
        return chosen or dict(self.removed)

    def _left(self, removed: RemovedChannels) -> float:
        """Compute the remaining size of the original model."""
        if self.sizes.of != "channels":
            return self.sizes.after(removed)
        cut = sum(self.plan.removed.values())
        return self.dense - cut - sum(len(channels) for channels in removed.values())

    def _original_ms(self) -> float:
        return self.watch.original(self.model, self.example_input)

    def _choose(
        self,
        scores: Mapping[str, Tensor],
        size: Callable[[RemovedChannels], float],
        budget: float,
        own: Mapping[str, float],
    ) -> dict[str, Tensor]:
        cut = self.plan.removed  # counts are rounded as those of the original group
        return allocate(
            [replace(group, size=group.size + cut.get(group.name, 0)) for group in self.free],
            scores,
            size,
            budget,
            self.config,
            own=by_group(self.groups, own),
            gone={name: c for name, c in self.removed.items() if len(c)},
            fixed=lambda: describe_fixed(self.groups, self.model, self.example_input),
        )

    def _trace(self) -> Trace:
        self.example_input = two_examples(self.example_input, self.model)  # it may have moved
        recorded = bool(self.cutter.trial.traced.heads)
        return trace(self.model, self.example_input, recorded=recorded)

    def _groups(self, traced: Trace, model: nn.Module) -> tuple[Group, ...]:
        found = select_groups(groups_from_trace(traced, model), model, self.config)
        return fix_groups(found, self.not_prunable)

    def _analyse(self, traced: Trace) -> None:
        """Set the groups of a traced model, of which nothing is masked."""
        groups = self._groups(traced, self.model)
        self.masker.replace_groups(groups, _selection(self.model, groups))
        self._set_trial(traced)
        if isinstance(self.collected, MeanScores):  # its groups may have other channels now
            self.collected.clear()

    def _set_trial(self, traced: Trace) -> None:
        self.cutter.trial = TrialCut(self.model, traced, self.groups, self.example_input)
        of = "channels" if self.config.of == "latency" else self.config.of
        self.sizes = Sizes(self.model, self.free, self.example_input, of)

    def _try_cuts(self) -> None:
        """Cut a third of each group and undo it: a group that cannot be cut is not masked."""
        third = {g.name: torch.arange(-(-g.size // 3)) for g in self.free if g.size > 1}
        found = self.cutter.trial.find_valid(third)
        found.undo()
        if found.failed:
            self.not_prunable |= found.failed
            self._analyse(self._trace())


def check_regrowth(by: str | GrowthCriterion, init: str | Initializer) -> Initializer:
    """Return the initializer; raise `ConfigError` for settings with which channels never learn."""
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


def _selection(model: nn.Module, groups: Sequence[Group]) -> TargetSelection:
    """Select all parameters of channels."""
    return selection_by_name(model, {name for group in groups for name, _ in group.members})
