# SPDX-License-Identifier: MIT
"""Which groups broke a cut."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import nn

from regrow.channels.cut.surgery import RemovedChannels
from regrow.channels.graph.groups import Group
from regrow.channels.graph.trace import Trace
from regrow.utils.names import modules


def raising(error: BaseException, model: nn.Module) -> list[str]:
    """The modules in whose forward an error was raised, innermost first, without the model.

    Example:
        >>> import torch
        >>> class Block(nn.Module):
        ...     def forward(self, x):
        ...         return x.view(2, 3)
        >>> net = nn.Sequential(nn.Identity(), Block())
        >>> try:
        ...     _ = net(torch.zeros(4))
        ... except RuntimeError as error:
        ...     raising(error, net)
        ['1']
    """
    paths = {id(module): path for path, module in modules(model).items()}
    found = []
    for frame, _ in traceback.walk_tb(error.__traceback__):
        path = paths.get(id(frame.f_locals.get("self")))
        if path and path not in found:
            found.append(path)
    return found[::-1]


def kind(group: Group) -> tuple[object, ...]:
    """What repeated blocks have alike: the size, and the members' names without numbers.

    Example:
        >>> kind(Group("block.1", 4, {("block.1.weight", 0): None}))
        (4, ('block.#.weight', 0))
    """
    names = sorted({(re.sub(r"\d+", "#", name), dim) for name, dim in group.members})
    return group.size, *names


def blame_groups(
    paths: Sequence[str], traced: Trace, groups: Sequence[Group], removed: RemovedChannels
) -> list[str]:
    """Groups to blame for an error in some modules, with those of the same kind elsewhere.

    A module's own whose sizes its code reads come first, then its own; those that only pass
    through it are blamed when none is left.

    Args:
        paths: Modules, innermost first; the first that has seen any of the groups decides.
        traced: The labels.
        groups: All groups.
        removed: What was cut.
    """
    cut = [group for group in groups if len(removed.get(group.name, ()))]
    seen = seen_by(traced, cut)
    for path in paths:
        own = [g.name for g in cut if all(name.startswith(f"{path}.") for name, _ in g.members)]
        met = seen.get(path, set())
        # a layer that raises has got what it cannot take; what it gives is not to blame
        given = {g.name for g in cut if any(n == f"{path}.weight" and d for n, d in g.members)}
        blamed = met.intersection(own) or own or met & given or met
        if blamed:
            kinds = {kind(group) for group in cut if group.name in blamed}
            return [group.name for group in cut if kind(group) in kinds]
    return []


def seen_by(traced: Trace, groups: Sequence[Group]) -> dict[str, set[str]]:
    """By module: the groups that a view or split of its own code meets, or its own layers have."""
    labels = traced.labels
    starts = dict(zip(labels.owners, labels.starts, strict=True))
    number = torch.full((len(labels),), -1)
    for index, group in enumerate(groups):
        for place, channels in group.members.items():
            held = (channels >= 0).nonzero().flatten() + starts[place]
            number[labels.find(held)] = index
    found: dict[str, set[str]] = {}
    for site in traced.sites:
        for slot in site.slots:
            met = torch.unique(number[labels.find(slot)]).tolist()
            found.setdefault(site.module, set()).update(groups[i].name for i in met if i >= 0)
    for group in groups:
        for name, _ in group.members:
            owner = name.rpartition(".")[0]
            for path in (owner, owner.rpartition(".")[0]):
                if path in found:
                    found[path].add(group.name)
    return found


def links(
    traced: Trace,
    groups: Sequence[Group],
    names: Iterable[str],
    paths: Collection[str],
    tried: Collection[tuple[str, ...]] = (),
) -> list[tuple[str, ...]]:
    """Sets of such groups that the same code meets, and which may keep the same fraction.

    Code that computes one size from two others, as `width // heads`, bears cuts that leave it; and
    sizes that are equal, as those of a split, stay so.

    Args:
        traced: The labels.
        groups: All groups.
        names: Those that broke the network; their like are taken too.
        paths: The modules with that code.
        tried: Sets that did not hold; with all that the code meets they may.
    """
    given = set(names)
    kinds = {kind(group) for group in groups if group.name in given}
    free = [group for group in groups if not group.fixed_reason]
    alike = {group.name for group in free if kind(group) in kinds}
    met = [seen for path, seen in seen_by(traced, free).items() if path in paths]
    narrow = _sets([seen & alike for seen in met], free)
    found = [each for each in narrow if each not in tried]
    # whom nothing met yet among those that broke: with all that the code meets
    alone = alike.difference(*found)
    wide = _sets([seen for seen in met if seen & alike], free)
    taken = {name for each in found for name in each}
    new = [each for each in wide if each not in tried and alone & {*each} and not taken & {*each}]
    return found + new


def _sets(met: Iterable[set[str]], groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """Merges what overlaps; only sets that can keep a fraction other than all."""
    sets: list[set[str]] = []
    for seen in met:
        touching = [other for other in sets if other & seen]
        sets = [other for other in sets if not other & seen]
        sets.append(seen.union(*touching))
    made = [tuple(group.name for group in groups if group.name in each) for each in sets]
    sizes = {group.name: group.size for group in groups}
    return [names for names in made if len(names) > 1 and math.gcd(*(sizes[n] for n in names)) > 1]
