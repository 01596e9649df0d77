# SPDX-License-Identifier: MIT
"""Top-k of one tensor from sampled bounds.

A sample estimates two bounds: scores above the upper one are kept, scores below the lower one are
not, and only the few between are ranked. If the sample was misleading, all are ranked.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from regrow.distributed.shard import Shard
from regrow.masks.lazy_scores import LazyScores, ScoresLike
from regrow.masks.sort_keys import SortKeys, count_true, nonzero, sorted_keys
from regrow.masks.topk import CHUNK, global_topk_masks
from regrow.utils.bits import as_numpy

_SAMPLE = 1 << 14


def topk_mask(
    scores: ScoresLike,
    count: int,
    candidates: Tensor,
    *,
    magnitude: bool = False,
    name: str = "scores",
    shard: Shard | None = None,
) -> Tensor:
    """Compute the mask of the `count` highest scores among candidates, a bool mask.

    Of equal scores those of the higher flat index are kept, as in `global_topk_masks`. With `shard`
    the count is that of the whole layer, the other arguments this rank's rows.
    """
    if shard is not None:  # ranks would have to agree on sampled bounds
        rank = partial(global_topk_masks, magnitude=magnitude, min_keep=0, names=[name])
        n_prune = math.prod(shard.shape) - count
        return rank([scores], n_prune, [candidates], shards=[shard])[0]
    if isinstance(scores, LazyScores):
        scores = scores.new_pass()(*scores.inputs)
    # in memory order, which is fast; only ties depend on the flat index
    steps: tuple[int, ...] = scores.stride()
    order = sorted(range(scores.dim()), key=lambda place: -steps[place])
    shape = [scores.shape[place] for place in order]
    values, allowed = (t.detach().permute(order).reshape(-1) for t in (scores, candidates))
    total = count_true(as_numpy(allowed))
    keys = SortKeys(values.dtype, magnitude)
    low, high = _bounds(keys, values, allowed, count / max(1, total))
    mask = torch.empty(len(values), dtype=torch.bool, device=values.device)
    between, above = _split(mask, keys, values, allowed, low, high)
    if not 0 <= count - above <= len(between):  # a misleading sample, or NaN
        between, above = torch.as_tensor(nonzero(as_numpy(allowed))), 0
        mask.zero_()
    if order != sorted(order):
        between = _sort_by_flat_index(between, scores.shape, order)
    ranked, n_prune = [values[between]], len(between) - (count - above)
    [taken] = global_topk_masks(ranked, n_prune, magnitude=magnitude, min_keep=0, names=[name])
    mask[between[taken]] = True
    return mask.view(shape).permute([order.index(place) for place in range(len(order))])


def _sort_by_flat_index(indices: Tensor, shape: torch.Size, order: list[int]) -> Tensor:
    """Sort indices into the permuted shape by their index into the original one."""
    places = torch.unravel_index(indices, [shape[dim] for dim in order])
    strides = [math.prod(shape[dim + 1 :]) for dim in order]
    flat = sum(i * stride for i, stride in zip(places, strides, strict=True))
    return indices[torch.as_tensor(flat).argsort()]


def _bounds(keys: SortKeys, values: Tensor, allowed: Tensor, share: float) -> tuple[int, int]:
    """Estimate bounds of the key that a share of the allowed keys exceeds."""
    step = max(1, len(values) // _SAMPLE) | 1  # odd, because widths of layers are even
    sample = sorted_keys(keys(values[::step][allowed[::step]]))
    rank = (1 - share) * len(sample)
    slack = 4 * math.sqrt(rank * share) + 1
    first, last = math.floor(rank - slack), math.ceil(rank + slack)
    low = int(sample[first]) if first >= 0 else -keys.max_key - 1
    return low, int(sample[last]) if last < len(sample) else keys.max_key


def _split(
    mask: Tensor, keys: SortKeys, values: Tensor, allowed: Tensor, low: int, high: int
) -> tuple[Tensor, int]:
    """Mark the keys above both bounds; return the indices between, and the number marked."""
    step = CHUNK if values.device.type == "cpu" else max(1, len(values))
    marked, indices = 0, [torch.zeros(0, dtype=torch.int64, device=values.device)]
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        here, ranks = as_numpy(allowed[part]), keys(values[part])
        if keys.any_nan(ranks):
            return indices[0], -1
        above = (ranks > high) & here
        between = (ranks >= low) & here
        between ^= above
        as_numpy(mask)[part] = above
        marked += count_true(above)
        indices.append(torch.as_tensor(nonzero(between)).add_(start))
    return torch.cat(indices), marked
