# SPDX-License-Identifier: MIT
"""Scores computed chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow.distributed.shard import Shard
from regrow.distributed.sharded_random import RandomStream

Compute = Callable[..., Tensor]
"""Parts of tensors -> the scores of that part."""


@dataclass(frozen=True)
class LazyScores:
    """Scores of one tensor, for `regrow.masks.topk.global_topk_masks`.

    Attributes:
        reads: From what they are computed: tensors of one shape, the first with the scores'
            strides and device.
        dtype: The scores' type.
        begin: Starts a pass. What it gives is called with the same part of each of `reads`, one
            part after the other in logical order, and must give the same scores in every pass.
    """

    inputs: tuple[Tensor, ...]
    dtype: torch.dtype
    new_pass: Callable[[], Compute]

    @property
    def like(self) -> Tensor:
        """A tensor of the scores' shape, strides and device."""
        return self.inputs[0]


ScoresLike = Tensor | LazyScores


def as_lazy(scores: ScoresLike) -> LazyScores:
    """Scores that stand are computed too: they are what is read.

    Example:
        >>> scores = as_lazy(torch.ones(2))
        >>> scores.new_pass()(*scores.inputs)
        tensor([1., 1.])
    """
    return scores if isinstance(scores, LazyScores) else elementwise_scores(_itself, scores)


def elementwise_scores(function: Compute, *reads: Tensor) -> LazyScores:
    """Scores that each depend on the values at their own place alone.

    Example:
        >>> scores = elementwise_scores(torch.mul, torch.ones(2), torch.tensor([2.0, 3.0]))
        >>> scores.new_pass()(*scores.inputs)
        tensor([2., 3.])
    """
    dtype = function(*(tensor.new_empty(0) for tensor in reads)).dtype
    return LazyScores(reads, dtype, lambda: function)


def random_scores(
    like: Tensor, shard: Shard | None, generator: Callable[[], torch.Generator]
) -> LazyScores:
    """Uniform numbers in [0, 1), those that `regrow.distributed.sharded_random.drawn` gives.

    Args:
        like: This rank's rows.
        shard: Which these are; None: all.
        generator: Makes a fresh one on the CPU, the same each time.

    Example:
        >>> lot = random_scores(torch.empty(4), None, lambda: torch.Generator().manual_seed(0))
        >>> wanted = torch.rand(4, generator=torch.Generator().manual_seed(0))
        >>> bool((lot.new_pass()(lot.like) == wanted).all())
        True
    """

    def begin() -> Compute:
        shape = like.shape if shard is None else shard.shape
        numbers = RandomStream(torch.rand, shape, shard, generator())
        return lambda part: numbers.take(part.numel()).view(part.shape).to(part.device)

    return LazyScores((like,), torch.float32, begin)


def materialized_scores(like: Tensor, make: Callable[[], Tensor | None]) -> LazyScores:
    """Scores that are made whole for each pass, and not held between two.

    Args:
        like: A tensor of their shape.
        make: Makes them.

    Example:
        >>> lazy = materialized_scores(torch.empty(2), lambda: torch.tensor([1.0, 2.0]))
        >>> scores = lazy.new_pass()
        >>> scores(torch.empty(1)), scores(torch.empty(1))
        (tensor([1.]), tensor([2.]))
    """

    def begin() -> Compute:
        made = make()
        assert made is not None
        left = made.reshape(-1)

        def next_part(part: Tensor) -> Tensor:
            nonlocal left
            found, left = left[: part.numel()], left[part.numel() :]
            return found.view(part.shape)

        return next_part

    return LazyScores((like,), like.dtype, begin)


def _itself(scores: Tensor) -> Tensor:
    return scores
