# SPDX-License-Identifier: MIT
"""Export a model to a file: `export(model, path)`.

A temporary file is written, read back and compared to the model; only then does it replace `path`.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from regrow.io.checkpoints import KEY
from regrow.io.files import temporary_beside
from regrow.io.program import ExportMismatch, write_program
from regrow.io.safetensors import read_tensors, write_tensors
from regrow.io.sparse_tensors import VALUES
from regrow.utils.batches import batch_size
from regrow.utils.errors import ConfigError, StateError, check_choice
from regrow.utils.names import check_has_values, strip_compile_prefix

SUFFIXES = {"onnx": ".onnx", "safetensors": ".safetensors", "pt2": ".pt2"}


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: The file.
        to: Its format.
        bytes: Its size.
        error: Largest difference from the model's output, relative to the largest output. For
            safetensors: of a weight, relative to the largest of its tensor; 0 unless rounded.
        batch: The only batch size that it accepts; None: any.
        reason: Why it accepts no other.
    """

    path: Path
    to: str
    bytes: int
    error: float = 0.0
    batch: int | None = None
    reason: str = ""


class ModelCut(Protocol):
    """What `export` uses of a `regrow.channels` cut."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def check_cut_model(self, model: nn.Module) -> None: ...


def export(
    model: nn.Module,
    path: str | Path,
    example_input: Any = None,
    *,
    to: str | None = None,
    plan: ModelCut | None = None,
    sparse: bool = False,
    values: str | None = None,
) -> Exported:
    """Write a model to an ONNX, pt2 or safetensors file, and check the file.

    ONNX and pt2 files accept any batch size where the model can be traced so. Their outputs are
    compared to the model's on the example and on noise at two batch sizes: within 1e-4 of the
    largest output for float32 (1e-9 float64, 1e-2 float16, 5e-2 bfloat16). A safetensors file has
    weights, bit-exact, and plan; `regrow.load(make, path)` restores the model.

    Args:
        model: The model, on any device; exported in eval mode and not changed.
        path: The file; an existing one is replaced once the new file is checked.
        example_input: A batch, a tuple or a dict of arguments; None: `model.example_input_array`.
        to: "onnx", "safetensors" or "pt2"; None: by the path's suffix.
        plan: What was cut from the model, for safetensors.
        sparse: Leave zeros out of a safetensors file; `regrow.load` restores every bit.
        values: Round weights of a sparse file to "fp16" or "int8"; biases and norms stay exact.

    Raises:
        ConfigError: For invalid options, a missing package, or a model that cannot be exported.
        StateError: If file and model compute different things, the plan is of another model, or
            tensors have no values or a sparse layout; nothing is written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export(nn.Linear(4, 2), f"{folder}/small.pt2", torch.zeros(2, 4))
        >>> done.to, done.batch
        ('pt2', None)
    """
    path, to = Path(path), chosen_format(Path(path), to, sparse, values)
    model = getattr(model, "_orig_mod", model)
    example = getattr(model, "example_input_array", None)
    example = example if example_input is None else example_input
    _check_tensors(model)
    if to != "safetensors" and example is None:
        raise ConfigError(f"{to} needs an example: write export(model, {path.name!r}, example)")
    if plan is not None:
        plan.check_cut_model(model)
    with temporary_beside(path, SUFFIXES[to]) as file:
        if to == "safetensors":
            error = _write_weights(model, file, plan, sparse, values)
            return Exported(path, to, file.stat().st_size, error)
        batch_size(example)
        try:
            error, batch, reason = write_program(model, file, to, example)
        except ExportMismatch as mismatch:
            raise StateError(
                f"the exported file is not the model: {mismatch}; {path} was not written"
            ) from mismatch
        if batch is not None:
            warnings.warn(f"{path.name} takes batches of {batch} only: {reason}", stacklevel=2)
        return Exported(path, to, file.stat().st_size, error, batch, reason)


def _check_tensors(model: nn.Module) -> None:
    """Check that parameters and buffers have values, in a layout that files can hold."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        check_has_values(name, tensor)
        if tensor.layout is not torch.strided:
            raise StateError(
                f"{name} is a sparse tensor ({tensor.layout}), which a file cannot hold: call "
                "undo() of an accelerated model, or to_dense()"
            )


def chosen_format(
    path: Path, to: str | None = None, sparse: bool = False, values: str | None = None
) -> str:
    """Return the format that a path's suffix or `to` names, for which the options are valid."""
    by_suffix = next((name for name, suffix in SUFFIXES.items() if suffix == path.suffix), None)
    if to is None and by_suffix is None:
        raise ConfigError(
            f"the suffix of {path.name!r} names no format: write one of "
            f"{', '.join(SUFFIXES.values())}, or to= one of {', '.join(SUFFIXES)}"
        )
    to = str(by_suffix) if to is None else check_choice("to", to, SUFFIXES)
    if by_suffix not in (None, to):
        raise ConfigError(
            f"{path.name!r} is {by_suffix} by its suffix, to={to!r}: change one of them"
        )
    if sparse and to != "safetensors":
        raise ConfigError(
            f"sparse files are safetensors, got {to}: write to='safetensors' (--to safetensors)"
        )
    if values is not None and check_choice("values", values, VALUES) and not sparse:
        raise ConfigError(
            f"values={values!r} rounds the weights of a sparse file: write sparse=True (--sparse)"
        )
    return to


def written_size(model: nn.Module, to: str, example_input: Any) -> int:
    """Return the size in bytes of a model in a format; nothing is kept or checked."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model{SUFFIXES[to]}"
        if to == "safetensors":
            write_tensors(file, model.state_dict(), {})
        else:
            write_program(model, file, to, example_input, checked=False)
        return file.stat().st_size


def _write_weights(
    model: nn.Module, file: Path, plan: ModelCut | None, sparse: bool, values: str | None
) -> float:
    """Write the weights, read them back, and compare all bits; return the error of rounded ones."""
    state = {strip_compile_prefix(name): value for name, value in model.state_dict().items()}
    more = {} if plan is None else {KEY: plan.state_dict()}
    rounds = _rounded_weights(model)
    write_tensors(file, state, more, sparse=sparse, values=values, rounds=rounds)
    read, error = read_tensors(file)["state_dict"], 0.0
    for name, tensor in state.items():
        weight = tensor.detach().cpu()
        if name in read and _bits_equal(weight, read[name]):
            continue
        if values is None or name not in read or bool(read[name][weight == 0].any()):
            raise StateError(f"{name} was read back with other values; nothing was written")
        error = max(error, float((read[name] - weight).abs().max() / weight.abs().max()))
    return error


def _rounded_weights(model: nn.Module) -> set[str]:
    """Return the names of matrices and kernels; biases, norms, scales and buffers stay exact."""
    return {
        strip_compile_prefix(f"{path}.{name}".lstrip("."))
        for path, module in model.named_modules(remove_duplicate=False)
        if "norm" not in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False)
        if sum(size > 1 for size in parameter.shape) > 1 and "bias" not in name
    }


def _bits_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Check bit-exact equality, NaNs included."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    flat = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*flat)
