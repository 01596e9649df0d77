# SPDX-License-Identifier: MIT
"""Choose the channels to remove within a budget."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regrow.channels.config import ChannelConfig, RoundTo, rounding
from regrow.channels.cut.surgery import RemovedChannels
from regrow.channels.graph.groups import Group
from regrow.utils.errors import ConfigError

TOLERANCE = 0.01  # accepted distance below the budget, as a fraction of the dense size
MAX_STEPS = 256  # steps tried to come that close


@dataclass(frozen=True)
class _Step:
    """Channels that are removed together."""

    stops: Mapping[str, int]  # number of removed channels afterwards, by group
    count: int  # how many this step adds
    rank: float

    @property
    def group(self) -> str:
        return next(iter(self.stops))


def allocate(
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    size: Callable[[RemovedChannels], float],
    budget: float,
    config: ChannelConfig,
    *,
    own: Mapping[str, float] | None = None,
    gone: RemovedChannels | None = None,
    links: Sequence[Sequence[str]] = (),
    fixed: Callable[[], str] | None = None,
) -> dict[str, Tensor]:
    """Choose the channels to remove, so that what remains is within a budget and close to it.

    `size` returns what remains after a cut. `own` are fractions that some groups lose, while the
    others meet the budget; `gone` are removed already; groups of a link keep the same fraction.
    `fixed` describes the groups that cannot be cut, for the error.
    """
    own, gone = own or {}, gone or {}
    first = {name: len(channels) for name, channels in gone.items()}
    orders, ranks = _ordered(groups, scores, gone)
    sizes = {group.name: group.size for group in groups}  # before earlier cuts
    least, min_channels = 1 - (config.max_sparsity or 1.0), config.min_channels
    floors = {name: max(min_channels, math.ceil(least * n - 1e-9)) for name, n in sizes.items()}
    linked, steps = {name for link in links for name in link}, list[_Step]()
    for names in (*((name,) for name in sizes if name not in linked), *links):
        if len(names) > 1:
            found = _linked({n: ranks[n] for n in names}, first, config.round_to, floors)
        else:
            multiple = rounding(sizes[names[0]], config.round_to)
            found = _steps(names[0], ranks[names[0]], first, multiple, floors)
        if wanted := {own[name] for name in names if name in own}:
            first |= _nearest(found, {n: first.get(n, 0) for n in names}, wanted, sizes, ranks)
        else:
            steps += found
    if config.distribution != "global":
        steps = _ranked_by_share(steps, groups, config.distribution, first, ranks)

    def removed(chosen: Sequence[_Step]) -> dict[str, Tensor]:
        stops = first | {name: stop for step in chosen for name, stop in step.stops.items()}
        return {name: orders[name][:stop] for name, stop in stops.items()}

    if (reached := size(removed(steps))) > budget:
        others = f". {fixed()}" if fixed else ""
        raise ConfigError(
            f"{budget:.6g} cannot be reached: with {min_channels} channel(s) kept in every group, "
            f"{reached:.6g} of {size({}):.6g} remain; ask for less sparsity, lower round_to or "
            f"min_channels, raise max_sparsity or layers, or exclude fewer layers{others}"
        )
    chosen = removed(_within(steps, size, removed, budget))
    return {name: channels.sort().values for name, channels in chosen.items()}


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
    name: str, ranked: Tensor, first: Mapping[str, int], multiple: int, floors: Mapping[str, int]
) -> list[_Step]:
    """Steps of one group: the first leaves a multiple, later ones remove `multiple` channels."""
    size, gone, steps, worst = len(ranked), first.get(name, 0), list[_Step](), float("-inf")
    for kept in range((size - gone - 1) // multiple * multiple, floors[name] - 1, -multiple):
        stop = size - kept
        worst = max(worst, float(ranked[gone:stop].mean()))
        steps.append(_Step({name: stop}, stop - gone, worst))
        gone = stop
    return steps


def _linked(
    ranked: Mapping[str, Tensor],
    first: Mapping[str, int],
    round_to: RoundTo,
    floors: Mapping[str, int],
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
        if any(sizes[name] - stop < floors[name] for name, stop in stops.items()):
            break
        means = [float(ranked[name][gone[name] : stop].mean()) for name, stop in stops.items()]
        worst = max(worst, sum(means) / len(means))
        steps.append(_Step(stops, sum(stops.values()) - sum(gone.values()), worst))
        gone = stops
    return steps


def _nearest(
    steps: Sequence[_Step],
    now: Mapping[str, int],
    wanted: set[float],
    sizes: Mapping[str, int],
    ranks: Mapping[str, Tensor],
) -> Mapping[str, int]:
    """Return the stops, of a step or those of `now`, that are nearest to the wanted fraction."""
    if len(wanted) > 1:
        raise ConfigError(
            f"{', '.join(now)} work only if they lose the same fraction, and layers= asks for "
            f"{' and '.join(f'{fraction:g}' for fraction in sorted(wanted))}: write one for all"
        )
    [fraction] = wanted
    before = sum(sizes[name] - len(ranks[name]) for name in now)  # earlier cuts
    total = sum(sizes[name] for name in now)
    return min(
        (now, *(step.stops for step in steps)),
        key=lambda s: abs(before + sum(s.values()) - fraction * total),
    )


def _ranked_by_share(
    steps: Sequence[_Step],
    groups: Sequence[Group],
    distribution: str,
    first: Mapping[str, int],
    ranks: Mapping[str, Tensor],
) -> list[_Step]:
    """Rank steps by the fraction of their pool that they remove together with those before them.

    With a pool for each kind of group: Fang et al. 2024, arXiv 2407.04616.
    """
    pools = {g.name: g.kind if distribution == "isomorphic" else g.name for g in groups}
    gone, total = Counter[str](), Counter[str]()
    for names in {step.group: step.stops for step in steps}.values():
        pool = pools[next(iter(names))]
        gone[pool] += sum(first.get(name, 0) for name in names)
        total[pool] += sum(len(ranks[name]) for name in names)
    shares = [0.0] * len(steps)
    for index in sorted(range(len(steps)), key=lambda index: steps[index].rank):
        pool = pools[steps[index].group]
        gone[pool] += steps[index].count
        shares[index] = gone[pool] / total[pool]
    return [replace(step, rank=share) for step, share in zip(steps, shares, strict=True)]


def _within(
    steps: Sequence[_Step],
    size: Callable[[RemovedChannels], float],
    removed: Callable[[Sequence[_Step]], RemovedChannels],
    budget: float,
) -> list[_Step]:
    """Return the first steps that are enough; if the last removes too much, try others for it."""
    steps = sorted(steps, key=lambda step: step.rank)  # stable: within a group ranks never fall
    count = bisect_left(range(len(steps)), True, key=lambda n: size(removed(steps[:n])) <= budget)
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
