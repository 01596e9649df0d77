# SPDX-License-Identifier: MIT
"""Channel groups: channels that must be cut together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

from regrow.channels.graph.labels import Labels
from regrow.channels.graph.trace import Trace, trace
from regrow.utils.batches import two_examples
from regrow.utils.modes import no_garbage_collection
from regrow.utils.names import PARAMETRIZED, modules, parameters, raw_weights, tensors

Place = tuple[str, int]  # name of a tensor, and one of its dimensions


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that appear in the same dimensions of the same tensors.

    Attributes:
        name: The layer whose outputs they are.
        size: Number of channels; each is cut from all members or from none.
        members: For each (tensor, dimension) the channel at each position, -1 for none.
        fixed_reason: Why the group cannot be cut; None: it can.
        approximate_reasons: Why zeroed channels still affect the output; empty: the cut network
            computes what the masked one did.
        rows: The members that are outputs of a weight.
        kind: The types of its layers and the dimensions of its members, without sizes: the same
            for groups that repeat in blocks of different widths.
        unmasked: The members that are not zeroed where the channels are masked: what weight norm
            divides by its own length, which must not be zero.
    """

    name: str
    size: int
    members: Mapping[Place, Tensor]
    fixed_reason: str | None = None
    approximate_reasons: tuple[str, ...] = ()
    rows: tuple[Place, ...] = ()
    kind: str = ""
    unmasked: tuple[Place, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.size} channels"]
        if self.fixed_reason:
            lines.append(f"  not prunable: {self.fixed_reason}")
        lines += [f"  approximate: {reason}" for reason in self.approximate_reasons]
        for (name, dim), channels in self.members.items():
            places = (channels >= 0).nonzero().flatten()
            lines.append(f"  {name}[{dim}] {_ranges(places)} of {len(channels)}")
        return "\n".join(lines)

    def places(self, name: str, dim: int, channels: Tensor) -> Tensor:
        """Return which positions of a member's dimension some channels have, as a bool vector."""
        chosen = torch.zeros(self.size + 1, dtype=torch.bool)
        chosen[channels] = True
        chosen[-1] = False  # index -1 stands for no channel
        return chosen[self.members[name, dim]]


def groups(model: nn.Module, example_input: Any) -> tuple[Group, ...]:
    """Find the channels of a model that must be cut together.

    The model is traced once (`torch.export`); there is no list of architectures.

    Args:
        model: The model; it is not changed.
        example_input: A batch; a tuple holds positional arguments, a dict keyword arguments.

    Returns:
        All groups in the order of the model's parameters.

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
          not prunable: the network's output
          3.weight[0] 0-1 of 2
          3.bias[0] 0-1 of 2
    """
    return groups_from_trace(trace(model, two_examples(example_input, model)), model)


@no_garbage_collection()
def groups_from_trace(traced: Trace, model: nn.Module) -> tuple[Group, ...]:
    """Return the groups of a traced model."""
    labels, by_name, trained = traced.labels, tensors(model), parameters(model)
    roots = labels.find(torch.arange(len(labels)))
    fixed, approximate = _reasons(labels, labels.fixed), _reasons(labels, labels.approximate)
    bounds = [*labels.starts, len(labels)]
    classes = [
        torch.unique(roots[a:b]) if name in by_name else roots[:0]  # not those of copies
        for (name, _), (a, b) in zip(labels.owners, pairwise(bounds), strict=True)
    ]
    shared = torch.bincount(torch.cat([*classes, roots[:0]]), minlength=len(labels)) > 1
    transposed, normalized = _transposed(model), _normalized(model)
    outputs = torch.zeros_like(shared)
    for (name, dim), block_classes in zip(labels.owners, classes, strict=True):
        outputs[block_classes] |= dim == (name in transposed)  # False == 0
    cannot = torch.zeros_like(shared)
    cannot[torch.tensor([*fixed], dtype=torch.int64)] = True
    alone = ~shared & outputs & cannot  # fixed outputs that nothing else holds
    numbers, places_of = _number_by_blocks(classes, shared | alone)
    types = {path: type(module).__name__ for path, module in modules(model).items()}
    channels_of: dict[tuple[int, bool], list[int]] = {}
    order = torch.cat([shared.nonzero(), alone.nonzero()]).flatten()
    for root, number, is_fixed in zip(
        order.tolist(), numbers[order].tolist(), cannot[order].tolist(), strict=True
    ):
        channels_of.setdefault((number, is_fixed), []).append(root)
    groups, taken = list[Group](), Counter[str]()
    index = torch.full((len(labels),), -1)
    for (number, is_fixed), channels in channels_of.items():
        index[torch.tensor(channels)] = torch.arange(len(channels))
        members = {
            labels.owners[block]: index[roots[bounds[block] : bounds[block + 1]]]
            for block in places_of[number]
        }
        index[torch.tensor(channels)] = -1
        if not any(name in trained and by_name[name].ndim > 1 for name, _ in members):
            continue
        rows = _rows(members, by_name, transposed)
        name = _name([*rows, *members])
        taken[name] += 1
        group = Group(
            name + (f"#{taken[name]}" if taken[name] > 1 else ""),
            len(channels),
            members,
            fixed[channels[0]][0] if is_fixed else None,
            tuple(dict.fromkeys(r for root in channels for r in approximate.get(root, ()))),
            tuple(rows),
            _kind(members, types),
            tuple(place for place in members if place in normalized),
        )
        groups.append(group)
    return tuple(groups)


def _rows(
    members: Iterable[Place], by_name: Mapping[str, Tensor], transposed: Container[str]
) -> list[Place]:
    """Return the members that make the channels of a group: outputs of weights."""
    rows = [
        (name, dim)
        for name, dim in members
        if by_name[name].ndim > 1 and dim == (name in transposed)  # False == 0
    ]
    # a scale `(channels, 1, 1)` has no rows of its own
    return [(n, d) for n, d in rows if by_name[n].numel() > by_name[n].shape[d]] or rows


def _number_by_blocks(
    classes: Sequence[Tensor], wanted: Tensor
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Number the wanted classes by the blocks they occur in; also return each number's blocks."""
    numbers, blocks = torch.zeros(len(wanted), dtype=torch.int64), [tuple[int, ...]()]
    for block, found in enumerate(classes):
        chosen = found[wanted[found]]
        before, index = torch.unique(numbers[chosen], return_inverse=True)
        numbers[chosen] = len(blocks) + index
        blocks += [(*blocks[old], block) for old in before.tolist()]
    return numbers, blocks


def _reasons(labels: Labels, marks: Iterable[tuple[Tensor, str]]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for marked, reason in marks:
        for root in torch.unique(labels.find(marked)).tolist():
            known = found.setdefault(root, [])
            if reason not in known:
                known.append(reason)
    return found


def _transposed(model: nn.Module) -> set[str]:
    """Names of weights `(in, out, *kernel)`; all others have their outputs first."""
    kind = nn.modules.conv._ConvTransposeNd
    weights = {id(raw) for m in model.modules() if isinstance(m, kind) for raw in raw_weights(m)}
    return {name for name, tensor in tensors(model).items() if id(tensor) in weights}


def _normalized(model: nn.Module) -> set[Place]:
    """Return the directions of weight norm, with the dimension whose slices have length 1."""
    found: set[tuple[int, int]] = set()
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                found.add((id(getattr(module, f"{hook.name}_v")), hook.dim))
        first = module[0] if isinstance(module, ParametrizationList) else None
        if isinstance(first, parametrizations._WeightNorm) and first.dim is not None:
            found.add((id(module.original1), first.dim))
    names = {id(tensor): name for name, tensor in tensors(model).items()}
    return {(names[tensor], dim) for tensor, dim in found}


def _name(places: Sequence[Place]) -> str:
    """Return the layer of the first place."""
    layer, inside, _ = places[0][0].partition(f".{PARAMETRIZED}")
    return layer if inside else layer.rpartition(".")[0] or layer


def _kind(members: Iterable[Place], types: Mapping[str, str]) -> str:
    parts = ((*name.rpartition(".")[::2], dim) for name, dim in members)
    return ", ".join(sorted(f"{types[path]}.{leaf}[{dim}]" for path, leaf, dim in parts))


def _ranges(places: Tensor) -> str:
    """Format integers as ranges, at most four."""
    words = []
    for _, run in groupby(enumerate(places.tolist()), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in run]
        words.append(f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}")
    return ",".join(words[:4]) + (",..." if len(words) > 4 else "")
