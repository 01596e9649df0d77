# SPDX-License-Identifier: MIT
"""Safetensors with metadata.

Any program reads the weights. Shared ones are stored once; the metadata names the others, as the
safetensors library itself does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrow.utils.errors import ConfigError, StateError, write_error
from regrow.utils.imports import import_optional

SUFFIX = ".safetensors"


_FORMAT = "format"  # what the library writes beside the names of shared tensors


def write_tensors(path: Path, state: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    """Writes a state dict.

    Args:
        path: The file.
        state: Tensors by name.
        more: What else goes into the metadata: builtin containers, numbers and bool vectors.

    Raises:
        ConfigError: If safetensors is not installed, or the state holds more than tensors.
        StateError: If the file cannot be written.
    """
    library = import_optional(SUFFIX, "export", "safetensors", "safetensors.torch")
    other = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise ConfigError(
            f"{other[0]} is no tensor ({type(state[other[0]]).__name__}): a {SUFFIX} file holds "
            "nothing else, write .pt2 or .onnx"
        )
    names: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        first = names.setdefault(_place(name, tensor), name)
        if first != name:
            aliases[name] = first
    # copies: parts of one memory would be refused
    held = {n: state[n].detach().cpu().clone().contiguous() for n in names.values()}
    metadata = {_FORMAT: "pt"} | aliases
    metadata |= {key: json.dumps(_encoded(value)) for key, value in more.items()}
    path.touch()
    mode = path.stat().st_mode  # the library makes files that nobody else may read
    try:
        library.save_file(held, str(path), metadata)
    except Exception as error:  # of its own kind, with what the disk said in words
        raise write_error(path, error) from error
    path.chmod(mode)


def read_tensors(path: str | Path) -> dict[str, Any]:
    """What a checkpoint would hold: `state_dict`, and what else was written.

    Raises:
        ConfigError: If safetensors is not installed.
        StateError: If the file is damaged.
    """
    library = import_optional(SUFFIX, "export", "safetensors")
    found: dict[str, Any] = {}
    try:
        with library.safe_open(str(path), framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        for key, text in metadata.items():
            if text in state and key not in state and key != _FORMAT:
                state[key] = state[text]
            elif key.startswith("regrow_"):
                found[key] = _decoded(json.loads(text))
    except (library.SafetensorError, ValueError) as error:
        raise StateError(f"{path} cannot be read as safetensors: {error}") from error
    return {"state_dict": state} | found


def _place(name: str, tensor: Tensor) -> tuple[Any, ...]:
    """Equal for names of one tensor; an empty one has no place of its own."""
    if not tensor.numel():
        return (name,)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _encoded(value: Any) -> Any:
    """As JSON, with a name for what JSON does not tell apart."""
    if isinstance(value, Tensor):
        return {"bools": "".join("01"[bit] for bit in value.tolist())}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encoded(inner) for key, inner in value.items()}}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encoded(inner) for inner in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"{SUFFIX} cannot hold {value!r} beside the weights: write .pt2 or .onnx")


def _decoded(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, inner)] = value.items()
    if kind == "bools":
        return torch.tensor([bit == "1" for bit in inner], dtype=torch.bool)
    if kind == "dict":
        return {key: _decoded(item) for key, item in inner.items()}
    items = [_decoded(item) for item in inner]
    return tuple(items) if kind == "tuple" else items
