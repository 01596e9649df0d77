# SPDX-License-Identifier: MIT
"""An ONNX file as a network, and its conversion to int8."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regrow.io.files import temporary_beside
from regrow.utils.batches import Batches, batch_size, batches_of, relative_difference, resize_batch
from regrow.utils.errors import ConfigError, StateError, check_count, one_line
from regrow.utils.imports import import_optional

# NumPy's dtypes by the names that ONNX Runtime gives to types of inputs.
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class OnnxNetwork(nn.Module):
    """An ONNX file, run by ONNX Runtime on the CPU with `torch.get_num_threads()` threads.

    It has no parameters. Inputs and outputs are those of the exported model; several outputs are a
    tuple.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        runtime = import_optional("ONNX", "export", "onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.file = file
        self.session = runtime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxNetwork:
        return OnnxNetwork(self.file)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of the file."""
        outputs = self.session.run(
            None, self.feed(kwargs if kwargs and not args else (args, kwargs))
        )
        tensors = tuple(torch.from_numpy(array) for array in outputs)
        return tensors[0] if len(tensors) == 1 else tensors

    def feed(self, example: Any) -> dict[str, NDArray[Any]]:
        """Return the tensors of an example as arrays, by the names of the inputs.

        Of a dict those with these names are taken, without others such as labels; else the tensors
        in their order.

        Raises:
            ConfigError: If there are other tensors than inputs, or of another dtype or shape.
        """
        inputs = [given.name for given in self.session.get_inputs()]
        named = example if isinstance(example, Mapping) and {*inputs} <= example.keys() else {}
        given = [named[name] for name in inputs] if named else tree_leaves(example)
        tensors = [leaf for leaf in given if isinstance(leaf, Tensor)]
        if len(tensors) != len(inputs):
            found = (
                ", ".join(example) if isinstance(example, Mapping) else f"{len(tensors)} tensors"
            )
            raise ConfigError(
                f"{self.file.name} takes {', '.join(inputs)}, a batch has {found}: give a dict of "
                "these names, or a tuple of them in this order (with labels, ((x, y), labels))"
            )
        arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in tensors]
        for given, array in zip(self.session.get_inputs(), arrays, strict=True):
            dtype = np.dtype(_DTYPES.get(given.type, array.dtype))
            if array.dtype != dtype or not _fits(array.shape, given.shape):
                raise ConfigError(
                    f"{self.file.name} takes {dtype} of shape {_format(given.shape)} for "
                    f"{given.name}, a batch has {array.dtype} of shape {_format(array.shape)}"
                )
        return dict(zip(inputs, arrays, strict=True))

    @property
    def batch(self) -> int | None:
        """The only batch size that the file accepts; None: any."""
        first = self.session.get_inputs()[0].shape[0]
        return first if isinstance(first, int) else None


def _format(shape: Sequence[int | str | None]) -> str:
    return f"({', '.join(map(str, shape))})"


def _fits(shape: Sequence[int], wanted: Sequence[int | str | None]) -> bool:
    """Return whether a shape has the wanted sizes; names stand for any size."""
    sizes = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(
        found == size or not isinstance(size, int) for found, size in sizes
    )


@dataclass(frozen=True)
class QuantizedFile:
    """An int8 file that was written and checked.

    Attributes:
        path: The file.
        bytes: Its size.
        weights: Number of weights in int8.
        zeros: Number of them that are zero in the file of floats, and here.
        error: Largest difference of outputs on the first batch, relative to the largest output.
    """

    path: Path
    bytes: int
    weights: int
    zeros: int
    error: float


def quantize_onnx(
    path: str | Path, out: str | Path, data: Batches, *, samples: int = 512
) -> QuantizedFile:
    """Convert an ONNX file of float32 to int8, with ranges of activations measured on data.

    Weights are rounded to `round(w / s)` with `s = max |w| / 127` for each output channel, so that
    zero stays zero; activations to `round(x / t) + z` in [0, 255], with a scale and an offset for
    each tensor from its smallest and largest value (static quantization of ONNX Runtime).

    Args:
        path: The file, as `regrow.export` writes it. Export in eval mode folds batch norm into
            convolutions, and quantization has to come after that.
        out: The file to write.
        data: A loader, a LightningDataModule or a tensor. A batch is a tensor, a tuple or list
            whose first element is the input, or a dict of arguments.
        samples: Whole batches are used until there are so many examples.

    Raises:
        ConfigError: If there is no ONNX file, no data, or no layer that can be quantized, if
            batches do not have its inputs, or ONNX Runtime fails.
        StateError: If a zero weight would not be zero, or inputs or outputs are not finite.
            Nothing is written.

    Example:
        >>> import tempfile
        >>> from regrow import export
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = export(nn.Linear(64, 64), f"{folder}/a.onnx", torch.randn(8, 64))
        ...     result = quantize_onnx(done.path, f"{folder}/int8.onnx", [torch.randn(8, 64)])
        >>> result.weights
        4096
    """
    path, out = Path(path), Path(out)
    if not path.is_file():
        raise ConfigError(f"no file {path}: write it with regrow.export")
    try:
        network = OnnxNetwork(path)
    except Exception as error:
        raise ConfigError(f"{path} is no ONNX file that runs here: {one_line(error)}") from error
    batches = [*_calibration_batches(data, samples, network.batch)]
    if not batches:
        raise ConfigError("int8 needs data to measure activations: give at least one batch")
    feeds = [network.feed(batch) for batch in batches]
    if not all(np.isfinite(array).all() for feed in feeds for array in feed.values()):
        raise StateError("inputs are not finite: check the calibration data and its normalisation")
    with temporary_beside(out, ".onnx") as file:
        _convert(path, file, feeds)
        weights, zeros = _check_zeros(path, file)
        worst = _difference(network, OnnxNetwork(file), batches[0])
        return QuantizedFile(out, file.stat().st_size, weights, zeros, worst)


def _convert(path: Path, file: Path, feeds: list[dict[str, NDArray[Any]]]) -> None:
    """Write a file in int8, with ranges measured on the feeds."""
    quantization = import_optional("int8", "export", "onnx", "onnxruntime.quantization")
    # a class, since ONNX Runtime checks for its own base class
    reader = type("Reader", (quantization.CalibrationDataReader,), {"get_next": _next_of(feeds)})
    try:
        with _quiet_root_logger():
            quantization.quantize_static(
                str(path),
                str(file),
                reader(),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,  # signed ones are slow on x86
                weight_type=quantization.QuantType.QInt8,
            )
    except OSError:
        raise
    except Exception as error:
        raise ConfigError(
            f"ONNX Runtime cannot convert {path} to int8: {one_line(error)}"
        ) from error


def _calibration_batches(data: Batches, samples: int, size: int | None) -> Iterator[Any]:
    """Yield the inputs of whole batches, until there are enough examples."""
    check_count("samples", samples)
    seen = 0
    for batch in batches_of(data):
        inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
        seen += batch_size(inputs)
        yield inputs if size is None else resize_batch(inputs, size)
        if seen >= samples:
            return


def _next_of(feeds: list[dict[str, NDArray[Any]]]) -> Any:
    remaining = iter(feeds)
    return lambda reader: next(remaining, None)


def _check_zeros(path: Path, file: Path) -> tuple[int, int]:
    """Return the number of int8 weights, and of zeros among them, which have to be zeros before."""
    before, after = _constants(path), _constants(file)
    suffix, weights, zeros = "_quantized", 0, 0
    for name, values in after.items():
        original = before.get(name.removesuffix(suffix))
        if not name.endswith(suffix) or values.dtype != np.int8 or original is None:
            continue
        zero = original == 0
        offset = after[f"{name.removesuffix(suffix)}_zero_point"]
        if offset.any() or values[zero].any():
            raise StateError(f"zeros of {name.removesuffix(suffix)} are not zero in int8")
        weights, zeros = weights + values.size, zeros + int(zero.sum())
    if not weights:
        raise ConfigError(f"{path} has no layer with weights that can be quantized")
    return weights, zeros


def _constants(file: Path) -> dict[str, NDArray[Any]]:
    onnx = import_optional("ONNX", "export", "onnx")
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(str(file)).graph.initializer
    }


def _difference(network: OnnxNetwork, quantized: OnnxNetwork, batch: Any) -> float:
    """Return the largest difference of outputs, relative to the largest of each output."""
    outputs = [model.session.run(None, model.feed(batch)) for model in (network, quantized)]
    worst = 0.0
    for expected, found in zip(*outputs, strict=True):
        if not np.isfinite(found).all():
            raise StateError("outputs in int8 are not finite: check the calibration data")
        worst = max(worst, relative_difference(*map(torch.from_numpy, (found, expected))))
    return worst


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Hide the advice of ONNX Runtime to fold batch norm first, which export has done."""
    logger = logging.getLogger()
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        yield
    finally:
        logger.setLevel(level)
