# SPDX-License-Identifier: MIT
"""One-shot channel pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from regrow.channels.allocation import TOLERANCE, RoundTo, allocate
from regrow.channels.config import ChannelConfig
from regrow.channels.cut.channel_cut import ChannelCut, make_channel_cut
from regrow.channels.cut.surgery import RemovedChannels, kept_indices
from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.groups import Group, groups_from_trace
from regrow.channels.graph.trace import trace
from regrow.channels.importance import ChannelCriterion, channel_scores, get_channel_criterion
from regrow.channels.latency_budget import latency_budget
from regrow.channels.size import Sizes
from regrow.masks.targets import select_targets
from regrow.profiling.macs import count_macs
from regrow.utils.batches import two_examples
from regrow.utils.errors import ConfigError, check_sparsity
from regrow.utils.names import parameters

Timer = Callable[[nn.Module], float]


Link = tuple[str, ...]  # groups that keep the same fraction


def prune(
    model: nn.Module,
    example_input: Any,
    sparsity: float = 0.5,
    *,
    of: str = "channels",
    distribution: str = "global",
    criterion: str | ChannelCriterion = "l2",
    round_to: RoundTo = "auto",
    min_channels: int = 1,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    latency_ms: float | None = None,
    timer: Timer | None = None,
    seed: int = 0,
) -> ChannelCut:
    """Remove channels from a model in place: it is smaller afterwards, or unchanged.

    Parameters stay the same objects; optimizers made before need `slice_optimizer_state`. What
    could not be cut is named in the result.

    Args:
        model: The model.
        example_input: A batch; a tuple holds positional arguments, a dict keyword arguments.
        sparsity: Fraction of `of` to remove, in [0, 1).
        of: "channels", "macs", "params" or "latency" (measured here on the example's batch).
        distribution: See `regrow.channels.config.ChannelConfig`, like the next five.
        criterion: How channels are ranked.
        round_to: Kept counts are multiples of it.
        min_channels: How many channels of a group stay at least.
        include: Patterns of layers that may be cut.
        exclude: Patterns of layers that keep their channels.
        latency_ms: With `of="latency"`, milliseconds that a pass may take, instead of `sparsity`.
        timer: With `of="latency"`, a function `model -> milliseconds`; None: measured here.
        seed: For `criterion="random"`.

    Returns:
        The cut; its `undo()` restores the model bit-exactly.

    Raises:
        ConfigError: For settings that cannot be met; the model is unchanged.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> plan = prune(net, torch.zeros(2, 4), 0.5)
        >>> net[0].weight.shape, net[2].in_features, plan.removed
        (torch.Size([4, 4]), 4, {'0': 4})
    """
    limits = (round_to, min_channels, include, exclude, seed, timer, latency_ms)
    config = ChannelConfig(criterion, distribution, of, *limits)
    return _cut_until_valid(model, example_input, check_sparsity("sparsity", sparsity), config)


def _cut_until_valid(
    model: nn.Module, example_input: Any, sparsity: float, config: ChannelConfig
) -> ChannelCut:
    """Choose channels and cut them, until the cut model runs and is within the budget."""
    rule = get_channel_criterion(config.criterion, config.seed)
    two = two_examples(example_input, model)
    traced = trace(model, two)
    groups = selected(groups_from_trace(traced, model), model, config.include, config.exclude)
    trial = TrialCut(model, traced, groups, two)
    linked: list[Link] = []
    together, slack = LinkedGroups(), BudgetCorrection()
    while True:
        free = [group for group in groups if not group.fixed_reason]
        if not free:
            reasons = sorted({group.fixed_reason or "" for group in groups})
            raise ConfigError(f"no channels can be cut: {'; '.join(reasons[:5])}")
        scores = {g.name: channel_scores(g, parameters(model), rule) for g in free}
        chosen = partial(
            allocate,
            free,
            scores,
            distribution=config.distribution,
            round_to=config.round_to,
            min_channels=config.min_channels,
            links=linked,
        )
        of = config.of
        sizes = Sizes(model, free, two, "macs" if of == "latency" else of)
        budget = (1 - sparsity) * sizes.dense * (1 + 1e-12)  # 1 - 0.9 is less than 0.1
        if of == "latency":
            share, limit = partial(_share, chosen, sizes), (config.latency_ms, config.timer)
            removed = latency_budget(share, trial, model, example_input, sparsity, *limit)
        else:
            removed = chosen(sizes.after, budget + slack.now)
        found = trial.find_valid(removed, linked)
        if found.pinned:  # their share is taken elsewhere
            found.undo()
            pins, linked = together.after(trial, found.pinned, linked)
            groups = fix_groups(groups, pins)
            trial.groups = groups
        elif of != "macs" or slack.settled(sizes, removed, count_macs(model, two).macs, budget):
            break
        else:
            found.undo()
    counts = {name: len(channels) for name, channels in removed.items() if len(channels)}
    pinned = {group.name: group.fixed_reason for group in groups if group.fixed_reason}
    kept = kept_indices(groups, removed)
    return make_channel_cut(
        model, kept, found.undo, removed=counts, pinned=pinned, error=found.error
    )


def fix_groups(groups: Sequence[Group], reasons: Mapping[str, str]) -> tuple[Group, ...]:
    """The same groups; those with a reason, by name, cannot be cut."""
    return tuple(
        replace(g, fixed_reason=reasons[g.name]) if g.name in reasons else g for g in groups
    )


class LinkedGroups:
    """Which groups are cut in step, after some of them broke the network."""

    def __init__(self) -> None:
        self._tried = set[Link]()
        self._alone = dict[str, str]()  # who broke it while not in step, and how

    def after(
        self, bench: TrialCut, broke: Mapping[str, str], linked: Sequence[Link]
    ) -> tuple[dict[str, str], list[Link]]:
        """Groups to pin with the reason, and the sets to cut in step from now on.

        Where a set does not hold, those that broke the network alone are to blame.
        """
        failed = [each for each in linked if broke.keys() & {*each}]
        inside = {name for each in failed for name in each}
        self._alone |= {name: why for name, why in broke.items() if name not in inside}
        blamed = {name for name in self._alone if name in inside or name in broke}
        held = [each for each in linked if each not in failed]
        new = [each for each in bench.links(blamed.union(*held), self._tried) if blamed & {*each}]
        self._tried |= {*new}
        hopeful = {name for each in new for name in each}
        pins = {name: self._alone[name] for name in blamed - hopeful}
        return pins, [each for each in held if not hopeful & {*each}] + new


class BudgetCorrection:
    """What more may remain by weights, as products without weights (attention) shrink too.

    Attributes:
        now: So many MACs.
    """

    def __init__(self, tries: int = 4) -> None:
        self.now, self._held, self._tries = 0.0, 0.0, tries

    def settled(self, sizes: Sizes, removed: RemovedChannels, left: float, budget: float) -> bool:
        """Whether a cut is near its budget, or the nearest there is; else `now` has changed."""
        if left <= budget:
            self._held = self.now
            if budget - left <= TOLERANCE * sizes.dense:
                return True
        if not self._tries:
            return True
        better = sizes.after(removed) - left
        self._tries -= 1
        if not self._tries or abs(better - self.now) < TOLERANCE / 10 * sizes.dense:
            self._tries, better = 0, self._held  # the last that met it
        settled, self.now = better == self.now, better
        return settled


def _share(
    chosen: Callable[[Callable[[RemovedChannels], float], float], dict[str, Tensor]],
    macs: Sizes,
    share: float,
) -> dict[str, Tensor]:
    return chosen(macs.after, share * macs.dense)


def selected(
    groups: Sequence[Group],
    model: nn.Module,
    include: Iterable[str] | None,
    exclude: Iterable[str] | None,
) -> tuple[Group, ...]:
    """Pins groups of layers that patterns leave out.

    Raises:
        ConfigError: For a pattern that matches nothing, with the nearest names.
    """
    if include is None and exclude is None:
        return tuple(groups)
    wanted = {target.name for target in select_targets(model, include, exclude).targets}
    every = {target.name for target in select_targets(model).targets}
    outside = every - wanted
    result = []
    for group in groups:
        rows = [name for name, _ in group.rows if name in every]
        left_out = [name for name in rows if name in outside]
        if left_out and not group.fixed_reason:
            group = replace(group, fixed_reason=f"{left_out[0]} is excluded or not included")
        result.append(group)
    return tuple(result)
