# SPDX-License-Identifier: MIT
"""ONNX and pt2 programs, compared with the model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ShapesCollection
from torch.utils._pytree import tree_leaves, tree_map

from regrow.utils.batches import batch_size, bound_forward, device_of, resized
from regrow.utils.errors import ConfigError
from regrow.utils.imports import import_optional
from regrow.utils.modes import eval_mode

# How far outputs may differ, relative to the largest one.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


_LARGEST = 2**31 - 2**20  # bytes of weights in one ONNX file, a little left for the graph


_TALKATIVE = ("onnx", "fx.experimental.symbolic_shapes")


Runner = Callable[[Any], list[Tensor]]


class ExportMismatch(Exception):
    """The file computes something else."""


class ExportCheck(NamedTuple):
    """What `write_program` found.

    Attributes:
        error: Largest difference, relative to the largest output.
        batch: The only batch size that the file takes; None: any.
        reason: Why it takes no other.
    """

    error: float
    batch: int | None
    reason: str


def write_program(
    model: nn.Module, file: Path, to: str, example_input: Any, *, checked: bool = True
) -> ExportCheck:
    """Writes a model, for any batch size if that holds, and else for the example's.

    Args:
        model: The model; run in eval mode.
        file: The file.
        to: "onnx" or "pt2".
        example_input: A batch; floats of it are replaced by noise in what the file keeps.
        checked: Whether the file is run beside the model.

    Raises:
        ConfigError: If the model cannot be exported.
        Broken: If the file computes something else.
    """
    if to == "onnx":
        import_optional("ONNX", "export", "onnx", "onnxscript", "onnxruntime")
        if sum(t.nbytes for t in [*model.parameters(), *model.buffers()]) > _LARGEST:
            raise ConfigError(
                "the model has more than 2 GiB, which one ONNX file cannot hold: write .pt2 or "
                ".safetensors, or model.half()"
            )
    device, size = device_of(model), batch_size(example_input)
    example = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, example_input)
    others = [resized(example, size, 1), resized(example, size, max(3, size + 1))]
    with eval_mode(model), _portable():
        _check_example_fits(model, example)
        try:
            _write(model, file, to, resized(example, size, 2), _batched(example, size))
            return ExportCheck(
                _check(model, file, to, [example, *others]) if checked else 0, None, ""
            )
        except Exception as error:  # whatever torch.export, the converter or the runtime raises
            reason = _in_short(error)
        given = resized(example, size, size)
        try:
            _write(model, file, to, given)
        except Exception as error:
            raise ConfigError(
                f"{type(model).__name__} cannot be written as {to}: {_in_short(error)}; make its "
                "forward free of control flow that depends on data, or write .safetensors"
            ) from error
        return ExportCheck(
            _check(model, file, to, [example, given]) if checked else 0, size, reason
        )


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of outputs, relative to the largest of each.

    Raises:
        Broken: If shapes or types differ, or a difference is above `TOLERANCE`.

    Example:
        >>> difference([torch.tensor([1.0, 8.0])], [torch.tensor([1.0, 8.0])])
        0.0
    """
    if len(found) != len(expected):
        raise ExportMismatch(f"it gives {len(found)} tensors, the model {len(expected)}")
    worst = 0.0
    for mine, theirs in zip(found, expected, strict=True):
        if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            raise ExportMismatch(
                f"it gives {mine.dtype} of shape {tuple(mine.shape)}, the model {theirs.dtype} of "
                f"shape {tuple(theirs.shape)}"
            )
        one, other = mine.double(), theirs.double()
        equal = (one == other) | (one.isnan() & other.isnan())
        finite = other[other.isfinite()]
        scale = float(finite.abs().max()) if len(finite) else 0.0
        gap = torch.where(equal, 0.0, (one - other).abs())
        error = float(gap.max()) / (scale or 1.0) if gap.numel() else 0.0
        if not error <= TOLERANCE.get(theirs.dtype, 0.0):
            raise ExportMismatch(
                f"outputs differ by {error:.2g} of the largest one, {theirs.dtype} may by "
                f"{TOLERANCE.get(theirs.dtype, 0.0):.0e}"
            )
        worst = max(worst, error)
    return worst


def _batched(example: Any, size: int) -> Callable[[Any], ShapesCollection]:
    """Marks the first dimension of every tensor that counts examples."""
    counts = [isinstance(x, Tensor) and x.dim() > 0 and len(x) == size for x in _leaves(example)]

    def dims(given: Any) -> ShapesCollection:
        batch, shapes = Dim("batch"), ShapesCollection()  # type: ignore[no-untyped-call]
        for counted, leaf in zip(counts, _leaves(given), strict=True):
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
        torch.export.save(program, file)
        return
    onnx: Any = torch.onnx.export(program, dynamo=True, verbose=False, dynamic_shapes=shapes)
    onnx.save(str(file), external_data=False)


def _check_example_fits(model: nn.Module, example: Any) -> None:
    try:
        bound_forward(model, _copied(example))()
    except Exception as error:
        raise ConfigError(
            f"{type(model).__name__} does not run on the example input: {_in_short(error)}"
        ) from error


def _check(model: nn.Module, file: Path, to: str, inputs: list[Any]) -> float:
    try:
        run = _onnx_runner(file) if to == "onnx" else _program_runner(file)
        found = [run(_copied(given)) for given in inputs]
    except Exception as error:
        raise ExportMismatch(f"it does not run: {_in_short(error)}") from error
    expected = [_tensors(bound_forward(model, _copied(given))()) for given in inputs]
    return max(map(difference, found, expected))


def _onnx_runner(file: Path) -> Runner:
    runtime = import_optional("ONNX", "export", "onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(example: Any) -> list[Tensor]:
        given = [leaf.cpu().contiguous().numpy() for leaf in _tensors(example)]
        return [
            torch.from_numpy(array)
            for array in session.run(None, dict(zip(names, given, strict=True)))
        ]

    return run


def _program_runner(file: Path) -> Runner:
    module = torch.export.load(file).module()

    def run(example: Any) -> list[Tensor]:
        args, kwargs = _arguments(example)
        return _tensors(module(*args, **kwargs))

    return run


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def _copied(example: Any) -> Any:
    """For one run: a layer may work in place, on its input too."""
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, example)


def _leaves(example: Any) -> list[Any]:
    return tree_leaves(_arguments(example))


def _tensors(values: Any) -> list[Tensor]:
    return [leaf.detach().cpu() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _in_short(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}"


@contextmanager
def _portable() -> Iterator[None]:
    """Attention as plain products, without gradients, and without words that help nobody."""
    logs = [logging.getLogger(f"torch.{name}") for name in _TALKATIVE]
    fast, levels = torch.backends.mha.get_fastpath_enabled(), [log.level for log in logs]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for log in logs:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", module=r"torch\.onnx")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fast)
