# SPDX-License-Identifier: MIT
"""Choose the channels to remove within a budget."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from regrow.channels.cut.surgery import RemovedChannels
from regrow.channels.graph.groups import Group
from regrow.utils.errors import ConfigError, check_choice, check_count

RoundTo = int | Literal["auto"]

DISTRIBUTIONS = ("global", "uniform")
TOLERANCE = 0.01  # accepted distance below the budget, as a fraction of the dense size
MAX_STEPS = 256  # steps tried to come that close


@dataclass(frozen=True)
class _Step:
    """Channels of one group that are removed together."""

    group: str
    stop: int  # number of its channels that are removed afterwards
    rank: float
    linked: tuple[tuple[str, int], ...] = ()  # other groups, with the same numbers of theirs


def rounding(size: int, round_to: RoundTo) -> int:
    """Return the number of which a group's kept count is a multiple.

    Example:
        >>> [rounding(size, "auto") for size in (128, 32, 20)], rounding(100, 4)
        ([16, 8, 1], 4)
    """
    if round_to == "auto":
        return 16 if size >= 64 else 8 if size >= 32 else 1
    return check_count("round_to", round_to)


def allocate(
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    size: Callable[[RemovedChannels], float],
    budget: float,
    *,
    distribution: str = "global",
    round_to: RoundTo = "auto",
    min_channels: int = 1,
    gone: RemovedChannels | None = None,
    links: Sequence[Sequence[str]] = (),
    fixed: Callable[[], str] | None = None,
) -> dict[str, Tensor]:
    """Choose the channels to remove, so that what remains is within a budget and close to it.

    Args:
        groups: The groups that may be cut.
        scores: Scores `(channels,)` by group.
        size: Returns the size that remains after a cut.
        budget: The size that may remain; `ConfigError` if it cannot be met.
        distribution: "global" (least important first) or "uniform" (the same fraction of each).
        round_to: See `ChannelConfig`.
        min_channels: Minimum number of channels that stay in a group.
        gone: Channels that are removed already.
        links: Sets of groups that keep the same fraction; rounded where all can be.
        fixed: Describes the groups that cannot be cut, for the error.

    Example:
        >>> scores = {"fc": torch.tensor([3.0, 1.0, 2.0, 4.0])}
        >>> allocate([Group("fc", 4, {})], scores, lambda r: 4 - len(r.get("fc", ())), budget=2)
        {'fc': tensor([1, 2])}
    """
    check_choice("distribution", distribution, DISTRIBUTIONS)
    check_count("min_channels", min_channels)
    first = {name: len(channels) for name, channels in (gone or {}).items()}
    orders, ranks = _ordered(groups, scores, gone or {})
    steps, linked = list[_Step](), {name for names in links for name in names}
    for g in (group for group in groups if group.name not in linked):
        start, multiple = first.get(g.name, 0), rounding(g.size, round_to)
        steps += _steps(g.name, ranks[g.name], start, distribution, multiple, min_channels)
    for names in links:
        here = {name: ranks[name] for name in names}
        steps += _linked(here, first, distribution, round_to, min_channels)
    steps.sort(key=lambda step: step.rank)  # stable: within a group ranks never fall

    def removed(chosen: Sequence[_Step]) -> dict[str, Tensor]:
        linked = {name: stop for step in chosen for name, stop in step.linked}
        stops = first | {step.group: step.stop for step in chosen} | linked
        return {name: orders[name][:stop] for name, stop in stops.items()}

    _check_reachable(size(removed(steps)), size({}), budget, min_channels, fixed)
    enough = bisect_left(range(len(steps)), True, key=lambda n: size(removed(steps[:n])) <= budget)
    best = _refine(steps, enough, size, removed, budget)
    return {name: channels.sort().values for name, channels in removed(best).items()}


def _check_reachable(
    least: float, dense: float, budget: float, min_channels: int, fixed: Callable[[], str] | None
) -> None:
    if least > budget:
        raise ConfigError(
            f"{budget:.6g} cannot be reached: with {min_channels} channel(s) kept in every group, "
            f"{least:.6g} of {dense:.6g} remain; ask for less sparsity, lower round_to or "
            f"min_channels, or exclude fewer layers. {fixed() if fixed else ''}".rstrip()
        )


def _ordered(
    groups: Sequence[Group], scores: Mapping[str, Tensor], gone: RemovedChannels
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sort the channels of each group by score, removed ones first; return order and scores."""
    orders, ranks = {}, {}
    for group in groups:
        ranked = scores[group.name].double().clone()
        if group.name in gone:
            ranked[gone[group.name]] = -torch.inf
        orders[group.name] = torch.argsort(ranked, stable=True)
        ranks[group.name] = ranked[orders[group.name]]
    return orders, ranks


def _steps(
    name: str, ranked: Tensor, gone: int, distribution: str, multiple: int, floor: int
) -> list[_Step]:
    """Steps of one group: the first leaves a multiple, later ones remove `multiple` channels."""
    size, steps, worst = len(ranked), list[_Step](), float("-inf")
    for kept in range((size - gone - 1) // multiple * multiple, 0, -multiple):
        if kept < floor:
            break
        stop = size - kept
        mean = stop / size if distribution == "uniform" else float(ranked[gone:stop].mean())
        worst = max(worst, mean)
        steps.append(_Step(name, stop, worst))
        gone = stop
    return steps


def _linked(
    ranked: Mapping[str, Tensor],
    first: Mapping[str, int],
    distribution: str,
    round_to: RoundTo,
    floor: int,
) -> list[_Step]:
    """Steps of groups that keep the same fraction."""
    sizes = {name: len(values) for name, values in ranked.items()}
    parts, steps, worst = math.gcd(*sizes.values()), list[_Step](), float("-inf")
    multiple = rounding(parts, round_to)
    parts //= multiple if parts % multiple == 0 else 1
    gone = {name: first.get(name, 0) for name in sizes}
    for part in range(1, parts):
        stops = {name: size * part // parts for name, size in sizes.items()}
        if any(stops[name] <= gone[name] for name in sizes):
            continue
        if any(sizes[name] - stop < floor for name, stop in stops.items()):
            break
        means = [float(ranked[name][gone[name] : stop].mean()) for name, stop in stops.items()]
        mean = part / parts if distribution == "uniform" else sum(means) / len(means)
        worst, gone = max(worst, mean), stops
        name, *others = stops
        steps.append(_Step(name, stops[name], worst, tuple((n, stops[n]) for n in others)))
    return steps


def _refine(
    steps: Sequence[_Step],
    count: int,
    size: Callable[[RemovedChannels], float],
    removed: Callable[[Sequence[_Step]], RemovedChannels],
    budget: float,
) -> list[_Step]:
    """Return the first `count` steps; if the last removes too much, try others in its place."""
    if not count:
        return []
    best, taken = list(steps[:count]), list(steps[: count - 1])
    left, skipped = size(removed(best)), {steps[count - 1].group}
    for step in steps[count : count + MAX_STEPS]:
        if budget - left <= TOLERANCE * size({}):
            break
        if step.group in skipped:
            continue
        remaining = size(removed([*taken, step]))
        if remaining > budget:
            taken.append(step)
            continue
        skipped.add(step.group)
        if remaining > left:
            best, left = [*taken, step], remaining
    return best
