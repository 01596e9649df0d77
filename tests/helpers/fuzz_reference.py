# SPDX-License-Identifier: MIT
"""A NumPy reference for masks: a stable sort of the scores before the event."""

import re

import numpy as np
import torch


def numbers(tensor):
    """A tensor as NumPy has it; bfloat16, which NumPy lacks, loses nothing in float32."""
    wide = torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype
    return tensor.detach().to(wide).contiguous().numpy().copy()


def scores_of(criterion, weight, grad):
    """Scores by the criterion's formula; None where it is no formula of the moment."""
    w = numbers(weight)
    if criterion == "magnitude":
        return np.abs(w)
    if grad is None or criterion not in ("gradient", "taylor"):
        return None
    g = numbers(grad)
    return np.abs(g) if criterion == "gradient" else np.abs(g * w)


def lowest(parts, kept, count):
    """Kept places after pruning the `count` lowest scores, earlier pruned ones included.

    The highest of each part stays, the last one of equal ones.
    """
    flat = np.concatenate([part.ravel() for part in parts])
    live = np.concatenate([mask.ravel() for mask in kept])
    bounds = np.cumsum([0, *(part.size for part in parts)])
    order = np.argsort(np.where(live, flat, -np.inf), kind="stable")
    last = np.full(len(parts), -1)
    owner = np.searchsorted(bounds, order, side="right") - 1
    for place, part in zip(order, owner, strict=True):
        if live[place]:
            last[part] = place
    going = [place for place in order if live[place] and place not in last]
    left = live.copy()
    left[going[: max(0, count - int((~live).sum()))]] = False
    return [left[a:b].reshape(p.shape) for a, b, p in zip(bounds, bounds[1:], parts, strict=False)]


def unit(granularity):
    """(weights that go with a pruned unit, most that can go) of a granularity's name."""
    if granularity == "weight":
        return 1, 1.0
    a, b = map(int, re.findall(r"\d+", granularity))
    return (a * b, 1.0) if "block" in granularity else (b - a, (b - a) / b)


def grouped(granularity, mask, input_dim):
    """The matrix (out, in * kh * kw) of a mask as its groups or blocks, one a row."""
    a, b = map(int, re.findall(r"\d+", granularity))
    if input_dim == 0:
        mask = mask.swapaxes(0, 1)
    if "block" in granularity:
        matrix = mask.reshape(mask.shape[0], -1)
        rows, columns = matrix.shape
        blocks = matrix.reshape(rows // a, a, columns // b, b)
        return blocks.swapaxes(1, 2).reshape(-1, a * b)
    return np.moveaxis(mask, 1, -1).reshape(-1, b)
