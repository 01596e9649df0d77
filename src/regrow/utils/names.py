# SPDX-License-Identifier: MIT
"""Names of parameters, buffers and modules, seen through torch.compile."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

COMPILED = "_orig_mod"


def strip_compile_prefix(name: str) -> str:
    """The name without the parts that `torch.compile` adds.

    Example:
        >>> strip_compile_prefix("_orig_mod.fc.weight")
        'fc.weight'
    """
    return ".".join(part for part in name.split(".") if part != COMPILED)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return {**parameters(model), **buffers(model)}


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name, each once."""
    return {strip_compile_prefix(name): parameter for name, parameter in model.named_parameters()}


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers by name, each once."""
    return {strip_compile_prefix(name): buffer for name, buffer in model.named_buffers()}


def modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by path; of a compiled one that which it wraps.

    Example:
        >>> [*modules(nn.Sequential(nn.ReLU()))]
        ['', '0']
    """
    # the wrapper comes first and has the same path
    return {strip_compile_prefix(f"{path}.")[:-1]: module for path, module in model.named_modules()}


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name without `torch.compile`'s prefix, shared ones under all their names."""
    return {strip_compile_prefix(n): p for n, p in model.named_parameters(remove_duplicate=False)}


def accept_compile_prefix(module: nn.Module) -> RemovableHandle:
    """Lets a module load weights whose names differ from its own by `torch.compile`'s prefix alone.

    Lightning loads a module's weights before it asks any callback, so this is a hook of the module.

    Args:
        module: The whole one.

    Returns:
        What removes the hook.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False))
        >>> handle = accept_compile_prefix(net)
        >>> net.load_state_dict({"0._orig_mod.weight": net[0].weight.data})
        <All keys matched successfully>
    """
    handle: RemovableHandle
    handle = module.register_load_state_dict_pre_hook(_rename)  # type: ignore[no-untyped-call]
    return handle


def _rename(
    module: nn.Module, state_dict: MutableMapping[str, Any], prefix: str, *_: object
) -> None:
    names = {f"{prefix}{name}" for name in module.state_dict()}
    known = {strip_compile_prefix(name): name for name in names}
    for name in [*state_dict]:
        own = known.get(strip_compile_prefix(name), name)
        if name not in names and own not in state_dict:
            state_dict[own] = state_dict.pop(name)
