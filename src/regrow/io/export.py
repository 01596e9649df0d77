# SPDX-License-Identifier: MIT
"""`export(model, path)`.

A file is written aside, read back and compared to the model; only then does it take its place.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from regrow.io.checkpoints import KEY
from regrow.io.files import temporary_beside
from regrow.io.program import ExportMismatch, write_program
from regrow.io.safetensors import read_tensors, write_tensors
from regrow.utils.batches import batch_size
from regrow.utils.errors import ConfigError, StateError, check_choice
from regrow.utils.names import strip_compile_prefix

SUFFIXES = {"onnx": ".onnx", "safetensors": ".safetensors", "pt2": ".pt2"}


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: Where it is.
        to: Its format.
        bytes: Its size.
        error: Largest difference from the model's output, relative to the largest output; 0 for
            safetensors, whose weights are the same bits.
        batch: The only batch size that it takes; None: any.
        reason: Why it takes no other.
    """

    path: Path
    to: str
    bytes: int
    error: float = 0.0
    batch: int | None = None
    reason: str = ""


class ModelCut(Protocol):
    """What `export` needs of a `regrow.channels` cut."""

    def state_dict(self) -> dict[str, Any]: ...

    def check_cut_model(self, model: nn.Module) -> None: ...


def export(
    model: nn.Module,
    path: str | Path,
    example_input: Any = None,
    *,
    to: str | None = None,
    plan: ModelCut | None = None,
) -> Exported:
    """Writes a model to a file that runs, or loads, without this package's training code.

    Pruned weights are the zeros that they are. ONNX and pt2 files take any batch size where the
    model can be traced so, and are compared to it, by onnxruntime and by PyTorch, on the example
    and on random numbers at two batch sizes: within 1e-4 of the largest output for float32 (1e-9
    float64, 1e-2 float16, 5e-2 bfloat16). A safetensors file holds weights and plan, to the bit;
    `regrow.channels.load(make, path)` makes the model of it, cut and tied as it was.

    Args:
        model: The model, on any device; it is exported in eval mode and left as it was.
        path: The file; what stands there is replaced once the new file is checked.
        example_input: A batch; a tuple holds positional arguments, a dict keyword arguments. None:
            the model's `example_input_array`. Safetensors needs none.
        to: "onnx", "safetensors" or "pt2"; None: by the path's suffix.
        plan: What was cut from the model, for safetensors; the others need none.

    Raises:
        ConfigError: For a format that there is not, a missing package, or a model that cannot be
            exported so.
        StateError: If the file does not compute what the model does, or the plan is of another
            model; nothing is written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export(nn.Linear(4, 2), f"{folder}/small.pt2", torch.zeros(2, 4))
        >>> done.to, done.batch
        ('pt2', None)
    """
    path = Path(path)
    to = chosen_format(path, to)
    model = getattr(model, "_orig_mod", model)
    example = getattr(model, "example_input_array", None)
    example = example if example_input is None else example_input
    if to != "safetensors":
        if example is None:
            raise ConfigError(
                f"{to} needs an example: write export(model, {path.name!r}, example_input)"
            )
        batch_size(example)
    if plan is not None:
        plan.check_cut_model(model)
    with temporary_beside(path, SUFFIXES[to]) as file:
        if to == "safetensors":
            _write_weights(model, file, plan)
            return Exported(path, to, file.stat().st_size)
        try:
            written = write_program(model, file, to, example)
        except ExportMismatch as broken:
            raise StateError(
                f"the exported file is not the model: {broken}; {path} was not written"
            ) from broken
        if written.batch is not None:
            warnings.warn(
                f"{path.name} takes batches of {written.batch} only: {written.reason}", stacklevel=2
            )
        return Exported(path, to, file.stat().st_size, *written)


def chosen_format(path: Path, to: str | None = None) -> str:
    """The format that a path and `to` mean.

    Raises:
        ConfigError: If they mean none, or two.

    Example:
        >>> chosen_format(Path("a/model.onnx")), chosen_format(Path("model"), "pt2")
        ('onnx', 'pt2')
    """
    meant = next((name for name, suffix in SUFFIXES.items() if suffix == path.suffix), None)
    if to is None and meant is None:
        raise ConfigError(
            f"{path.name!r} says no format by its suffix: write one of "
            f"{', '.join(SUFFIXES.values())}, or to= one of {', '.join(SUFFIXES)}"
        )
    if to is None:
        return str(meant)
    check_choice("to", to, SUFFIXES)
    if meant not in (None, to):
        raise ConfigError(f"{path.name!r} is {meant} by its suffix, to={to!r}: change one of them")
    return to


def written_size(model: nn.Module, to: str, example_input: Any) -> int:
    """The bytes that a model takes in a format; no file stays and nothing is checked."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model{SUFFIXES[to]}"
        if to == "safetensors":
            write_tensors(file, model.state_dict(), {})
        else:
            write_program(model, file, to, example_input, checked=False)
        return file.stat().st_size


def _write_weights(model: nn.Module, file: Path, plan: ModelCut | None) -> None:
    """Writes and reads back.

    Raises:
        StateError: If another bit comes back.
    """
    state = {strip_compile_prefix(name): value for name, value in model.state_dict().items()}
    write_tensors(file, state, {} if plan is None else {KEY: plan.state_dict()})
    found = read_tensors(file)["state_dict"]
    for name, tensor in state.items():
        if name not in found or not _same(tensor.detach().cpu(), found[name]):
            raise StateError(f"{name} does not come back as it was written; nothing was written")


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal to the bit, NaNs included."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    flat = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*flat)
