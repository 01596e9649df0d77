# SPDX-License-Identifier: MIT
"""What inference runtimes make of zeros and of shapes: one table of rules, with sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from regrow.runtime.candidates import BLOCKS, LAYERS, is_two_four, zero_blocks
from regrow.runtime.sparse_layers import is_pointwise

CSR_SPARSITY = 0.85  # from here on torch's sparse products were faster, as measured
BSR_SPARSITY = 0.8  # of blocks
XNNPACK_SPARSITY = 2 / 3  # exceeded by the 1x1 convolutions of a network together
SEMI_STRUCTURED = (32, 64)  # outputs, inputs in float16: torch's CUTLASS kernels
CHANNELS = "remove channels (ChannelPruning)"
TWO_FOUR = 'granularity="2:4" at sparsity 0.5'


@dataclass(frozen=True, eq=False)
class Layer:
    """A Linear layer or convolution, as the rules see it.

    Attributes:
        name: Of its weight.
        module: The layer.
        macs: Multiply-accumulates of one example.
    """

    name: str
    module: nn.Linear | _ConvNd
    macs: float

    @cached_property
    def nonzero(self) -> Tensor:
        """Where weights are not zero: `(outputs, inputs / groups, kernel positions)`."""
        weight = self.module.weight.detach()
        if isinstance(self.module, _ConvTransposeNd):
            weight = weight.transpose(0, 1)
        return (weight != 0).reshape(*weight.shape[:2], -1)

    @cached_property
    def sparsity(self) -> float:
        """The fraction of the weights that are zero."""
        return 1 - self.nonzero.count_nonzero().item() / self.nonzero.numel()

    @property
    def is_grouped(self) -> bool:
        """Whether each output of a convolution reads some of the inputs only."""
        return not isinstance(self.module, nn.Linear) and self.module.groups > 1

    @property
    def widths(self) -> tuple[int, int]:
        """The numbers of outputs and inputs."""
        if isinstance(self.module, nn.Linear):
            return self.module.out_features, self.module.in_features
        return self.module.out_channels, self.module.in_channels

    @cached_property
    def is_two_of_four(self) -> bool:
        """Whether at most two of every four consecutive inputs have weights, at each position."""
        return is_two_four(self.nonzero.movedim(1, -1).flatten(0, 1))


class Obstacle(NamedTuple):
    """Why a layer does not fit a rule, and the change that would let it."""

    reason: str
    change: str


@dataclass(frozen=True)
class Rule:
    """What a runtime makes use of.

    Attributes:
        runtime: Its name.
        needs: What else the runtime needs for that.
        check: Returns what hinders a layer; it gets all layers of the network too.
        sources: Where that is written, and what measures it.
    """

    runtime: str
    needs: str
    check: Callable[[Layer, Sequence[Layer]], Obstacle | None]
    sources: tuple[str, ...]


def _torch_cpu(layer: Layer, _: Sequence[Layer]) -> Obstacle | None:
    is_linear = isinstance(layer.module, nn.Linear)
    if type(layer.module) not in LAYERS or not (is_linear or is_pointwise(layer.module)):
        return Obstacle("no sparse kernel", CHANNELS)
    matrix = layer.nonzero.flatten(1)
    blocks = max(zero_blocks(matrix, block) for block in BLOCKS)
    if layer.sparsity >= CSR_SPARSITY or blocks >= BSR_SPARSITY:
        return None
    return Obstacle(
        f"{layer.sparsity:.0%} zeros", 'sparsity 0.9, or 0.8 with granularity="block:16x16"'
    )


def _torch_gpu(layer: Layer, _: Sequence[Layer]) -> Obstacle | None:
    if not isinstance(layer.module, nn.Linear):
        return Obstacle("torch has no 2:4 kernel", CHANNELS)
    if any(width % multiple for width, multiple in zip(layer.widths, SEMI_STRUCTURED, strict=True)):
        return Obstacle("{} x {} weights".format(*layer.widths), "round_to=64 in ChannelPruning")
    return None if layer.is_two_of_four else Obstacle("not 2:4", TWO_FOUR)


def _tensorrt(layer: Layer, _: Sequence[Layer]) -> Obstacle | None:
    inputs = layer.widths[1]
    if isinstance(layer.module, _ConvTransposeNd) or layer.is_grouped or inputs % 4:
        return Obstacle("transposed, grouped, or inputs no multiple of 4", CHANNELS)
    if isinstance(layer.module, _ConvNd) and min(layer.widths) < 256:
        return Obstacle("less than 256 channels", CHANNELS)
    return None if layer.is_two_of_four else Obstacle("not 2:4", TWO_FOUR)


def _tensor_cores(layer: Layer, network: Sequence[Layer]) -> Obstacle | None:
    outputs, inputs = layer.widths
    if layer.is_grouped:
        return Obstacle("grouped convolution", "nothing, its groups are narrow")
    free = [width for width, end in ((outputs, -1), (inputs, 0)) if layer is not network[end]]
    if not any(width % 8 for width in free):
        return None
    return Obstacle(f"{inputs} -> {outputs} channels", "round_to=8 in ChannelPruning")


def _litert(layer: Layer, network: Sequence[Layer]) -> Obstacle | None:
    if not _is_sparse(layer):
        return Obstacle("no 1x1 convolution", CHANNELS)
    stem, *others = (other for other in network if isinstance(other.module, _ConvNd))
    odd = [] if _is_stem(stem) else [stem]
    odd += [other for other in others if not (_is_sparse(other) or _is_depthwise(other))]
    if odd:
        return Obstacle(f"no sparse network may have {odd[0].name}", CHANNELS)
    pointwise = [other.nonzero for other in others if _is_sparse(other)]
    total = sum(nonzero.numel() for nonzero in pointwise)
    zeros = total - sum(int(nonzero.count_nonzero()) for nonzero in pointwise)
    if zeros > XNNPACK_SPARSITY * total:
        return None
    return Obstacle(
        f"{zeros / total:.0%} zeros in all 1x1 convolutions",
        'sparsity 0.7 in all 1x1 convolutions, best with granularity="block:4x1"',
    )


def _is_sparse(layer: Layer) -> bool:
    """Whether XNNPACK has a sparse kernel: 1x1 convolutions without stride, padding and groups."""
    module = layer.module
    return isinstance(module, nn.Conv2d) and is_pointwise(module) and {*module.stride} == {1}


def _is_stem(layer: Layer) -> bool:
    """Whether a convolution may begin a network that XNNPACK runs sparse."""
    return _is_centred(layer.module, (3,), (2,)) and layer.widths[1] == layer.nonzero.shape[1] == 3


def _is_depthwise(layer: Layer) -> bool:
    """Whether a convolution may stand between the sparse ones."""
    one_to_one = layer.widths[0] == layer.widths[1] and layer.nonzero.shape[1] == 1
    return one_to_one and _is_centred(layer.module, (3, 5), (1, 2))


def _is_centred(module: nn.Module, kernels: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a two-dimensional convolution has a square kernel and half of it as padding."""
    if not isinstance(module, nn.Conv2d) or {*module.dilation} != {1}:
        return False
    kernel, stride = module.kernel_size, module.stride
    square = kernel[0] == kernel[1] and stride[0] == stride[1]
    padded: bool = module.padding in ("same", tuple(size // 2 for size in kernel))
    return square and padded and kernel[0] in kernels and stride[0] in strides


def _stores_zeros(_: Layer, __: Sequence[Layer]) -> Obstacle | None:
    return Obstacle("zeros are stored, and multiplied", CHANNELS)


def _openvino(layer: Layer, network: Sequence[Layer]) -> Obstacle | None:
    if not isinstance(layer.module, nn.Linear):
        return _stores_zeros(layer, network)
    if any(width % 64 for width in layer.widths):
        return Obstacle("{} x {} weights".format(*layer.widths), "round_to=64 in ChannelPruning")
    if layer.sparsity >= 0.8:
        return None
    return Obstacle(f"{layer.sparsity:.0%} zeros", "sparsity 0.8 and int8")


def _coreml(layer: Layer, _: Sequence[Layer]) -> Obstacle | None:
    is_linear = isinstance(layer.module, nn.Linear)
    if layer.sparsity >= 0.75 or (is_linear and layer.is_two_of_four):
        return None
    other = f", or {TWO_FOUR}" if is_linear else ""
    return Obstacle(f"{layer.sparsity:.0%} zeros", f"sparsity 0.75{other}")


_GITHUB = "https://github.com"
_NVIDIA = "https://docs.nvidia.com/deeplearning/tensorrt/10.16.1"
_APPLE = "https://apple.github.io/coremltools/docs-guides/source"
_TFLITE = f"{_GITHUB}/tensorflow/tensorflow/blob/master/tensorflow/lite/delegates/xnnpack/README.md"
_XNNPACK = f"{_GITHUB}/google/XNNPACK"
_EXECUTORCH = f"{_GITHUB}/pytorch/executorch/blob/main/backends/xnnpack/runtime/XNNCompiler.cpp"
_OPENVINO = f"{_GITHUB}/openvinotoolkit/openvino/blob/master/src/plugins/intel_cpu/src/nodes"
_MEASURED = "benchmarks/runtimes.py"
_TENSORRT_24 = (
    f"{_NVIDIA}/inference-library/io-formats-sparsity.html",
    f"{_GITHUB}/NVIDIA/TensorRT/issues/4065",
    f"{_GITHUB}/NVIDIA/TensorRT/issues/4054",
)
_ALIGNED = (
    f"{_NVIDIA}/performance/overhead-layer-optimization.html",
    f"{_GITHUB}/NVIDIA/TensorRT/issues/3876",
)
_SPARSE = (_TFLITE, f"{_XNNPACK}/blob/master/src/subgraph.c", f"{_XNNPACK}/issues/3170")
_TORCH_24 = ("https://docs.pytorch.org/docs/stable/sparse.html",)
_ORT = (f"{_GITHUB}/microsoft/onnxruntime/issues/5578", _MEASURED)
_AMX = "int8, a CPU with AMX, CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"
_COREML = "prune_weights of coremltools, the Neural Engine"
RULES = (
    Rule("PyTorch CPU", "regrow.accelerate", _torch_cpu, ("benchmarks/runtime.py",)),
    Rule("PyTorch GPU", "to_sparse_semi_structured, float16", _torch_gpu, _TORCH_24),
    Rule("TensorRT 2:4", "SPARSE_WEIGHTS, float16 or int8", _tensorrt, _TENSORRT_24),
    Rule("tensor cores", "float16, dense layers", _tensor_cores, _ALIGNED),
    Rule("LiteRT", "XNNPACK on ARM, weights in sparse encoding", _litert, _SPARSE),
    Rule("ExecuTorch", "dense layers", _stores_zeros, (_EXECUTORCH, _MEASURED)),
    Rule("ONNX Runtime", "dense layers", _stores_zeros, _ORT),
    Rule("OpenVINO", _AMX, _openvino, (f"{_OPENVINO}/fullyconnected.cpp", _MEASURED)),
    Rule("Core ML", _COREML, _coreml, (f"{_APPLE}/opt-pruning-perf.html",)),
)
