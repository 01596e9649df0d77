# SPDX-License-Identifier: MIT
"""ONNX and pt2 programs, compared with the model."""

from __future__ import annotations

import errno
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ShapesCollection
from torch.utils._pytree import tree_leaves, tree_map

from regrow.io.onnx_network import OnnxNetwork
from regrow.utils.batches import (
    batch_size,
    bound_forward,
    device_of,
    noise_like,
    relative_difference,
    resize_batch,
)
from regrow.utils.errors import ConfigError, disk_error, one_line
from regrow.utils.imports import import_optional
from regrow.utils.modes import eval_mode, in_mode, no_attention_fastpath

# Allowed difference of outputs, relative to the largest output.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_ONNX_LIMIT = 2**31 - 2**20  # bytes of weights in one ONNX file, the rest for the graph
_NOISY_LOGGERS = ("onnx", "fx.experimental.symbolic_shapes")


class ExportMismatch(Exception):
    """An exported file and the model compute different things."""


def write_program(
    model: nn.Module, file: Path, to: str, example_input: Any, *, checked: bool = True
) -> tuple[float, int | None, str]:
    """Write a model for any batch size, or for the example's if it cannot be traced so.

    In the file, noise replaces the example's floating point values. Returns `error`, `batch` and
    `reason` of `regrow.io.export.Exported`.
    """
    if to == "onnx":
        import_optional("ONNX", "export", "onnx", "onnxscript", "onnxruntime")
        if sum(t.nbytes for t in [*model.parameters(), *model.buffers()]) > _ONNX_LIMIT:
            raise ConfigError(
                "the model has more than 2 GiB, which one ONNX file cannot hold: write .pt2 or "
                ".safetensors, or model.half()"
            )
    device, size = device_of(model), batch_size(example_input)
    example = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, example_input)
    others = [_noise(example, 1), _noise(example, max(3, size + 1))]
    with eval_mode(model), _export_mode():
        _check_runs(model, example)
        try:
            _write(model, file, to, _noise(example, 2), _batched(example, size))
            error = _check(model, file, to, [example, *others]) if checked else 0
            return error, None, ""
        except Exception as failure:  # of torch.export, the converter or the runtime
            if _is_full(failure):
                raise
            reason = _shorten(failure)
        given = _noise(example, size)
        try:
            _write(model, file, to, given)
        except Exception as failure:
            if _is_full(failure):
                raise
            raise ConfigError(
                f"{type(model).__name__} cannot be written as {to}: {_shorten(failure)}; make its "
                "forward free of control flow that depends on data, or write .safetensors"
            ) from failure
        error = _check(model, file, to, [example, given]) if checked else 0
        return error, size, reason


def difference(outputs: list[Tensor], expected: list[Tensor]) -> float:
    """Compute the largest `relative_difference` of outputs."""
    if len(outputs) != len(expected):
        raise ExportMismatch(f"it returns {len(outputs)} tensors, the model {len(expected)}")
    worst = 0.0
    for output, reference in zip(outputs, expected, strict=True):
        if (output.shape, output.dtype) != (reference.shape, reference.dtype):
            raise ExportMismatch(
                f"it returns {output.dtype} of shape {tuple(output.shape)}, the model "
                f"{reference.dtype} of shape {tuple(reference.shape)}"
            )
        error = relative_difference(output, reference)
        tolerance = TOLERANCE.get(reference.dtype, 0.0)
        if not error <= tolerance:
            raise ExportMismatch(
                f"outputs differ by {error:.2g} of the largest one; the tolerance of "
                f"{reference.dtype} is {tolerance:.0e}"
            )
        worst = max(worst, error)
    return worst


def _noise(example: Any, count: int) -> Any:
    """Noise of the example's shapes, for a batch of `count`; integers are repeated."""
    return noise_like(resize_batch(example, count), seed=count)


def _batched(example: Any, size: int) -> Callable[[Any], ShapesCollection]:
    """Mark the first dimension of every tensor that counts examples as dynamic."""
    leaves = tree_leaves(_arguments(example))
    counts = [isinstance(x, Tensor) and x.dim() > 0 and len(x) == size for x in leaves]

    def dims(given: Any) -> ShapesCollection:
        batch, shapes = Dim("batch"), ShapesCollection()  # type: ignore[no-untyped-call]
        for counted, leaf in zip(counts, tree_leaves(_arguments(given)), strict=True):
            if counted:
                shapes[leaf] = {0: batch}
        return shapes

    return dims


def _write(
    model: nn.Module,
    file: Path,
    to: str,
    example: Any,
    dims: Callable[[Any], ShapesCollection] | None = None,
) -> None:
    args, kwargs = _arguments(example)
    shapes: Any = None if dims is None else dims(example)
    shapes = shapes and shapes.dynamic_shapes(model, args, kwargs)
    program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    if to == "pt2":
        # not to the file: on a full disk torch's writer ends the process
        torch.export.save(program, content := io.BytesIO())
        file.write_bytes(content.getbuffer())
        return
    onnx: Any = torch.onnx.export(program, dynamo=True, verbose=False, dynamic_shapes=shapes)
    onnx.save(str(file), external_data=False)


def _is_full(error: BaseException) -> bool:
    """Return whether a disk was full."""
    cause = disk_error(error)
    return cause is not None and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _check_runs(model: nn.Module, example: Any) -> None:
    try:
        with in_mode(model, training=False):
            bound_forward(model, _cloned(example))()
    except Exception as error:
        raise ConfigError(
            f"{type(model).__name__} does not run on the example input: {_shorten(error)}"
        ) from error


def _check(model: nn.Module, file: Path, to: str, inputs: list[Any]) -> float:
    try:
        written = OnnxNetwork(file) if to == "onnx" else torch.export.load(file).module()
        outputs = [_tensors(bound_forward(written, _cloned(given))()) for given in inputs]
    except Exception as error:
        raise ExportMismatch(f"it does not run: {_shorten(error)}") from error
    with in_mode(model, training=False):
        expected = [_tensors(bound_forward(model, _cloned(given))()) for given in inputs]
    return max(map(difference, outputs, expected))


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def _cloned(example: Any) -> Any:
    """Clone inputs, which a layer may modify in place."""
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, example)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf.detach().cpu() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _shorten(error: Exception) -> str:
    words = one_line(error)
    return f"{type(error).__name__}: {words[:200]}"


@contextmanager
def _export_mode() -> Iterator[None]:
    """Attention as separate operations, no gradients, no irrelevant log lines and warnings."""
    logs = [logging.getLogger(f"torch.{name}") for name in _NOISY_LOGGERS]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad(), no_attention_fastpath():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", module=r"torch\.onnx")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
