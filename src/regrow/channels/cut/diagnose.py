# SPDX-License-Identifier: MIT
"""Find the groups that made a cut network fail."""

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


def raising_modules(error: BaseException, model: nn.Module) -> list[str]:
    """Return the modules in whose forward an error was raised, innermost first."""
    paths = {id(module): path for path, module in modules(model).items()}
    found = []
    for frame, _ in traceback.walk_tb(error.__traceback__):
        path = paths.get(id(frame.f_locals.get("self")))
        if path and path not in found:
            found.append(path)
    return found[::-1]


def structure_key(group: Group) -> tuple[object, ...]:
    """Return a key that groups of repeated blocks share: size, and members without numbers."""
    names = sorted({(re.sub(r"\d+", "#", name), dim) for name, dim in group.members})
    return group.size, *names


def blame_groups(
    paths: Sequence[str], traced: Trace, groups: Sequence[Group], removed: RemovedChannels
) -> list[str]:
    """Return the groups that explain an error in some modules, and equal groups elsewhere.

    The first module that uses any of the groups decides. Groups of its own parameters whose sizes
    its code reads are preferred, then others of its own parameters, then all that pass through it.
    """
    cut = [group for group in groups if len(removed.get(group.name, ()))]
    used_by = groups_by_module(traced, cut)
    for path in paths:
        own = [g.name for g in cut if all(name.startswith(f"{path}.") for name, _ in g.members)]
        used = used_by.get(path, set())
        # a layer that raises has a wrong input; its outputs did not cause it
        inputs = {g.name for g in cut if any(n == f"{path}.weight" and d for n, d in g.members)}
        blamed = used.intersection(own) or own or used & inputs or used
        if blamed:
            keys = {structure_key(group) for group in cut if group.name in blamed}
            return [group.name for group in cut if structure_key(group) in keys]
    return []


def groups_by_module(traced: Trace, groups: Sequence[Group]) -> dict[str, set[str]]:
    """Map module paths to the groups in its views and splits, or in its own layers."""
    labels = traced.labels
    starts = dict(zip(labels.owners, labels.starts, strict=True))
    number = torch.full((len(labels),), -1)
    for index, group in enumerate(groups):
        for place, channels in group.members.items():
            member_labels = (channels >= 0).nonzero().flatten() + starts[place]
            number[labels.find(member_labels)] = index
    found: dict[str, set[str]] = {}
    for site in traced.sites:
        for axis in site.label_axes:
            indices = torch.unique(number[labels.find(axis)]).tolist()
            found.setdefault(site.module, set()).update(groups[i].name for i in indices if i >= 0)
    for group in groups:
        for name, _ in group.members:
            owner = name.rpartition(".")[0]
            for path in (owner, owner.rpartition(".")[0]):
                if path in found:
                    found[path].add(group.name)
    return found


def find_linkable(
    traced: Trace,
    groups: Sequence[Group],
    names: Iterable[str],
    paths: Collection[str],
    tried: Collection[tuple[str, ...]] = (),
) -> list[tuple[str, ...]]:
    """Return sets of groups that the same code, in the modules `paths`, uses.

    Code that computes one size from two others, such as `width // heads`, works if the quotient
    stays; pieces of a split that are equal stay equal. So they may keep the same fraction. `names`
    are groups that made the network fail; equal groups elsewhere are included.
    """
    failed = set(names)
    keys = {structure_key(group) for group in groups if group.name in failed}
    free = [group for group in groups if not group.fixed_reason]
    alike = {group.name for group in free if structure_key(group) in keys}
    used = [names for path, names in groups_by_module(traced, free).items() if path in paths]
    narrow = _merge_sets([names & alike for names in used], free)
    found = [names for names in narrow if names not in tried]
    # failed groups that are in no such set yet: try them with all that the code uses
    alone = alike.difference(*found)
    taken = {name for names in found for name in names}
    wide = _merge_sets([names for names in used if names & alike], free)
    new = [s for s in wide if s not in tried and alone & {*s} and not taken & {*s}]
    return found + new


def _merge_sets(sets: Iterable[set[str]], groups: Sequence[Group]) -> list[tuple[str, ...]]:
    """Merge sets that overlap; return those that can keep a fraction other than all."""
    merged: list[set[str]] = []
    for names in sets:
        overlapping = [other for other in merged if other & names]
        merged = [other for other in merged if not other & names]
        merged.append(names.union(*overlapping))
    ordered = [tuple(group.name for group in groups if group.name in names) for names in merged]
    sizes = {group.name: group.size for group in groups}
    return [s for s in ordered if len(s) > 1 and math.gcd(*(sizes[name] for name in s)) > 1]
