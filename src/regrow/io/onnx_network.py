# SPDX-License-Identifier: MIT
"""An ONNX file as a network, and its conversion to int8."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
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
from regrow.utils.batches import resize_batch
from regrow.utils.errors import ConfigError, StateError, check_count
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
            ConfigError: If there are other tensors than inputs, or a tensor has another dtype.
        """
        inputs = {given.name: given.type for given in self.session.get_inputs()}
        named = example if isinstance(example, Mapping) and inputs.keys() <= example.keys() else {}
        given = [named[name] for name in inputs] if named else tree_leaves(example)
        tensors = [leaf for leaf in given if isinstance(leaf, Tensor)]
        if len(tensors) != len(inputs):
            found = (
                ", ".join(example) if isinstance(example, Mapping) else f"{len(tensors)} tensors"
            )
            raise ConfigError(
                f"{self.file.name} takes {', '.join(inputs)}, a batch has {found}: give a dict of "
                "these names, or a tuple in this order"
            )
        arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in tensors]
        for (name, kind), array in zip(inputs.items(), arrays, strict=True):
            dtype = _DTYPES.get(kind, array.dtype)
            if array.dtype != dtype:
                raise ConfigError(
                    f"{self.file.name} takes {np.dtype(dtype)} for {name}, a batch has "
                    f"{array.dtype}: convert it"
                )
        return dict(zip(inputs, arrays, strict=True))

    @property
    def batch(self) -> int | None:
        """The only batch size that the file accepts; None: any."""
        first = self.session.get_inputs()[0].shape[0]
        return first if isinstance(first, int) else None


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
    path: str | Path, out: str | Path, data: Iterable[Any], *, samples: int = 512
) -> QuantizedFile:
    """Convert an ONNX file of float32 to int8, with ranges of activations measured on data.

    Weights are rounded to `round(w / s)` with `s = max |w| / 127` for each output channel, so that
    zero stays zero; activations to `round(x / t) + z` in [0, 255], with a scale and an offset for
    each tensor from its smallest and largest value (static quantization of ONNX Runtime).

    Args:
        path: The file, as `regrow.export` writes it. Export in eval mode folds batch norm into
            convolutions, and quantization has to come after that.
        out: The file to write.
        data: Batches, such as a DataLoader: tensors, tuples or lists whose first element is the
            input, or dicts of arguments.
        samples: Whole batches are used until there are so many examples.

    Raises:
        ConfigError: If there is no file, no data, or no layer that can be quantized, or batches do
            not have its inputs.
        StateError: If a zero weight would not be zero, or outputs are not finite. Nothing is
            written.

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
    quantization = import_optional("int8", "export", "onnx", "onnxruntime.quantization")
    if not path.is_file():
        raise ConfigError(f"no file {path}: write it with regrow.export")
    network = OnnxNetwork(path)
    batches = [*_calibration_batches(data, samples, network.batch)]
    if not batches:
        raise ConfigError("int8 needs data to measure activations: give at least one batch")
    feeds = [network.feed(batch) for batch in batches]
    # a class, since ONNX Runtime checks for its own base class
    reader = type("Reader", (quantization.CalibrationDataReader,), {"get_next": _next_of(feeds)})
    with temporary_beside(out, ".onnx") as file:
        with _quiet_root_logger():
            quantization.quantize_static(
                str(path),
                str(file),
                reader(),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,  # signed ones are slow on x86
                weight_type=quantization.QuantType.QInt8,
            )
        weights, zeros = _check_zeros(path, file)
        error = _difference(network, OnnxNetwork(file), batches[0])
        return QuantizedFile(out, file.stat().st_size, weights, zeros, error)


def _calibration_batches(data: Iterable[Any], samples: int, size: int | None) -> Iterator[Any]:
    """Yield the inputs of whole batches, until there are enough examples."""
    check_count("samples", samples)
    seen = 0
    for batch in data:
        inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
        yield inputs if size is None else resize_batch(inputs, size)
        seen += len(next(x for x in tree_leaves(inputs) if isinstance(x, Tensor)))
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
        gap = np.abs(found.astype(float) - expected).max(initial=0)
        worst = max(worst, float(gap / (np.abs(expected).max(initial=0) or 1)))
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
