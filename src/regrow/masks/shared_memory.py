# SPDX-License-Identifier: MIT
"""Check that no two parameters share memory, as `a.data = b.data.t()` makes them do."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from regrow.distributed.shard import local_tensor
from regrow.utils.errors import StateError


def check_memory_not_shared(parameters: Mapping[str, Tensor], pruned: Collection[str]) -> None:
    """Check that pruned parameters share memory neither with others nor within themselves.

    A zero written into one would be a zero in the other, under a mask of its own.
    """
    spans = []
    for name, parameter in parameters.items():
        tensor = local_tensor(parameter.detach())
        if tensor.layout is not torch.strided or tensor.numel() == 0 or not tensor.data_ptr():
            continue
        pairs = list(zip(tensor.shape, tensor.stride(), strict=True))
        if name in pruned and any(size > 1 and stride == 0 for size, stride in pairs):
            raise StateError(
                f"several elements of {name} are the same memory (an expanded tensor), so they "
                f"cannot have masks of their own: write {name}.data = {name}.data.clone()"
            )
        last = sum((size - 1) * stride for size, stride in pairs)
        start = tensor.data_ptr()
        spans.append((str(tensor.device), start, start + last * tensor.itemsize, name, tensor))
    spans.sort(key=lambda span: span[:2])
    for at, (device, _, end, name, tensor) in enumerate(spans):
        for other_device, start, _, other, others in spans[at + 1 :]:
            if other_device != device or start > end:
                break
            if {name, other} & {*pruned} and np.intersect1d(
                _addresses(tensor), _addresses(others)
            ).size:
                first, second = sorted((name, other), key=list(parameters).index)
                raise StateError(
                    f"{first} and {second} share memory but are two parameters, so that masks of "
                    "one would change the other: tie them as one parameter (b.weight = a.weight), "
                    f"use the first in forward (F.linear(x, a.weight.t())), or copy it: "
                    f"{second}.data = {second}.data.clone()"
                )


def _addresses(tensor: Tensor) -> np.ndarray:
    """Return the address of every element."""
    found = np.array([tensor.data_ptr()], dtype=np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        found = np.add.outer(found, np.arange(size) * stride * tensor.itemsize)
    return found.ravel()
