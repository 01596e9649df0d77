# SPDX-License-Identifier: MIT
"""Group: channels that must be cut together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from regrow.channels.graph.labels import Labels
from regrow.channels.graph.trace import Trace, trace
from regrow.utils.batches import two_examples
from regrow.utils.names import parameters, tensors

Place = tuple[str, int]  # a tensor's name and one of its dimensions


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that appear in the same dimensions of the same tensors.

    Attributes:
        name: The layer that makes them.
        size: How many channels there are; each is cut from all members or from none.
        members: For each (tensor, dimension) the channel that stands at each place, -1 where none
            of this group does.
        pinned: Why the group cannot be cut; None: it can.
        inexact: Why zeroed channels would still count; empty: a cut network computes what the
            masked one did.
        rows: Those members that are the outputs of a weight.
    """

    name: str
    size: int
    members: Mapping[Place, Tensor]
    fixed_reason: str | None = None
    approximate_reasons: tuple[str, ...] = ()
    rows: tuple[Place, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.size} channels"]
        if self.fixed_reason:
            lines.append(f"  pinned: {self.fixed_reason}")
        lines += [f"  inexact: {reason}" for reason in self.approximate_reasons]
        for (name, dim), channels in self.members.items():
            places = (channels >= 0).nonzero().flatten()
            lines.append(f"  {name}[{dim}] {_ranges(places)} of {len(channels)}")
        return "\n".join(lines)

    def places(self, name: str, dim: int, channels: Tensor) -> Tensor:
        """Where in a member's dimension some channels stand, as a bool vector."""
        chosen = torch.zeros(self.size + 1, dtype=torch.bool)
        chosen[channels] = True
        chosen[-1] = False  # what -1 reads
        return chosen[self.members[name, dim]]


def groups(model: nn.Module, example_input: Any) -> tuple[Group, ...]:
    """Finds the channels of a model that must be cut together.

    The model is traced once (`torch.export`), so any composition of known operations will do;
    nothing is listed by architecture.

    Args:
        model: The model; it is not changed.
        example_input: A batch; a tuple holds positional arguments, a
            dict keyword arguments.

    Returns:
        All groups in the order of the model's parameters, pinned ones with their reason.

    Raises:
        ConfigError: If the model cannot be traced.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
        >>> for group in groups(net, torch.zeros(2, 3, 4, 4)):
        ...     print(group)
        0: 8 channels
          0.weight[0] 0-7 of 8
          0.bias[0] 0-7 of 8
          3.weight[1] 0-31 of 32
        3: 2 channels
          pinned: the network's output
          3.weight[0] 0-1 of 2
          3.bias[0] 0-1 of 2
    """
    return groups_from_trace(trace(model, two_examples(example_input, model)), model)


def groups_from_trace(traced: Trace, model: nn.Module) -> tuple[Group, ...]:
    """The groups of a traced model."""
    labels, held = traced.labels, tensors(model)
    trained = parameters(model)
    roots = labels.find(torch.arange(len(labels)))
    pinned, inexact = _reasons(labels, labels.pins), _reasons(labels, labels.counted)
    bounds = [*labels.starts, len(labels)]
    found = [torch.unique(roots[a:b]) for a, b in pairwise(bounds)]
    shared = torch.bincount(torch.cat([*found, roots[:0]]), minlength=len(labels)) > 1
    owners: dict[int, list[int]] = {}
    for number, classes in enumerate(found):
        for root in classes[shared[classes]].tolist():
            owners.setdefault(root, []).append(number)
    turned = _transposed(model)
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for root, numbers in owners.items():
        names = {labels.owners[number][0] for number in numbers}
        if any(n in trained and held[n].ndim > 1 for n in names):
            kinds.setdefault((tuple(numbers), root in pinned), []).append(root)
    made: list[Group] = []
    taken: Counter[str] = Counter()
    for (numbers, stuck), members_of in kinds.items():
        channel = torch.full((len(labels),), -1)
        channel[torch.tensor(members_of)] = torch.arange(len(members_of))
        members = {
            labels.owners[number]: channel[roots[bounds[number] : bounds[number + 1]]]
            for number in numbers
        }
        rows = [
            (name, dim)
            for name, dim in members
            if held[name].ndim > 1 and dim == (name in turned)  # False == 0
        ]
        # a scale `(channels, 1, 1)` makes nothing
        rows = [(n, d) for n, d in rows if held[n].numel() > held[n].shape[d]] or rows
        name = _name([*rows, *members])
        taken[name] += 1
        name += f"#{taken[name]}" if taken[name] > 1 else ""
        why = dict.fromkeys(reason for root in members_of for reason in inexact.get(root, ()))
        stuck_why = pinned[members_of[0]][0] if stuck else None
        made.append(Group(name, len(members_of), members, stuck_why, tuple(why), tuple(rows)))
    return tuple(made)


def _reasons(labels: Labels, marks: Iterable[tuple[Tensor, str]]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for marked, reason in marks:
        for root in torch.unique(labels.find(marked)).tolist():
            known = found.setdefault(root, [])
            if reason not in known:
                known.append(reason)
    return found


def _transposed(model: nn.Module) -> set[str]:
    """Weights `(in, out, *kernel)`; all others have their outputs first."""
    kind = nn.modules.conv._ConvTransposeNd
    weights = {id(m.weight) for m in model.modules() if isinstance(m, kind)}
    return {name for name, tensor in tensors(model).items() if id(tensor) in weights}


def _name(places: Sequence[Place]) -> str:
    """The layer of the first weight whose rows they are, else of the first member."""
    name = places[0][0]
    return name.rpartition(".")[0] or name


def _ranges(places: Tensor) -> str:
    """Whole numbers as ranges, the first few."""
    numbers = places.tolist()
    breaks = [0, *(i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1)]
    ends = [*breaks[1:], len(numbers)]
    words = [
        f"{numbers[a]}-{numbers[b - 1]}" if b - a > 1 else f"{numbers[a]}"
        for a, b in zip(breaks, ends, strict=True)
    ]
    return ",".join(words[:4]) + (",..." if len(words) > 4 else "")
