# SPDX-License-Identifier: MIT
"""Magnitude, relative magnitude, gradient, taylor, random."""

from __future__ import annotations

import torch
from torch import Tensor

from regrow.distributed.shard import local_tensor, shard_of
from regrow.distributed.sharded_random import sharded_random


def magnitude(weight: Tensor, grad: Tensor | None = None) -> Tensor:
    """Compute |w|. Source: Han et al. 2015."""
    return weight.abs()


def relative_magnitude(weight: Tensor, grad: Tensor | None = None) -> Tensor:
    """Compute |w| / std(w), with the standard deviation over all weights of the layer.

    With `threshold=q`, weights below q standard deviations are pruned. Pruned weights count as the
    zeros that they are. Where all weights are equal, scores are infinite.

    Source: Han et al. 2015, section 4 (threshold: a quality parameter times the deviation).
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    # sums, because ranks may hold different numbers of rows; of quotients, because torch 2.8 would
    # divide the sum of a sharded tensor by the divisor of an earlier call
    mean = (wide / wide.numel()).sum()
    deviation = ((wide - mean).square() / wide.numel()).sum().sqrt()
    return wide.abs() / deviation if float(deviation) else torch.full_like(wide, torch.inf)


def random(weight: Tensor, grad: Tensor | None = None, *, generator: torch.Generator) -> Tensor:
    """Draw uniform numbers in [0, 1), the baseline that every criterion must beat."""
    # on the CPU: the same on every device
    numbers = sharded_random(torch.rand, weight.shape, shard_of("weight", weight), generator)
    return torch.empty_like(local_tensor(weight), dtype=torch.float32).copy_(numbers)


def gradient(weight: Tensor, grad: Tensor) -> Tensor:
    """Compute |g|, the sensitivity of the loss to the weight."""
    return grad.abs()


def taylor(weight: Tensor, grad: Tensor) -> Tensor:
    """Compute |g w|, the first-order change of the loss without the weight; SNIP at step 0.

    Source: Molchanov et al. 2017; Lee et al. 2019, eq. 3.
    """
    # small products vanish in half precision
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (grad.to(wide) * weight).abs()
