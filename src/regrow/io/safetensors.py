# SPDX-License-Identifier: MIT
"""Safetensors files with metadata.

Shared weights are stored once; the metadata maps their other names to the stored one, as the
safetensors library does.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrow.io.sparse_tensors import decode_tensors, encode_tensors
from regrow.utils.errors import ConfigError, StateError, write_error
from regrow.utils.imports import import_optional

SUFFIX = ".safetensors"
_FORMAT = "format"  # a metadata key of the library
_SPARSE = "regrow_sparse"  # metadata key of the forms of encoded tensors


def write_tensors(
    path: Path,
    state: Mapping[str, Any],
    more: Mapping[str, Any],
    *,
    sparse: bool = False,
    values: str | None = None,
    rounds: Collection[str] = (),
) -> None:
    """Write a state dict.

    `more` is further metadata: builtin containers, numbers and bool vectors; `sparse` and `values`
    are those of `regrow.export`, and `rounds` names the tensors that `values` rounds.
    """
    library = import_optional(SUFFIX, "export", "safetensors", "safetensors.torch")
    other = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise ConfigError(
            f"{other[0]} is no tensor ({type(state[other[0]]).__name__}): a {SUFFIX} file stores "
            "nothing else, write .pt2 or .onnx"
        )
    names: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        first = names.setdefault(_memory_key(name, tensor), name)
        if first != name:
            aliases[name] = first
    # copies, because the library rejects tensors that share memory
    stored = {n: state[n].detach().cpu().clone().contiguous() for n in names.values()}
    metadata = {_FORMAT: "pt"} | aliases
    metadata |= {key: json.dumps(_encode(value)) for key, value in more.items()}
    if sparse:
        stored, forms = encode_tensors(stored, values, rounds)
        metadata[_SPARSE] = json.dumps(forms)
    path.touch()
    mode = path.stat().st_mode  # the library makes files private
    try:
        library.save_file(stored, str(path), metadata)
    except Exception as error:  # SafetensorError, with the OSError as text
        raise write_error(path, error) from error
    path.chmod(mode)


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Read `state_dict` and the further metadata, as of a checkpoint."""
    library = import_optional(SUFFIX, "export", "safetensors")
    more: dict[str, Any] = {}
    try:
        with library.safe_open(str(path), framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        state = decode_tensors(state, json.loads(metadata.pop(_SPARSE, "{}")))
        for key, text in metadata.items():
            if text in state and key not in state and key != _FORMAT:
                state[key] = state[text]
            elif key.startswith("regrow_"):
                more[key] = _decode(json.loads(text))
    except (library.SafetensorError, ValueError) as error:
        raise StateError(f"{path} cannot be read as safetensors: {error}") from error
    return {"state_dict": state} | more


def _memory_key(name: str, tensor: Tensor) -> tuple[Any, ...]:
    """Return equal keys for names of one tensor; an empty tensor has no memory."""
    if not tensor.numel():
        return (name,)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _encode(value: Any) -> Any:
    """Encode as JSON, with the types that JSON does not distinguish."""
    if isinstance(value, Tensor):
        return {"bools": "".join("01"[bit] for bit in value.tolist())}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode(inner) for key, inner in value.items()}}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(inner) for inner in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"{SUFFIX} cannot store {value!r} beside the weights: write .pt2 or .onnx")


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, inner)] = value.items()
    if kind == "bools":
        return torch.tensor([bit == "1" for bit in inner], dtype=torch.bool)
    if kind == "dict":
        return {key: _decode(item) for key, item in inner.items()}
    items = [_decode(item) for item in inner]
    return tuple(items) if kind == "tuple" else items
