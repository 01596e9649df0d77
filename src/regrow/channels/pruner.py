# SPDX-License-Identifier: MIT
"""ChannelPruner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.channels.allocation import allocate
from regrow.channels.channel_cutter import ChannelCuts
from regrow.channels.config import ChannelConfig
from regrow.channels.cut.surgery import RemovedChannels
from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.groups import Group, groups_from_trace
from regrow.channels.graph.trace import Trace, trace
from regrow.channels.importance import channel_scores, get_channel_criterion
from regrow.channels.latency_budget import LatencyTimer, latency_budget
from regrow.channels.prune_channels import selected
from regrow.channels.size import Sizes
from regrow.io.integrity import verify_digest, with_digest
from regrow.masks.targets import selection_by_name
from regrow.pruning.initializers import Initializer
from regrow.pruning.state import KeepRemoved
from regrow.utils.batches import two_examples
from regrow.utils.errors import ConfigError, check_sparsity
from regrow.utils.names import parameters


class ChannelPruner(ChannelCuts):
    """Masks whole channels of one model, and cuts them out when asked.

    A masked channel is zero in every parameter that holds a part of it: rows, biases, scales and
    shifts of norms, and the columns that read it; so the cut model computes what the masked one
    does.

    Args:
        model: The model.
        example_input: A batch of two or more examples; a tuple holds positional arguments, a dict
            keyword arguments.
        method: How channels are ranked and counted.
        keep_removed: Whether removed values go to a vault, for `unprune` and `expand`.

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
        self.layer_targets: dict[str, float] = {}
        self.pins: dict[str, str] = {}
        self.dense = 0.0
        self.watch = LatencyTimer(self.method.timer, example_input)
        self._saved = 0.0  # of the original latency
        self.model = model
        self._analyse(self._traced())
        names = {name for group in self.groups for name, _ in group.members}
        super().__init__(model, selection_by_name(model, names), keep_removed, self.method.seed)
        self._try(self._lowest())
        self.dense = self.sizes.dense  # of what can be cut
        if not self.free:
            reasons = sorted({group.fixed_reason or "" for group in self.groups})
            raise ConfigError(f"no channels can be cut: {'; '.join(reasons[:5])}")

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

    def trained_by(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer trains all members."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return all(id(target.parameter) in held for target in self.targets)

    def update(self, optimizer: Optimizer | None = None) -> None:
        """Channel criteria look at one moment only."""

    def check_reachable(self, sparsity: float) -> None:
        """Refuses a sparsity that rounding and floors put out of reach, and criteria that fail.

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
    ) -> dict[str, Any]:
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
            self.target = entry["target"] = 0.0
            return entry
        if self.units(sparsity) < self.units(self.progress_towards(sparsity)):
            raise ConfigError(
                f"the model has sparsity {before:.6g} already, {sparsity:g} is less: what is "
                "pruned stays pruned; unprune() brings masked channels back"
            )
        if before < sparsity:
            self._mask(self._chosen(sparsity, self._scores()), optimizers)
            self._saved = sparsity
        self.target = sparsity
        gone = {name: len(channels) for name, channels in self.removed.items() if len(channels)}
        return self.record_event("prune", before, channels=gone)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtin types only."""
        own: dict[str, Any] = {"example": self.example_input, "pins": dict(self.pins)}
        own |= {"dense": self.dense, "saved": self._saved, "watch": self.watch.state_dict()}
        return with_digest(super().state_dict() | own)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave; the model gets the shapes of that moment."""
        pins, self.pins = self.pins, dict(verify_digest(state)["pins"])
        self.dense, self._saved = float(state["dense"]), float(state["saved"])
        self.watch.load_state_dict(state["watch"])
        self.reshape(state["cuts"])
        if pins != self.pins:
            self._again(self._traced())
        super().load_state_dict(state)

    @torch.no_grad()
    def _bring(
        self, back: Mapping[str, Tensor], initializer: Initializer, optimizers: list[Optimizer]
    ) -> dict[str, Tensor]:
        regrown = super()._bring(back, initializer, optimizers)
        if self.method.of == "latency":
            self._saved = self._measured()
        return regrown

    def _measured(self) -> float:
        """The fraction of the dense latency that is saved, with what is masked cut out."""
        if not self._cuts and not any(len(channels) for channels in self.removed.values()):
            return 0.0
        undo = self.bench.find_valid(self.removed).undo
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
        known = [] if self._cuts else [dense]  # of a whole model; a second look would differ
        chosen = latency_budget(
            lambda share: self._choose(scores, macs.after, share * macs.dense),
            self.bench,
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

    def _traced(self) -> Trace:
        self.example_input = two_examples(self.example_input, self.model)  # it may have moved
        return trace(self.model, self.example_input)

    def _analyse(self, traced: Trace) -> None:
        """Finds the groups of the model as it is now."""
        model, method = self.model, self.method
        found = selected(groups_from_trace(traced, model), model, method.include, method.exclude)
        self.groups = tuple(
            replace(g, fixed_reason=self.pins[g.name]) if g.name in self.pins else g for g in found
        )
        self.bench = TrialCut(model, traced, self.groups, self.example_input)
        of = "channels" if method.of == "latency" else method.of
        self.sizes = Sizes(model, self.free, self.example_input, of)
        self.removed: dict[str, Tensor] = {}

    def _again(self, traced: Trace) -> None:
        self._analyse(traced)
        names = {name for group in self.groups for name, _ in group.members}
        self._take(selection_by_name(self.model, names))

    def _lowest(self) -> dict[str, Tensor]:
        """A third of each group's channels: a cut to try."""
        return {
            group.name: torch.arange(-(-group.size // 3)) for group in self.free if group.size > 1
        }

    def _try(self, removed: RemovedChannels) -> None:
        """Cuts once and takes it back: what cannot be cut is not masked either."""
        found = self.bench.find_valid(removed)
        found.undo()
        if found.pinned:
            self.pins |= found.pinned
            self._again(self._traced())
