# SPDX-License-Identifier: MIT
"""Top-k of one tensor from sampled bounds.

A sample tells two bounds: what exceeds the upper one is taken as it is passed over, what lies below
the lower one is not, and only the few between are ranked. Where the sample was wrong all are.
"""

from __future__ import annotations

import math

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
    """The mask of the `count` highest scores among some places.

    Of equal scores those of the higher flat index are taken, as `global_topk_masks` does.

    Args:
        scores: Any shape and floating type, or what computes them.
        count: How many, at most the number of places.
        candidates: The places, a bool mask of the same shape.
        magnitude: Rank by |score|.
        name: For messages.
        shard: Which rows of a layer these are; the count is then that of the whole layer.

    Returns:
        A bool mask of the scores' shape and strides.

    Raises:
        StateError: If a score at one of the places is NaN.

    Example:
        >>> candidates = torch.tensor([True, False, True, True])
        >>> topk_mask(torch.tensor([3.0, 9.0, 1.0, 3.0]), 1, candidates)
        tensor([False, False, False,  True])
    """
    if shard is not None:  # bounds from a sample would have to be agreed on
        without = math.prod(shard.shape) - count
        ranked, alive, shards = [scores], [candidates], [shard]
        [mask] = global_topk_masks(
            ranked, without, alive, magnitude=magnitude, min_keep=0, names=[name], shards=shards
        )
        return mask
    if isinstance(scores, LazyScores):
        scores = scores.new_pass()(*scores.inputs)
    # in the order of memory, where a pass is fast: only ties care for the flat index
    steps: tuple[int, ...] = scores.stride()
    order = sorted(range(scores.dim()), key=lambda place: -steps[place])
    shape = [scores.shape[place] for place in order]
    values, allowed = (t.detach().permute(order).reshape(-1) for t in (scores, candidates))
    total = count_true(as_numpy(allowed))
    keys = SortKeys(values.dtype, magnitude)
    low, high = _bounds(keys, values, allowed, count / max(1, total))
    mask = torch.empty(len(values), dtype=torch.bool, device=values.device)
    between, above = _split(mask, keys, values, allowed, low, high)
    if not 0 <= count - above <= len(between):  # the sample was wrong, or there is NaN
        between, above = torch.as_tensor(nonzero(as_numpy(allowed))), 0
        mask.zero_()
    if order != sorted(order):
        places = torch.unravel_index(between, shape)
        strides = [math.prod(scores.shape[place + 1 :]) for place in order]
        index = sum(i * stride for i, stride in zip(places, strides, strict=True))
        between = between[torch.as_tensor(index).argsort()]
    ranked, without = [values[between]], len(between) - (count - above)
    [taken] = global_topk_masks(ranked, without, magnitude=magnitude, min_keep=0, names=[name])
    mask[between[taken]] = True
    return mask.view(shape).permute([order.index(place) for place in range(len(order))])


def _bounds(keys: SortKeys, values: Tensor, allowed: Tensor, share: float) -> tuple[int, int]:
    """Between these the key lies, most probably, that a share of the allowed ones exceeds."""
    step = max(1, len(values) // _SAMPLE) | 1  # odd: widths of layers are even
    sample = sorted_keys(keys(values[::step][allowed[::step]]))
    rank = (1 - share) * len(sample)
    slack = 4 * math.sqrt(rank * share) + 1
    first, last = math.floor(rank - slack), math.ceil(rank + slack)
    low = int(sample[first]) if first >= 0 else -keys.max_key - 1
    return low, int(sample[last]) if last < len(sample) else keys.max_key


def _split(
    mask: Tensor, keys: SortKeys, values: Tensor, allowed: Tensor, low: int, high: int
) -> tuple[Tensor, int]:
    """Marks what exceeds both bounds; returns the places between, and how many it marked."""
    step = CHUNK if values.device.type == "cpu" else max(1, len(values))
    marked, found = 0, [torch.zeros(0, dtype=torch.int64, device=values.device)]
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        here, ranks = as_numpy(allowed[part]), keys(values[part])
        if keys.any_nan(ranks):
            return found[0], -1
        above = (ranks > high) & here
        between = (ranks >= low) & here
        between ^= above
        as_numpy(mask)[part] = above
        marked += count_true(above)
        found.append(torch.as_tensor(nonzero(between)).add_(start))
    return torch.cat(found), marked
