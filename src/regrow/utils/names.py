# SPDX-License-Identifier: MIT
"""Functions, parameters and modules by name, without the prefix of torch.compile."""

from __future__ import annotations

from collections.abc import MutableMapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from regrow.utils.errors import StateError

PARAMETRIZED = "parametrizations."  # in names that `torch.nn.utils.parametrize` gives


def strip_compile_prefix(name: str) -> str:
    """Remove the parts that `torch.compile` adds to a name."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def callable_name(given: object) -> str:
    """Return a name that stands for a function or an object, or the name of such a one."""
    return given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return {**parameters(model), **buffers(model)}


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name, each once."""
    return {strip_compile_prefix(name): parameter for name, parameter in model.named_parameters()}


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name, shared ones under each of their names."""
    return {strip_compile_prefix(n): p for n, p in model.named_parameters(remove_duplicate=False)}


def raw_weights(module: nn.Module) -> list[nn.Parameter]:
    """A layer's weight, or what weight norm or another parametrization computes it from."""
    start = ("weight", f"{PARAMETRIZED}weight.")
    return [p for name, p in module.named_parameters() if name.startswith(start)]


def buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers by name, each once."""
    return {strip_compile_prefix(name): buffer for name, buffer in model.named_buffers()}


def modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by path; of a compiled module the wrapped one."""
    # the wrapper comes first and has the same path
    return {strip_compile_prefix(f"{path}.")[:-1]: module for path, module in model.named_modules()}


def name_parts(name: str) -> set[str]:
    """Every run of consecutive parts of a dotted name: of "a.b" these are "a", "b" and "a.b"."""
    parts = name.split(".")
    return {".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)}


def matches_pattern(name: str, pattern: str) -> bool:
    """Check whether a glob pattern matches a dotted name or a run of its parts."""
    pattern = strip_compile_prefix(pattern)
    return any(fnmatchcase(part, pattern) for part in name_parts(name))


def accept_compile_prefix(module: nn.Module) -> RemovableHandle:
    """Let a module load weights whose names differ only by `torch.compile`'s prefix.

    Lightning loads a module's weights before it calls any callback, hence a hook of the module.
    """
    handle: RemovableHandle
    handle = module.register_load_state_dict_pre_hook(_rename)  # type: ignore[no-untyped-call]
    return handle


def _rename(
    module: nn.Module, state_dict: MutableMapping[str, Any], prefix: str, *_: object
) -> None:
    expected = {f"{prefix}{name}" for name in module.state_dict()}
    by_stripped_name = {strip_compile_prefix(name): name for name in expected}
    for name in [*state_dict]:
        renamed = by_stripped_name.get(strip_compile_prefix(name), name)
        if name not in expected and renamed not in state_dict:
            state_dict[renamed] = state_dict.pop(name)


def check_has_values(name: str, tensor: Tensor) -> None:
    """Raise `StateError` for a tensor of a lazy layer, or on the meta device."""
    if is_lazy(tensor):
        raise StateError(f"{name} is not built yet (a lazy layer): run one forward pass first")
    if tensor.is_meta:
        raise StateError(
            f"{name} is on the meta device, where it has no values: call "
            "model.to_empty(device=...) and load its weights first"
        )
