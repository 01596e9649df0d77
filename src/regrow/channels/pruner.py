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
from regrow.channels.channel_masker import ChannelMasker, rank_channels
from regrow.channels.config import ChannelConfig
from regrow.channels.cut.channel_cut import ChannelCut
from regrow.channels.cut.surgery import RemovedChannels
from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.groups import Group, groups_from_trace
from regrow.channels.graph.trace import Trace, trace
from regrow.channels.importance import channel_scores, get_channel_criterion
from regrow.channels.latency_budget import LatencyTimer, latency_budget
from regrow.channels.prune_channels import fix_groups, selected
from regrow.channels.size import Sizes
from regrow.io.integrity import verify_digest, with_digest
from regrow.masks.targets import TargetSelection, selection_by_name
from regrow.pruning.base import BasePruner
from regrow.pruning.freezing import TrainSpec
from regrow.pruning.growth import GrowthCriterion, regrow_count
from regrow.pruning.initializers import Initializer, make_initializer, removed_values, zero
from regrow.pruning.restore import describe_regrowth
from regrow.pruning.state import HistoryEntry, KeepRemoved, MaskState
from regrow.pruning.transaction import atomic
from regrow.utils.batches import two_examples
from regrow.utils.errors import ConfigError, StateError, check_sparsity
from regrow.utils.names import parameters


class ChannelPruner(BasePruner):
    """Masks whole channels of one model, and cuts them out when asked.

    A masked channel is zero in every parameter that holds a part of it: rows, biases, scales and
    shifts of norms, and the columns that read it; so the cut model computes what the masked one
    does.

    Args:
        model: The model.
        example_input: A batch of two or more examples; a tuple holds positional arguments, a dict
            keyword arguments.
        method: How channels are ranked and counted.
        keep_removed: Whether removed values are stored, for `unprune` and `expand`.

    Attributes:
        pins: Groups that a trial at the start could not cut, with what broke.
        dense: The size of the original model, in the method's unit.

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
        method: ChannelConfig | None = None,
        *,
        keep_removed: KeepRemoved = True,
    ) -> None:
        self.method = (method or ChannelConfig()).validated()
        self.example_input = two_examples(example_input, model)
        self.needs_gradients = self.method.needs_gradients
        self.collects_gradients = False
        self.layer_targets = {}  # channels have one target
        self.pins: dict[str, str] = {}
        self.watch = LatencyTimer(self.method.timer, example_input)
        self._saved = 0.0  # of the original latency
        traced = trace(model, self.example_input)
        groups = self._groups(traced, model)
        selection = _selection(model, groups)
        self.state = MaskState(model, selection, keep_removed, seed=self.method.seed)
        self.masker = ChannelMasker(self.state, groups)
        self.cutter = ChannelCutter(self.masker, self._trace, self._analyse)
        self._set_trial(traced)
        self._check_cuts(self._lowest())
        self.dense = self.sizes.dense  # of what can be cut
        if not self.free:
            reasons = sorted({group.fixed_reason or "" for group in self.groups})
            raise ConfigError(f"no channels can be cut: {'; '.join(reasons[:5])}")

    @property
    def groups(self) -> Sequence[Group]:
        """The groups of the model as it is now."""
        return self.masker.groups

    @property
    def removed(self) -> dict[str, Tensor]:
        """The channels that are masked now, by group."""
        return self.masker.removed

    @property
    def plan(self) -> ChannelCut:
        """What was cut since the original shapes."""
        return self.cutter.plan

    @property
    def sparsity(self) -> float:
        """The fraction of `of` that is removed: masked or cut."""
        if self.method.of == "latency":
            return self._saved
        return 1 - self._left(self.removed) / self.dense

    @property
    def free(self) -> list[Group]:
        """The groups that can be cut."""
        return [group for group in self.groups if not group.fixed_reason]

    def progress_towards(self, final: float) -> float:
        """How far the model is on its way: what was asked for, unless less of it is left."""
        return min(self.target, self.sparsity)

    def units(self, sparsity: float) -> int:
        """A sparsity as a whole number, to compare two."""
        return round(sparsity * 1_000_000)

    def check_reachable(self, sparsity: float) -> None:
        """Check that a sparsity can be reached with rounding and minimum counts.

        Raises:
            ConfigError: With the largest one that can be had.
        """
        nothing = {group.name: torch.zeros(group.size) for group in self.free}
        self._chosen(sparsity, nothing if self.needs_gradients else self._scores())

    def affordable(self) -> float:
        """The sparsity with which a pass takes `method.latency_ms`; 0 where it does already."""
        assert self.method.latency_ms is not None
        return max(0.0, 1 - self.method.latency_ms / self._original_ms())

    def prune_to(
        self,
        sparsity: float,
        optimizers: Iterable[Optimizer] = (),
        own: Mapping[str, float] | None = None,
    ) -> HistoryEntry:
        """Masks channels until at least `sparsity` of `of` is removed, counted from the original.

        What is removed stays so. 0 brings all masked channels back.

        Args:
            sparsity: Fraction in [0, 1).
            optimizers: Whose state at masked places is zeroed.
            own: Not used: channels have one target.

        Returns:
            The new entry of `history`.

        Raises:
            ConfigError: For a sparsity out of range, below the present one, or out of reach.
            StateError: For scores that are not finite, or gradients that are missing.
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
        if before < sparsity:
            self.masker.mask(self._chosen(sparsity, self._scores()), optimizers)
            self._saved = sparsity
        self.state.target = sparsity
        gone = {name: len(channels) for name, channels in self.removed.items() if len(channels)}
        return self.record_event("prune", before, channels=gone)

    def unprune(
        self, names: Iterable[str] | str | None = None, optimizers: Iterable[Optimizer] = ()
    ) -> HistoryEntry:
        """Restore masked channels bit-exactly, in all their parameters.

        Args:
            names: Patterns of layers; channels that have a part in one return; None: all.
            optimizers: Whose state is masked where masked channels remain.

        Returns:
            The new entry of `history`.

        Raises:
            StateError: If nothing was stored, or all that is named was cut: call `expand()`.
            ConfigError: If a pattern matches nothing.
        """
        channels = self.masker.named(names)
        if self.cutter.cuts and not any(map(len, channels.values())):
            cut = ", ".join(f"{count} of {name}" for name, count in self.plan.removed.items())
            raise StateError(
                f"these channels were cut, not only masked ({cut}): call expand(), which gives the "
                "original shapes back, or prune with compact='end'"
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
        """Let masked channels return, whole ones.

        With `init="removed"` everything is as it was. With any other, the layers that compute a
        channel get new rows, norms scale 1 and shift 0, and the columns that read it are zero: the
        network computes what it computed before, and both sides can learn.

        Args:
            fraction: Of the masked channels in `names`; or
            count: how many channels.
            by: "random" or "removed" (the largest norm of the removed values first).
            init: With what values: see `regrow.pruning.initializers`.
            names: Patterns of layers; None: all.
            train: What trains from now on: see `Pruner.regrow`.
            optimizers: Their state of returning weights is zero.

        Returns:
            The new entry of `history`.

        Raises:
            ConfigError: For a rule that needs gradients: those of a masked channel are zero on
                both sides. For `init="zero"`: two zero sides would never learn.
        """
        initializer = check_regrowth(by, init)
        spec, before, pool = (
            self.state.freezer.check(train),
            self.sparsity,
            self.masker.named(names),
        )
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
        """Cut the masked channels out: tensors, optimizers' state and masks become smaller.

        Verified before it is kept; the Parameter objects stay the same. Optimizer state of other
        shapes than its parameter's starts again from nothing.

        Args:
            optimizers: Whose state is cut too.

        Returns:
            The cut, or None where nothing is masked.

        Raises:
            StateError: If some masked group cannot be cut; the model is masked as before.
        """
        before = self.sparsity
        cut = self.cutter.compact(list(optimizers))
        if cut is not None:
            self.record_event("compact", before, channels=dict(cut.removed))
        return cut

    @atomic
    def expand(self, optimizers: Iterable[Optimizer] = ()) -> HistoryEntry:
        """Restore the original shapes, with the removed values bit-exactly.

        Masked channels return too, and everything trains. Values that kept training since the cut
        stay as they are now; optimizer state of what returns is zero.

        Args:
            optimizers: Whose state gets the original shapes.

        Returns:
            The new entry of `history`.

        Raises:
            StateError: If nothing was stored.
        """
        self._check_stored()
        before = self.sparsity
        self.cutter.expand(list(optimizers))
        self._saved = 0.0
        return self.record_event("expand", before)

    def reshape(self, cuts: Sequence[Mapping[str, Any]]) -> None:
        """Give the model the shapes after some cuts; see `ChannelCutter.reshape`."""
        self.cutter.reshape(cuts)

    def state_dict(self) -> dict[str, Any]:
        """The state of `MaskState` and `ChannelMasker`; cuts with what they removed ("cuts").

        Also "example", "pins" and "dense" (see the attributes), "saved" (fraction of the dense
        latency) and "watch" (the latency timer).
        """
        return with_digest(
            {
                **self.state.state_dict(),
                **self.masker.state_dict(),
                "cuts": [dict(cut) for cut in self.cutter.cuts],
                "example": self.example_input,
                "pins": dict(self.pins),
                "dense": self.dense,
                "saved": self._saved,
                "watch": self.watch.state_dict(),
            }
        )

    @atomic
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the model gets the shapes of that moment."""
        pins, self.pins = self.pins, dict(verify_digest(state)["pins"])
        self.dense, self._saved = float(state["dense"]), float(state["saved"])
        self.watch.load_state_dict(state["watch"])
        self.reshape(state["cuts"])
        if pins != self.pins:
            self._analyse(self._trace())
        self.state.load_state_dict(state)
        self.masker.load_state_dict(state)

    def _bring_back(
        self, back: Mapping[str, Tensor], initializer: Initializer, optimizers: list[Optimizer]
    ) -> dict[str, Tensor]:
        regrown = self.masker.bring_back(back, initializer, optimizers)
        if self.method.of == "latency":
            self._saved = self._measured()
        return regrown

    def _check_stored(self) -> None:
        if self.state.removed_weights is None:
            raise StateError("nothing was kept to put back: write keep_removed=True before pruning")

    def _measured(self) -> float:
        """The fraction of the dense latency that is saved, with what is masked cut out."""
        if not self.cutter.cuts and not any(len(channels) for channels in self.removed.values()):
            return 0.0
        undo = self.cutter.trial.find_valid(self.removed).undo
        try:
            return max(0.0, 1 - self._ms(self.model) / self._original_ms())
        finally:
            undo()

    def _scores(self) -> dict[str, Tensor]:
        tensors = parameters(self.model)
        seed = self.method.seed * 1000 + len(self.history)
        rule = get_channel_criterion(self.method.criterion, seed)
        return {group.name: channel_scores(group, tensors, rule) for group in self.free}

    def _chosen(self, sparsity: float, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The channels to be removed, those that are masked among them."""
        if self.method.of != "latency":
            budget = (1 - sparsity) * self.dense * (1 + 1e-12)  # 1 - 0.9 is less than 0.1
            return self._choose(scores, self._left, budget)
        dense = self._original_ms()
        macs = Sizes(self.model, self.free, self.example_input, "macs")
        known = [] if self.cutter.cuts else [dense]  # of a whole model; a second look would differ
        chosen = latency_budget(
            lambda share: self._choose(scores, macs.after, share * macs.dense),
            self.cutter.trial,
            self.model,
            self.example_input,
            sparsity,
            (1 - sparsity) * dense,
            lambda model: known.pop() if known else self._ms(model),
        )
        return chosen or dict(self.removed)

    def _left(self, removed: RemovedChannels) -> float:
        """What is left of the original model; of groups that are gone one channel stays."""
        if self.sizes.of != "channels":
            return self.sizes.after(removed)
        cut = sum(self.plan.removed.values())
        return self.dense - cut - sum(len(channels) for channels in removed.values())

    def _original_ms(self) -> float:
        return self.watch.original(self.model, self.example_input)

    def _ms(self, model: nn.Module) -> float:
        return self.watch(model, self.example_input)

    def _choose(
        self, scores: Mapping[str, Tensor], size: Callable[[RemovedChannels], float], budget: float
    ) -> dict[str, Tensor]:
        was = self.plan.removed  # counts are rounded as those of the original group
        return allocate(
            [replace(group, size=group.size + was.get(group.name, 0)) for group in self.free],
            scores,
            size,
            budget,
            distribution=self.method.distribution,
            round_to=self.method.round_to,
            min_channels=self.method.min_channels,
            gone={name: c for name, c in self.removed.items() if len(c)},
        )

    def _trace(self) -> Trace:
        self.example_input = two_examples(self.example_input, self.model)  # it may have moved
        return trace(self.model, self.example_input)

    def _groups(self, traced: Trace, model: nn.Module) -> tuple[Group, ...]:
        """The groups of a traced model; those in `pins` are fixed."""
        found = groups_from_trace(traced, model)
        groups = selected(found, model, self.method.include, self.method.exclude)
        return fix_groups(groups, self.pins)

    def _analyse(self, traced: Trace) -> None:
        """Take the groups of the model as it is now; nothing is masked."""
        groups = self._groups(traced, self.model)
        self.masker.replace_groups(groups, _selection(self.model, groups))
        self._set_trial(traced)

    def _set_trial(self, traced: Trace) -> None:
        self.cutter.trial = TrialCut(self.model, traced, self.groups, self.example_input)
        of = "channels" if self.method.of == "latency" else self.method.of
        self.sizes = Sizes(self.model, self.free, self.example_input, of)

    def _lowest(self) -> dict[str, Tensor]:
        """A third of each group's channels: a cut to try."""
        return {
            group.name: torch.arange(-(-group.size // 3)) for group in self.free if group.size > 1
        }

    def _check_cuts(self, removed: RemovedChannels) -> None:
        """Cut once and undo it: a group that cannot be cut is not masked either."""
        found = self.cutter.trial.find_valid(removed)
        found.undo()
        if found.pinned:
            self.pins |= found.pinned
            self._analyse(self._trace())


def check_regrowth(by: str | GrowthCriterion, init: str | Initializer) -> Initializer:
    """The initializer of channels that return.

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


def _selection(model: nn.Module, groups: Sequence[Group]) -> TargetSelection:
    """Every parameter that holds a part of a channel."""
    return selection_by_name(model, {name for group in groups for name, _ in group.members})
