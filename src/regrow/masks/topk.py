# SPDX-License-Identifier: MIT
"""Exact global top-k over many tensors without concatenation.

Floats of one width order like integers once the sign is dealt with. A histogram of the upper 16
bits finds the bin that holds the k-th score, further histograms refine that bin, and one last pass
writes the masks. Peak memory is the masks (1 byte a score) and one chunk, and the scores themselves
where they are not computed part by part.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regrow.distributed.shard import Shard
from regrow.distributed.sharded_counts import ShardedCounts
from regrow.masks.lazy_scores import LazyScores, ScoresLike, as_lazy
from regrow.masks.sort_keys import SortKeys, count_true, nonzero, sorted_keys
from regrow.utils.bits import as_numpy
from regrow.utils.errors import ConfigError, StateError

CHUNK = 1 << 18  # scores at a time: large enough for the histogram, small enough for the cache


_DIGIT = 16


_HALF = 1 << (_DIGIT - 1)


_FEW = 1 << 14


def global_topk_masks(
    scores: Sequence[ScoresLike],
    n_prune: int,
    kept: Sequence[Tensor | None] | None = None,
    *,
    among_pruned: bool = False,
    magnitude: bool = False,
    min_keep: int = 1,
    names: Sequence[str] | None = None,
    shards: Sequence[Shard | None] | None = None,
) -> list[Tensor]:
    """Masks that prune the `n_prune` lowest scores of all tensors together.

    Exactly `n_prune` places are False. Equal scores are pruned in the order of (tensor, flat
    index), so the outcome is the same on every run. What `kept` marks as pruned stays pruned and
    counts. No tensor is left with fewer than `min_keep` places: one that would be keeps its
    highest, and the others make up for it.

    Args:
        scores: One tensor a layer, any shape and floating type, or what computes it; higher = keep.
        n_prune: How many places are pruned in the end, earlier ones included.
        kept: One tensor a layer, non-zero where still kept; None where nothing is pruned yet.
        among_pruned: What `kept` marks as pruned competes instead of the others, as in
            regrowth; these are False in the masks, and count.
        magnitude: Rank by |score|, so that weights can be given as they are.
        min_keep: How many places each tensor keeps.
        names: Names for messages.
        shards: Which rows of each layer the scores are, where ranks hold parts; None: all. Every
            rank must call, with the same `pruned`; each gets the masks of its rows. Sent are
            histograms and counts, however many scores there are.

    Returns:
        Bool masks with the scores' shapes and strides, True = kept.

    Raises:
        StateError: If a score is NaN, naming the layer.
        ConfigError: If `pruned` is below what is pruned already or above what `least` allows.

    Example:
        >>> weights = [torch.tensor([3.0, -1.0]), torch.tensor([1.0, 2.0])]
        >>> global_topk_masks(weights, 2, magnitude=True)
        [tensor([ True, False]), tensor([False,  True])]
    """
    kept = kept or [None] * len(scores)
    everywhere = ShardedCounts(shards or [None] * len(scores))
    given = [as_lazy(one) for one in scores]
    own = [one.like.numel() for one in given]
    sizes = everywhere.sums(own)
    present = [
        size if mask is None else int(mask.count_nonzero())
        for size, mask in zip(own, kept, strict=True)
    ]
    pairs = zip(own, present, strict=True)
    live = everywhere.sums(size - here if among_pruned else here for size, here in pairs)
    floors = [min(min_keep, count) for count in live]
    quota = n_prune - (sum(sizes) - sum(live))
    if not 0 <= quota <= sum(live) - sum(floors):
        raise ConfigError(
            f"{n_prune} of {sum(sizes)} places cannot be pruned: {sum(sizes) - sum(live)} are "
            f"pruned already, and at least {min_keep} must stay in each of {len(sizes)} layers"
        )
    pool = _Pool(given, kept, among_pruned, magnitude, names, everywhere)
    masks: dict[int, Tensor] = {}
    open_ = list(range(len(scores)))
    while open_:
        masks |= pool.masks(open_, quota)
        empty = []
        if any(floors):
            left = everywhere.sums((int(masks[i].count_nonzero()) for i in open_), open_)
            empty = [i for i, count in zip(open_, left, strict=True) if count < floors[i]]
        if not empty:
            break
        for i in empty:
            masks |= pool.masks([i], live[i] - floors[i])
            quota -= live[i] - floors[i]
        open_ = [i for i in open_ if i not in empty]
    return [masks[index] for index in range(len(scores))]


class _Cut(NamedTuple):
    """Prune every key below `key`, and the first `ties` of those equal to it."""

    key: int
    ties: int


class _Pool:
    """Score tensors as ordered integer keys: |score| by magnitude, else the signed value."""

    def __init__(
        self,
        scores: Sequence[LazyScores],
        kept: Sequence[Tensor | None],
        absent: bool,
        magnitude: bool,
        names: Sequence[str] | None,
        everywhere: ShardedCounts,
    ) -> None:
        self.scores, self.kept, self.absent, self.everywhere = scores, kept, absent, everywhere
        self.names = names or [f"tensor {index}" for index in range(len(scores))]
        self.keys = SortKeys(
            reduce(torch.promote_types, {tensor.dtype for tensor in scores}), magnitude
        )

    def masks(self, indices: Sequence[int], count: int) -> dict[int, Tensor]:
        """The masks of some tensors with their `count` lowest live scores pruned together."""
        cut = self._cut(indices, count)
        ties, masks, own = cut.ties, {}, None
        if self.everywhere.ranks is not None:  # others may hold ties that come before these
            own = self.everywhere.shares(cut.ties, [self._ties(i, cut) for i in indices], indices)
        for place, index in enumerate(indices):
            masks[index] = torch.empty_like(self.scores[index].like, dtype=torch.bool)
            share = ties if own is None else own[place]
            ties -= self._write(masks[index], index, _Cut(cut.key, share))
        return masks

    def _ties(self, index: int, cut: _Cut) -> int:
        """How many live keys of one tensor are equal to the cut's."""
        return sum(
            count_true(keys == cut.key if live is None else (keys == cut.key) & live)
            for _, keys, live in self._chunks(index)
        )

    def _write(self, mask: Tensor, index: int, cut: _Cut) -> int:
        """Fills one mask; returns how many ties it pruned."""
        used = 0
        for part, keys, live in self._chunks(index):
            keep = keys > cut.key
            equal = keys == cut.key if live is None else (keys == cut.key) & live
            if equal.any():
                places = nonzero(equal)
                keep[places[cut.ties - used :]] = True
                used += min(cut.ties - used, len(places))
            if live is not None:
                keep &= live
            target = _rows(mask, self._flat(index))[part]
            target.copy_(torch.as_tensor(keep).view(target.shape))
        return used

    def _cut(self, indices: Sequence[int], count: int) -> _Cut:
        """The key of the `count`-th smallest live score, and how many of its equals to prune."""
        alone = self.everywhere.ranks is None
        if alone and sum(self.scores[index].like.numel() for index in indices) <= _FEW:
            return self._cut_few(indices, count)
        key, rank = 0, count
        for shift in range(self.keys.bits - _DIGIT, -1, -_DIGIT):
            top = shift + _DIGIT == self.keys.bits
            counts = self._histogram(indices, key, shift)
            if top:
                self._check_no_nan(indices, counts)
            if rank == 0:
                return _Cut(-self.keys.max_key - 1, 0)
            totals = np.cumsum(counts)
            digit = int(np.searchsorted(totals, rank))
            rank -= int(totals[digit - 1]) if digit else 0
            key = digit - _HALF if top else (key << _DIGIT) | digit
        return _Cut(key, rank)

    def _cut_few(self, indices: Sequence[int], count: int) -> _Cut:
        """The same by sorting, which takes less time than an empty histogram."""
        chunks = [(keys, live) for index in indices for _, keys, live in self._chunks(index)]
        found = [torch.as_tensor(keys if live is None else keys[live]) for keys, live in chunks]
        if not found:
            return _Cut(-self.keys.max_key - 1, 0)
        keys = sorted_keys(as_numpy(torch.cat(found)))
        if self.keys.any_nan(keys):
            self._name_nan(indices)
        if count == 0:
            return _Cut(-self.keys.max_key - 1, 0)
        key = int(keys[count - 1])
        return _Cut(key, count - count_true(keys < key))

    def _histogram(self, indices: Sequence[int], prefix: int, shift: int) -> Any:
        """Counts of the 16-bit digit at `shift` of live keys whose higher bits are `prefix`."""
        counts = np.zeros(1 << _DIGIT, dtype=np.int64)
        for index in filter(self.everywhere.counts, indices):
            for _, keys, live in self._chunks(index):
                chosen = keys if live is None else keys[live]
                if shift + _DIGIT < self.keys.bits:
                    chosen = chosen[(chosen >> (shift + _DIGIT)) == prefix]
                counts += _bincount(self._digits(chosen, shift))
        return self.everywhere.sum(counts)

    def _check_no_nan(self, indices: Sequence[int], counts: Any) -> None:
        top = (self.keys.infinity >> (self.keys.bits - _DIGIT)) + _HALF
        low = (~self.keys.infinity >> (self.keys.bits - _DIGIT)) + _HALF
        if counts[top:].any() or (counts[: low + 1].any() and not self.keys.magnitude):
            self._name_nan(indices)

    def _name_nan(self, indices: Sequence[int]) -> None:
        found = []
        for index in indices:
            chunks = ((self.keys.is_nan(keys), live) for _, keys, live in self._chunks(index))
            found.append(
                sum(count_true(nan if live is None else nan & live) for nan, live in chunks)
            )
        for index, bad in zip(indices, self.everywhere.sums(found, indices), strict=True):
            if bad:
                raise StateError(
                    f"{self.names[index]} has {bad} NaN scores: nothing can be ranked; look at its "
                    "weights and gradients (has the loss diverged?)"
                )

    def _chunks(self, index: int) -> Iterator[tuple[slice, Any, Any]]:
        """Parts of one tensor in logical order: (rows, keys, which of them still count)."""
        scores, kept, flat = self.scores[index], self.kept[index], self._flat(index)
        reads = tuple(_rows(tensor, flat) for tensor in scores.inputs)
        compute = scores.new_pass()
        count, size = reads[0].shape[0], reads[0].numel()
        step = max(1, CHUNK * count // max(1, size))
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            keys = self.keys(compute(*(tensor[part] for tensor in reads)))
            live = None
            if kept is not None:
                present = as_numpy(_rows(kept, flat)[part].reshape(-1))
                live = present == 0 if self.absent else present != 0
            elif self.absent:
                live = as_numpy(torch.zeros(len(keys), dtype=torch.bool, device=reads[0].device))
            yield part, keys, live

    def _flat(self, index: int) -> bool:
        """Whether all that is read of one tensor lies in logical order in memory."""
        layouts = (*self.scores[index].inputs, self.kept[index])
        return all(tensor is None or tensor.is_contiguous() for tensor in layouts)

    def _digits(self, keys: Any, shift: int) -> Any:
        """The 16 bits at `shift`; the top ones offset, so that they count from the lowest key."""
        if isinstance(keys, Tensor):
            digits = (keys >> shift) & ((1 << _DIGIT) - 1)
        else:
            place = shift if sys.byteorder == "little" else self.keys.bits - _DIGIT - shift
            digits = keys.view(np.uint16)[place // _DIGIT :: self.keys.bits // _DIGIT]
        return digits ^ (1 << (_DIGIT - 1)) if shift + _DIGIT == self.keys.bits else digits


def _rows(tensor: Tensor, flat: bool) -> Tensor:
    """A view whose first dimension can be cut into parts in logical order."""
    return tensor.view(-1) if flat else tensor


def _bincount(digits: Any) -> Any:
    if isinstance(digits, Tensor):
        return torch.bincount(digits.to(torch.int64), minlength=1 << _DIGIT).cpu().numpy()
    return np.bincount(digits, minlength=1 << _DIGIT)
