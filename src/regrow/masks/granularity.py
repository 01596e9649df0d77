# SPDX-License-Identifier: MIT
"""Granularities: single weights, n:m groups, blocks and attention heads.

A granularity turns scores of one parameter into scores of units (a weight, a group of m, a block),
and kept units back into kept weights. Every unit prunes the same number of weights. Heads span the
parameters of an attention module, see `regrow.masks.heads`.

Units are computed in chunks: sorting and summing take several times the memory of their input.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from regrow.distributed.shard import Shard
from regrow.masks.heads import HeadPart
from regrow.masks.lazy_scores import LazyScores, ScoresLike, as_lazy
from regrow.masks.targets import Target
from regrow.masks.topk import CHUNK
from regrow.utils.errors import ConfigError, name_elsewhere

_N_M = re.compile(r"(\d+):(\d+)")
_BLOCK = re.compile(r"block:(\d+)x(\d+)")


class Weight:
    """Every weight is a unit.

    Like every granularity it has `limit`, the largest possible sparsity; `least`, the number of
    units that each layer keeps; `misfit`, which says why a parameter's shape cannot be grouped; and
    `check_rows`, which raises, equally on all ranks, if a unit would span several ranks.
    """

    weights = 1
    limit = 1.0
    least = 1

    def misfit(self, target: Target) -> str | None:
        return None

    def check_rows(self, target: Target, shard: Shard) -> None:
        return None


class NofM:
    """Keep n of every m consecutive inputs, per output (and kernel position).

    A unit is one group, whose score is that of the weights which it loses: its m - n lowest, ties
    in input order. Gradual pruning prunes whole groups, the lowest scores first.

    Source: Mishra et al. 2021 (2:4).
    """

    outputs = 1
    least = 0

    def __init__(self, n: int, m: int) -> None:
        if not 0 < n < m:
            raise ConfigError(f"granularity n:m needs 0 < n < m, got {n}:{m}: write '2:4'")
        self.n, self.m = n, m
        self.weights = m - n
        self.limit = (m - n) / m

    def misfit(self, target: Target) -> str | None:
        dim = target.input_dim
        size = 0 if dim is None else target.parameter.shape[dim]
        if dim is not None and size % self.m == 0:
            return None
        has = "no input dimension" if dim is None else f"{size} inputs"
        return (
            f"granularity {self.n}:{self.m} does not divide {target.name}, which has {has} "
            f"(shape {tuple(target.parameter.shape)})"
        )

    def check_rows(self, target: Target, shard: Shard) -> None:
        _check_shard_boundaries(f"{self.n}:{self.m}", target, 1, shard)

    def units(self, scores: Tensor, input_dim: int | None) -> Tensor:
        ranked = self._groups(scores, input_dim).sort(-1).values
        scores_lost = ranked[..., : self.weights].sum(-1, dtype=_wide(scores))
        return scores_lost.where(~ranked[..., -1].isnan(), torch.nan)  # NaN sorts last

    def mask(self, kept: Tensor, scores: Tensor, input_dim: int | None) -> Tensor:
        groups = self._groups(scores, input_dim)
        order = groups.argsort(stable=True, dim=-1)
        dropped = torch.zeros_like(groups, dtype=torch.bool)
        dropped.scatter_(-1, order[..., : self.weights], True)
        mask = (~dropped | kept.unsqueeze(-1)).flatten(-2).movedim(-1, input_dim or 0)
        return torch.empty_like(scores, dtype=torch.bool).copy_(mask)

    def kept_units(self, kept: Tensor, input_dim: int | None) -> Tensor:
        return self._groups(kept, input_dim).sum(-1) > self.n

    def _groups(self, tensor: Tensor, input_dim: int | None) -> Tensor:
        """`(out, in, kh, kw)` -> `(out, kh, kw, in / m, m)`."""
        moved = tensor.movedim(input_dim or 0, -1)
        return moved.view(*moved.shape[:-1], -1, self.m)


class Block:
    """Blocks of `rows` outputs by `columns` inputs of the matrix `(out, in * kh * kw)`.

    A unit is one block; its score is the mean score of its weights.
    """

    limit = 1.0
    least = 1

    def __init__(self, rows: int, columns: int) -> None:
        if rows < 1 or columns < 1:
            raise ConfigError(f"blocks need at least 1x1, got {rows}x{columns}: write 'block:4x4'")
        self.rows, self.columns = rows, columns
        self.weights = rows * columns
        self.outputs = rows

    def misfit(self, target: Target) -> str | None:
        shape = tuple(target.parameter.shape)
        if target.input_dim is not None:
            out, rest = _matrix(target.parameter, target.input_dim).shape
            if out % self.rows == 0 and rest % self.columns == 0:
                return None
        return f"blocks of {self.rows}x{self.columns} do not tile {target.name} of shape {shape}"

    def check_rows(self, target: Target, shard: Shard) -> None:
        _check_shard_boundaries(f"block:{self.rows}x{self.columns}", target, self.rows, shard)

    def units(self, scores: Tensor, input_dim: int | None) -> Tensor:
        return self._blocks(scores, input_dim).mean((1, 3), dtype=_wide(scores))

    def mask(self, kept: Tensor, scores: Tensor, input_dim: int | None) -> Tensor:
        matrix = kept.repeat_interleave(self.rows, 0).repeat_interleave(self.columns, 1)
        mask = torch.empty_like(scores, dtype=torch.bool)
        moved = mask.movedim(1, 0) if input_dim == 0 else mask
        moved.copy_(matrix.view(moved.shape))
        return mask

    def kept_units(self, kept: Tensor, input_dim: int | None) -> Tensor:
        return self._blocks(kept, input_dim).any(3).any(1)

    def _blocks(self, tensor: Tensor, input_dim: int | None) -> Tensor:
        """`(out, in, kh, kw)` -> `(out / rows, rows, in kh kw / columns, columns)`."""
        matrix = _matrix(tensor, input_dim)
        out, rest = matrix.shape
        return matrix.reshape(out // self.rows, self.rows, rest // self.columns, self.columns)


class Head:
    """A unit is an attention head, with its rows of q, k and v and its columns of the output."""

    limit = 1.0
    least = 1

    def misfit(self, target: Target) -> str | None:
        part = target.heads
        return f"{target.name} has {part}" if isinstance(part, str) else None

    def check_rows(self, target: Target, shard: Shard) -> None:
        raise ConfigError(
            f"{target.name} is sharded among ranks, which splits heads apart: write "
            "strategy='ddp', or granularity='weight'"
        )

    def groups(self, targets: Sequence[Target]) -> list[list[int]]:
        """Return the indices of each attention module's targets."""
        groups: dict[str, list[int]] = {}
        sizes: dict[int, str] = {}
        for index, target in enumerate(targets):
            if isinstance(target.heads, HeadPart):
                groups.setdefault(target.heads.module, []).append(index)
        for module, members in groups.items():
            part = head_part(targets[members[0]])
            names = {targets[index].name for index in members}
            if missing := [name for name in part.weights if name not in names]:
                raise ConfigError(
                    f"a head is pruned in all weights of {module or 'its module'} together, and "
                    f"{', '.join(missing)} is not selected: name it in include=, or leave it out "
                    "of exclude="
                )
            total = sum(targets[index].parameter.numel() for index in members)
            sizes[total // part.heads] = module
        if len(sizes) > 1:
            raise ConfigError(
                f"heads of {', '.join(sizes.values())} have different numbers of weights "
                f"({', '.join(map(str, sizes))}): prune each by a callback with include="
            )
        return [*groups.values()]


Grouped = NofM | Block
Granularity = Weight | Grouped | Head


def _check_shard_boundaries(granularity: str, target: Target, step: int, shard: Shard) -> None:
    if target.input_dim == 0:  # rows are inputs, and units span them
        raise ConfigError(
            f"{target.name} is a transposed convolution that is sharded along its inputs, which "
            f"splits units of granularity {granularity!r} apart: write exclude=[{target.name!r}]"
        )
    rows = -(-shard.shape[0] // shard.ranks.size)
    if rows < shard.shape[0] and rows % step:
        raise ConfigError(
            f"{target.name} is sharded among ranks, {rows} rows each, which splits units of "
            f"granularity {granularity!r}: shard it in multiples of {step} rows, or write "
            f"exclude=[{target.name!r}]"
        )


def _wide(scores: Tensor) -> torch.dtype:
    """Return at least float32, so that sums of half precision scores are not rounded."""
    return torch.promote_types(scores.dtype, torch.float32)


def _matrix(tensor: Tensor, input_dim: int | None) -> Tensor:
    return (tensor.movedim(0, 1) if input_dim == 0 else tensor).flatten(1)


def make_granularity(granularity: str) -> Granularity:
    """Make a granularity from its name: "weight", "2:4" (any "n:m"), "block:4x4" or "head"."""
    text = granularity if isinstance(granularity, str) else repr(granularity)
    if text == "weight":
        return Weight()
    if text == "head":
        return Head()
    if match := _N_M.fullmatch(text):
        return NofM(int(match[1]), int(match[2]))
    if match := _BLOCK.fullmatch(text):
        return Block(int(match[1]), int(match[2]))
    hint = name_elsewhere(text, ("weight",)) or "in YAML, keep the quotes"
    raise ConfigError(
        "granularity must be 'weight', 'n:m' such as '2:4', 'block:RxC' such as 'block:4x4', or "
        f"'head', got {text} ({hint})"
    )


def weights_per_unit(granularity: Granularity, targets: Sequence[Target]) -> int:
    """Return how many weights a pruned unit loses."""
    if not isinstance(granularity, Head):
        return granularity.weights
    group = granularity.groups(targets)[0]
    return sum(targets[i].parameter.numel() for i in group) // head_part(targets[group[0]]).heads


def head_part(target: Target) -> HeadPart:
    """Return where the heads of a target are, whose misfit is None."""
    assert isinstance(target.heads, HeadPart)
    return target.heads


def units_of(granularity: Grouped, scores: ScoresLike, input_dim: int | None) -> Tensor:
    """Compute the scores of the units of one parameter."""
    parts = _chunks(granularity, as_lazy(scores), input_dim)
    return torch.cat([granularity.units(part, input_dim) for _, part in parts])


def mask_from_units(
    granularity: Grouped, kept: Tensor, scores: ScoresLike, input_dim: int | None
) -> Tensor:
    """Turn kept units into a mask of weights, with the shape and strides of their scores."""
    lazy = as_lazy(scores)
    mask = torch.empty_like(lazy.like, dtype=torch.bool)
    outputs = granularity.outputs
    for rows, part in _chunks(granularity, lazy, input_dim):
        units = slice(rows.start // outputs, rows.stop // outputs)
        here = kept if input_dim == 0 else kept[units]
        mask[rows] = granularity.mask(here, part, input_dim)
    return mask


def _chunks(
    granularity: Grouped, scores: LazyScores, input_dim: int | None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows with whole units and their scores; a single chunk where rows are inputs."""
    inputs, compute = scores.inputs, scores.new_pass()
    count, size, units = inputs[0].shape[0], inputs[0].numel(), granularity.outputs
    step = max(1, CHUNK * count // max(1, size) // units) * units
    step = max(1, count) if input_dim == 0 else step
    for start in range(0, max(1, count), step):
        rows = slice(start, min(start + step, count))
        yield rows, compute(*(tensor[rows] for tensor in inputs))
