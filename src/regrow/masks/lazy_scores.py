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

    `new_pass` starts a pass: it returns a function that is called with the same chunk of each input
    (the first has the scores' strides and device), in logical order, and must return the same
    scores in every pass.
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
    """Wrap a tensor of scores as lazy scores; lazy scores are returned unchanged."""
    return scores if isinstance(scores, LazyScores) else elementwise_scores(lambda s: s, scores)


def whole_scores(scores: ScoresLike) -> Tensor:
    """Compute all scores at once."""
    return scores.new_pass()(*scores.inputs) if isinstance(scores, LazyScores) else scores


def elementwise_scores(function: Compute, *inputs: Tensor) -> LazyScores:
    """Lazy scores of an elementwise function."""
    dtype = function(*(tensor.new_empty(0) for tensor in inputs)).dtype
    return LazyScores(inputs, dtype, lambda: function)


def random_scores(
    like: Tensor, shard: Shard | None, generator: Callable[[], torch.Generator]
) -> LazyScores:
    """Lazy uniform numbers in [0, 1), those of `sharded_random`; each `generator()` is equal."""

    def new_pass() -> Compute:
        shape = like.shape if shard is None else shard.shape
        numbers = RandomStream(torch.rand, shape, shard, generator())
        return lambda part: numbers.take(part.numel()).view(part.shape).to(part.device)

    return LazyScores((like,), torch.float32, new_pass)


def materialized_scores(like: Tensor, make: Callable[[], Tensor | None]) -> LazyScores:
    """Lazy scores that are computed whole for each pass, and not stored between passes."""

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
