# SPDX-License-Identifier: MIT
"""Tensors and modules by name, as if nothing were compiled."""

from __future__ import annotations

from torch import Tensor, nn

from regrow.targets import clean


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return {**parameters(model), **buffers(model)}


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name, each once."""
    return {clean(name): parameter for name, parameter in model.named_parameters()}


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers by name, each once."""
    return {clean(name): buffer for name, buffer in model.named_buffers()}


def modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by path; of a compiled one that which it wraps.

    Example:
        >>> [*modules(nn.Sequential(nn.ReLU()))]
        ['', '0']
    """
    # the wrapper comes first and has the same path
    return {clean(f"{path}.")[:-1]: module for path, module in model.named_modules()}
