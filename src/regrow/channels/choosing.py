# SPDX-License-Identifier: MIT
"""Which channels go: the least important, in steps that leave round counts, within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from regrow.channels.coupling import Group
from regrow.channels.surgery import Removed
from regrow.errors import ConfigError, check_choice, check_count

RoundTo = int | Literal["auto"]
DISTRIBUTIONS = ("global", "uniform")


@dataclass(frozen=True)
class _Step:
    """The next channels of a group to go, all at once."""

    group: str
    stop: int  # how many of its channels are gone afterwards
    rank: float


def rounding(size: int, round_to: RoundTo) -> int:
    """What a group's kept channels are a multiple of.

    Example:
        >>> [rounding(size, "auto") for size in (128, 32, 20)], rounding(100, 4)
        ([16, 8, 1], 4)
    """
    if round_to == "auto":
        return 16 if size >= 64 else 8 if size >= 32 else 1
    return check_count("round_to", round_to)


def choose(
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    size: Callable[[Removed], float],
    budget: float,
    *,
    distribution: str = "global",
    round_to: RoundTo = "auto",
    min_channels: int = 1,
) -> dict[str, Tensor]:
    """The channels to remove so that no more than a budget remains, and as little less as possible.

    Global: the least important first, whatever the group. Uniform: the same fraction of each.

    Args:
        groups: The groups that may be cut.
        scores: Scores `(channels,)` by group.
        size: What remains after a cut.
        budget: How much may remain.
        distribution: "global" or "uniform".
        round_to: Kept counts are multiples of it; "auto": 16 from 64 channels, 8 from 32, else 1.
        min_channels: How many of a group stay at least.

    Raises:
        ConfigError: If the budget cannot be met, with the least that can.

    Example:
        >>> group = Group("fc", 4, {})
        >>> choose([group], {"fc": torch.tensor([3.0, 1.0, 2.0, 4.0])}, lambda r: 4 - len(r["fc"])
        ...        if r else 4, 2)
        {'fc': tensor([1, 2])}
    """
    check_choice("distribution", distribution, DISTRIBUTIONS)
    check_count("min_channels", min_channels)
    orders = {g.name: torch.argsort(scores[g.name], stable=True) for g in groups}
    steps = [
        step
        for g in groups
        for step in _steps(
            g, scores[g.name], distribution, rounding(g.size, round_to), min_channels
        )
    ]
    steps.sort(key=lambda step: step.rank)  # stable: within a group ranks never fall

    def removed(chosen: Sequence[_Step]) -> dict[str, Tensor]:
        stops = {step.group: step.stop for step in chosen}
        return {name: orders[name][:stop] for name, stop in stops.items()}

    least, most = 0, len(steps)
    if size(removed(steps)) > budget:
        raise ConfigError(
            f"{budget:.6g} cannot be reached: with {min_channels} channel(s) kept in every group "
            f"and rounded counts, {size(removed(steps)):.6g} of {size({}):.6g} remain; ask for "
            "less sparsity, lower round_to or min_channels, or exclude fewer layers"
        )
    while least < most:
        middle = (least + most) // 2
        if size(removed(steps[:middle])) <= budget:
            most = middle
        else:
            least = middle + 1
    best = _nearest(steps, least, size, removed, budget)
    return {name: channels.sort().values for name, channels in removed(best).items()}


def _steps(
    group: Group, scores: Tensor, distribution: str, multiple: int, floor: int
) -> list[_Step]:
    """Steps of one group: the first leaves a multiple, each later one takes `multiple` channels."""
    ranked, steps, gone = scores.sort(stable=True).values, [], 0
    worst = float("-inf")
    for kept in range((group.size - 1) // multiple * multiple, 0, -multiple):
        if kept < floor:
            break
        stop = group.size - kept
        mean = stop / group.size if distribution == "uniform" else float(ranked[gone:stop].mean())
        worst = max(worst, mean)
        steps.append(_Step(group.name, stop, worst))
        gone = stop
    return steps


def _nearest(
    steps: Sequence[_Step],
    count: int,
    size: Callable[[Removed], float],
    removed: Callable[[Sequence[_Step]], Removed],
    budget: float,
    tries: int = 64,
) -> list[_Step]:
    """The last step may take more than is needed; one that takes less may stand after it."""
    if not count:
        return []
    before, best = list(steps[: count - 1]), list(steps[:count])
    left = size(removed(best))
    seen = set[str]()
    for step in steps[count : count + tries]:
        if step.group in seen or step.group == steps[count - 1].group:
            continue  # it is not the next of its group
        seen.add(step.group)
        remaining = size(removed([*before, step]))
        if left < remaining <= budget:
            best, left = [*before, step], remaining
    return best
