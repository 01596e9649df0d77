# SPDX-License-Identifier: MIT
"""Example inputs: batch size, resizing, bound forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from regrow.utils.errors import ConfigError


def bound_forward(model: nn.Module, example_input: Any) -> Callable[[], Any]:
    """A function that runs the model on the example, moved to where the model is."""
    device = device_of(model)
    moved = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, example_input)
    if isinstance(moved, Mapping):
        return lambda: model(**moved)
    if isinstance(moved, tuple):
        return lambda: model(*moved)
    return lambda: model(moved)


def batch_size(example_input: Any) -> int:
    """The length of the first tensor: its first dimension counts examples."""
    for leaf in tree_leaves(example_input):
        if isinstance(leaf, Tensor) and leaf.dim() and len(leaf):
            return len(leaf)
    raise ConfigError(
        f"the example input must hold a batch of examples, got {type(example_input).__name__}: "
        "write a tensor whose first dimension counts examples"
    )


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter is."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def two_examples(example_input: Any, model: nn.Module) -> Any:
    """A batch of two, of the model's type and on its device; more are not needed.

    Example:
        >>> two_examples(torch.zeros(1, 4), nn.Linear(4, 2)).shape
        torch.Size([2, 4])
    """
    size, parameter = batch_size(example_input), next(model.parameters())

    def two(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.dim() and len(x) == size:
            x = x[:2] if size > 1 else torch.cat([x, x])
        dtype = parameter.dtype if x.is_floating_point() else x.dtype
        return x.detach().to(parameter.device, dtype)

    return tree_map(two, example_input)


def noise_like(example_input: Any) -> Any:
    """Random numbers of the example's shapes: zeros would hide what a channel does."""
    generator = torch.Generator().manual_seed(0)

    def noise(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_floating_point():
            return torch.randn(x.shape, generator=generator).to(x.dtype)
        return x

    return tree_map(noise, example_input)


def repeated(example_input: Any) -> Any:
    """A batch one example longer."""
    size = batch_size(example_input)

    def longer(x: Any) -> Any:
        if isinstance(x, Tensor) and x.dim() and len(x) == size:
            return torch.cat([x, x[:1]])
        return x

    return tree_map(longer, example_input)


def resized(example: Any, size: int, wanted: int) -> Any:
    """Random numbers like the example, another number of them.

    Whole numbers are the example's own, repeated: what they may be is not known.

    Example:
        >>> resized(torch.tensor([[1, 2]]), 1, 3).tolist()
        [[1, 2], [1, 2], [1, 2]]
    """
    generator = torch.Generator().manual_seed(wanted)

    def made(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.dim() and len(x) == size:
            x = x[torch.arange(wanted, device=x.device) % size]
        if x.is_floating_point():
            return torch.randn(x.shape, generator=generator).to(x)
        return x.clone()

    return tree_map(made, example)
