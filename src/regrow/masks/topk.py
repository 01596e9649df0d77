# SPDX-License-Identifier: MIT
"""Exact global top-k over many tensors without concatenation.

Scores are ordered as integer keys. A histogram of the upper 16 bits finds the bin of the k-th
score, further histograms refine that bin, and a last pass writes the masks. Peak memory is the
masks (1 byte per score), one chunk, and the scores themselves unless they are lazy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regrow.distributed.shard import Shard, ShardedCounts
from regrow.masks.lazy_scores import LazyScores, ScoresLike, as_lazy
from regrow.masks.sort_keys import SortKeys, count_true, nonzero, sorted_keys
from regrow.utils.bits import as_numpy
from regrow.utils.errors import ConfigError, StateError

CHUNK = 1 << 18  # scores at a time: large enough for the histogram, small enough for the cache
_DEVICE_CHUNK = 1 << 24  # the same on an accelerator, where each chunk waits for its histogram
_DIGIT = 16
_HALF = 1 << (_DIGIT - 1)
_SMALL = 1 << 14  # up to so many scores are sorted instead


def global_topk_masks(
    scores: Sequence[ScoresLike],
    n_prune: int,
    kept: Sequence[Tensor | None] | None = None,
    *,
    among_pruned: bool = False,
    magnitude: bool = False,
    min_keep: int | Sequence[int] = 1,
    names: Sequence[str] | None = None,
    shards: Sequence[Shard | None] | None = None,
) -> list[Tensor]:
    """Compute masks that prune the `n_prune` lowest scores of all tensors together.

    Exactly `n_prune` elements are False, over all tensors and ranks, those included of which `kept`
    is 0. Equal scores are pruned in the order of (tensor, flat index). Masks have the scores'
    shapes and strides. Scores are ranked by |score| with `magnitude`. `among_pruned` ranks the
    elements that `kept` marks as pruned (regrowth); all others are False then. Each tensor keeps
    `min_keep` elements.

    With `shards` every rank must call, and receives the masks of its rows. Only histograms and
    counts are communicated.
    """
    kept = kept or [None] * len(scores)
    totals = ShardedCounts(shards or [None] * len(scores))
    lazy = [as_lazy(one) for one in scores]
    local_sizes = [one.like.numel() for one in lazy]
    sizes = totals.sums(local_sizes)
    local_kept = [
        size if mask is None else int(mask.count_nonzero())
        for size, mask in zip(local_sizes, kept, strict=True)
    ]
    pairs = zip(local_sizes, local_kept, strict=True)
    ranked = totals.sums(size - count if among_pruned else count for size, count in pairs)
    quota = n_prune - (sum(sizes) - sum(ranked))
    least = [min_keep] * len(ranked) if isinstance(min_keep, int) else min_keep
    floors = [min(floor, count) for floor, count in zip(least, ranked, strict=True)]
    if not 0 <= quota <= sum(ranked) - sum(floors):
        raise ConfigError(
            f"{n_prune} of {sum(sizes)} places cannot be pruned: {sum(sizes) - sum(ranked)} are "
            f"pruned already, and at least {max(floors)} must stay in each of {len(sizes)} layers"
        )
    keys = SortKeys(reduce(torch.promote_types, {one.dtype for one in lazy}), magnitude)
    names = names or [f"tensor {index}" for index in range(len(scores))]
    pool = _Pool(lazy, kept, among_pruned, keys, names, totals)
    masks = _masks_with_floors(pool, ranked, quota, floors)
    return [masks[index] for index in range(len(scores))]


def _masks_with_floors(
    pool: _Pool, ranked: Sequence[int], quota: int, floors: Sequence[int]
) -> dict[int, Tensor]:
    """Prune `quota` elements together, layer by layer where `floors` would be violated."""
    masks: dict[int, Tensor] = {}
    together = list(range(len(ranked)))
    while together:
        masks |= pool.masks(together, quota)
        below = []
        if any(floors):
            left = pool.totals.sums((int(masks[i].count_nonzero()) for i in together), together)
            below = [i for i, count in zip(together, left, strict=True) if count < floors[i]]
        if not below:
            break
        for i in below:
            masks |= pool.masks([i], ranked[i] - floors[i])
            quota -= ranked[i] - floors[i]
        together = [i for i in together if i not in below]
    return masks


class _Cut(NamedTuple):
    """Prune every key below `key`, and the first `ties` of the keys equal to it."""

    key: int
    ties: int


@dataclass(frozen=True)
class _Pool:
    """Score tensors that are ranked together, as ordered integer keys."""

    scores: Sequence[LazyScores]
    kept: Sequence[Tensor | None]
    among_pruned: bool
    keys: SortKeys
    names: Sequence[str]
    totals: ShardedCounts

    def masks(self, indices: Sequence[int], count: int) -> dict[int, Tensor]:
        """Compute masks of some tensors, with their `count` lowest candidates pruned together."""
        cut = self._cut(indices, count)
        ties, masks, shares = cut.ties, {}, None
        if self.totals.ranks is not None:  # ties of other ranks may come first
            shares = self.totals.shares(cut.ties, [self._ties(i, cut) for i in indices], indices)
        for place, index in enumerate(indices):
            masks[index] = torch.empty_like(self.scores[index].like, dtype=torch.bool)
            share = ties if shares is None else shares[place]
            ties -= self._write(masks[index], index, _Cut(cut.key, share))
        return masks

    def _ties(self, index: int, cut: _Cut) -> int:
        """Count the candidates of one tensor equal to the cut's key."""
        return sum(
            count_true(keys == cut.key if valid is None else (keys == cut.key) & valid)
            for _, keys, valid in self._chunks(index)
        )

    def _write(self, mask: Tensor, index: int, cut: _Cut) -> int:
        """Fill one mask; return the number of ties pruned."""
        used = 0
        for part, keys, valid in self._chunks(index):
            keep = keys > cut.key
            equal = keys == cut.key if valid is None else (keys == cut.key) & valid
            if equal.any():
                places = nonzero(equal)
                keep[places[cut.ties - used :]] = True
                used += min(cut.ties - used, len(places))
            if valid is not None:
                keep &= valid
            target = _rows(mask, self._flat(index))[part]
            target.copy_(torch.as_tensor(keep).view(target.shape))
        return used

    def _cut(self, indices: Sequence[int], count: int) -> _Cut:
        """Find the key of the `count`-th lowest candidate, and how many equal keys to prune."""
        if (
            self.totals.ranks is None
            and sum(self.scores[index].like.numel() for index in indices) <= _SMALL
        ):
            return self._cut_by_sorting(indices, count)
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

    def _cut_by_sorting(self, indices: Sequence[int], count: int) -> _Cut:
        """`_cut` by sorting, faster than an empty histogram."""
        chunks = [(keys, valid) for index in indices for _, keys, valid in self._chunks(index)]
        parts = [torch.as_tensor(keys if valid is None else keys[valid]) for keys, valid in chunks]
        if not parts:
            return _Cut(-self.keys.max_key - 1, 0)
        keys = sorted_keys(as_numpy(torch.cat(parts)))
        if self.keys.any_nan(keys):
            self._raise_nan(indices)
        if count == 0:
            return _Cut(-self.keys.max_key - 1, 0)
        key = int(keys[count - 1])
        return _Cut(key, count - count_true(keys < key))

    def _histogram(self, indices: Sequence[int], prefix: int, shift: int) -> Any:
        """Count the 16-bit digits at `shift` of candidates whose higher bits are `prefix`."""
        counts = np.zeros(1 << _DIGIT, dtype=np.int64)
        for index in filter(self.totals.counts, indices):
            for _, keys, valid in self._chunks(index):
                chosen = keys if valid is None else keys[valid]
                if shift + _DIGIT < self.keys.bits:
                    chosen = chosen[(chosen >> (shift + _DIGIT)) == prefix]
                counts += _bincount(self._digits(chosen, shift))
        return self.totals.sum(counts)

    def _check_no_nan(self, indices: Sequence[int], counts: Any) -> None:
        top = (self.keys.infinity >> (self.keys.bits - _DIGIT)) + _HALF
        low = (~self.keys.infinity >> (self.keys.bits - _DIGIT)) + _HALF
        if counts[top:].any() or (counts[: low + 1].any() and not self.keys.magnitude):
            self._raise_nan(indices)

    def _raise_nan(self, indices: Sequence[int]) -> None:
        counts = []
        for index in indices:
            chunks = ((self.keys.is_nan(keys), valid) for _, keys, valid in self._chunks(index))
            counts.append(
                sum(count_true(nan if valid is None else nan & valid) for nan, valid in chunks)
            )
        for index, bad in zip(indices, self.totals.sums(counts, indices), strict=True):
            if bad:
                raise StateError(
                    f"{self.names[index]} has {bad} NaN scores, which cannot be ranked; check its "
                    "weights and gradients (has the loss diverged?)"
                )

    def _chunks(self, index: int) -> Iterator[tuple[slice, Any, Any]]:
        """Yield chunks of one tensor in logical order: (rows, keys, candidates or None for all)."""
        scores, kept, flat = self.scores[index], self.kept[index], self._flat(index)
        inputs = tuple(_rows(tensor, flat) for tensor in scores.inputs)
        compute = scores.new_pass()
        count, size = inputs[0].shape[0], inputs[0].numel()
        chunk = CHUNK if inputs[0].device.type == "cpu" else _DEVICE_CHUNK
        step = max(1, chunk * count // max(1, size))
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            keys = self.keys(compute(*(tensor[part] for tensor in inputs)))
            valid = None
            if kept is not None:
                present = as_numpy(_rows(kept, flat)[part].reshape(-1))
                valid = present == 0 if self.among_pruned else present != 0
            elif self.among_pruned:
                valid = as_numpy(torch.zeros(len(keys), dtype=torch.bool, device=inputs[0].device))
            yield part, keys, valid

    def _flat(self, index: int) -> bool:
        """Whether the inputs and mask of one tensor are contiguous."""
        layouts = (*self.scores[index].inputs, self.kept[index])
        return all(tensor is None or tensor.is_contiguous() for tensor in layouts)

    def _digits(self, keys: Any, shift: int) -> Any:
        """Extract the 16 bits at `shift`; the top ones offset, so that the lowest key is 0."""
        if isinstance(keys, Tensor):
            # wide first: 65,535 does not fit into 16 bits with a sign
            digits = (keys >> shift).long() & ((1 << _DIGIT) - 1)
        else:
            place = shift if sys.byteorder == "little" else self.keys.bits - _DIGIT - shift
            digits = keys.view(np.uint16)[place // _DIGIT :: self.keys.bits // _DIGIT]
        return digits ^ (1 << (_DIGIT - 1)) if shift + _DIGIT == self.keys.bits else digits


def _rows(tensor: Tensor, flat: bool) -> Tensor:
    """Return a view whose first dimension can be chunked in logical order."""
    return tensor.view(-1) if flat else tensor


def _bincount(digits: Any) -> Any:
    if isinstance(digits, Tensor):
        return torch.bincount(digits, minlength=1 << _DIGIT).cpu().numpy()
    return np.bincount(digits, minlength=1 << _DIGIT)
