# SPDX-License-Identifier: MIT
"""Lazy scores, computed chunk by chunk on every pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow.distributed.shard import Shard
from regrow.distributed.sharded_random import RandomStream

Compute = Callable[..., Tensor]
"""Chunks of the input tensors -> the scores of that chunk."""


@dataclass(frozen=True)
class LazyScores:
    """Scores of one tensor, computed chunk by chunk on every pass.

    Attributes:
        inputs: Tensors of one shape that scores are computed from, the first with the scores'
            strides and device.
        dtype: The scores' dtype.
        new_pass: Starts a pass: returns a function that is called with the same chunk of each
            input, in logical order, and must return the same scores in every pass.
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
    """Wrap a tensor of scores as lazy scores; lazy scores are returned unchanged.

    Example:
        >>> scores = as_lazy(torch.ones(2))
        >>> scores.new_pass()(*scores.inputs)
        tensor([1., 1.])
    """
    return scores if isinstance(scores, LazyScores) else elementwise_scores(_identity, scores)


def whole_scores(scores: ScoresLike) -> Tensor:
    """Compute all scores at once.

    Example:
        >>> whole_scores(elementwise_scores(torch.abs, torch.tensor([-1.0])))
        tensor([1.])
    """
    return scores.new_pass()(*scores.inputs) if isinstance(scores, LazyScores) else scores


def elementwise_scores(function: Compute, *inputs: Tensor) -> LazyScores:
    """Lazy scores of an elementwise function.

    Example:
        >>> scores = elementwise_scores(torch.mul, torch.ones(2), torch.tensor([2.0, 3.0]))
        >>> scores.new_pass()(*scores.inputs)
        tensor([2., 3.])
    """
    dtype = function(*(tensor.new_empty(0) for tensor in inputs)).dtype
    return LazyScores(inputs, dtype, lambda: function)


def random_scores(
    like: Tensor, shard: Shard | None, generator: Callable[[], torch.Generator]
) -> LazyScores:
    """Lazy uniform numbers in [0, 1), equal to those of `sharded_random`.

    Args:
        like: A tensor of the shape of this rank's rows.
        shard: The rows of this rank; None: all.
        generator: Makes the same new CPU generator on each call.

    Example:
        >>> scores = random_scores(torch.empty(4), None, lambda: torch.Generator().manual_seed(0))
        >>> expected = torch.rand(4, generator=torch.Generator().manual_seed(0))
        >>> bool((scores.new_pass()(scores.like) == expected).all())
        True
    """

    def new_pass() -> Compute:
        shape = like.shape if shard is None else shard.shape
        numbers = RandomStream(torch.rand, shape, shard, generator())
        return lambda part: numbers.take(part.numel()).view(part.shape).to(part.device)

    return LazyScores((like,), torch.float32, new_pass)


def materialized_scores(like: Tensor, make: Callable[[], Tensor | None]) -> LazyScores:
    """Lazy scores that are computed whole for each pass, and not stored between passes.

    Args:
        like: A tensor of their shape.
        make: Computes them.

    Example:
        >>> lazy = materialized_scores(torch.empty(2), lambda: torch.tensor([1.0, 2.0]))
        >>> compute = lazy.new_pass()
        >>> compute(torch.empty(1)), compute(torch.empty(1))
        (tensor([1.]), tensor([2.]))
    """

    def new_pass() -> Compute:
        scores = make()
        assert scores is not None
        left = scores.reshape(-1)

        def next_part(part: Tensor) -> Tensor:
            nonlocal left
            chunk, left = left[: part.numel()], left[part.numel() :]
            return chunk.view(part.shape)

        return next_part

    return LazyScores((like,), like.dtype, new_pass)


def _identity(scores: Tensor) -> Tensor:
    return scores
