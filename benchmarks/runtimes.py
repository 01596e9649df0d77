# SPDX-License-Identifier: MIT
"""Claim: ONNX Runtime, OpenVINO and ExecuTorch gain nothing from zeros, and gain from cut channels.

    python benchmarks/runtimes.py [--rounds 50]      # with openvino and executorch where installed

A network with the layers that XNNPACK's sparse kernels take (1x1 and depthwise convolutions), and
the MLP of a block of ViT-B, in float32, one thread: exported dense, with 95 % zeros of each
granularity, and with half of the channels removed. Ratios are medians of passes of the dense file /
medians of passes of the other, in turns, with the interval and the noise of `compare_latency`.
"""

import copy
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from _bench import Row, arguments, show
from torch import Tensor, nn

import regrow
from regrow.profiling.latency import Speedup

ZEROS = {"weight": 0.95, "block:4x1": 0.95, "block:16x16": 0.95, "2:4": 0.5}
CUT = "half of the channels removed"


def mobile() -> nn.Module:
    """A stem and six blocks as in MobileNet, all 1x1 convolutions with 256 channels."""
    layers: list[nn.Module] = [nn.Conv2d(3, 256, 3, stride=2, padding=1), nn.ReLU()]
    for _ in range(6):
        layers += [nn.Conv2d(256, 256, 3, padding=1, groups=256), nn.ReLU()]
        layers += [nn.Conv2d(256, 256, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 16))


def vit_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MobileNet-like": (mobile, (1, 3, 64, 64)),
    "ViT-B MLP": (vit_mlp, (1, 197, 768)),
}


class Session(nn.Module):
    """A network run by another runtime; a copy is a session of its own."""

    def __init__(self, start: Callable[[nn.Module, Tensor], Any], model: nn.Module, x: Tensor):
        super().__init__()
        self._made = (start, [model], x)  # in a list: no submodule
        self._run = start(model, x)

    def __deepcopy__(self, _: Any) -> "Session":
        start, [model], x = self._made
        return Session(start, model, x)

    def forward(self, x: Tensor) -> Any:
        return self._run(x)


def onnx_file(model: nn.Module, x: Tensor) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        regrow.export(model, path, x)
        return path.read_bytes()


def onnxruntime_session(model: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_file(model, x), options)
    [given] = session.get_inputs()
    return lambda x: session.run(None, {given.name: x.numpy()})[0]


def openvino_session(model: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 0.4,
    }
    compiled = core.compile_model(core.read_model(onnx_file(model, x)), "CPU", settings)
    return lambda x: compiled(x.numpy())[0]


def executorch_session(model: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    lowered = to_edge_transform_and_lower(
        torch.export.export(model, (x,)), partitioner=[XnnpackPartitioner()]
    )
    made = lowered.to_executorch().buffer
    program = Runtime.get().load_program(made)
    method = program.load_method("forward")
    return lambda x, _kept=(made, program): method.execute([x])[0]


SESSIONS = {
    "onnxruntime": onnxruntime_session,
    "openvino": openvino_session,
    "executorch": executorch_session,
}


def variants(dense: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    """The network with zeros in its Linear layers and 1x1 convolutions, and with fewer channels."""
    wide = [f"{name}.weight" for name, m in dense.named_modules() if is_wide(m)]
    found = {}
    for granularity, level in ZEROS.items():
        pruned = copy.deepcopy(dense)
        regrow.prune(pruned, level, granularity=granularity, distribution="uniform", include=wide)
        found[f"{granularity}, {level:.0%} zeros"] = pruned
    found[CUT] = copy.deepcopy(dense)
    regrow.channels.prune(found[CUT], x, 0.5)
    return found


def is_wide(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d) and min(module.weight.shape[:2]) >= 256


def speedups(
    start: Callable[[nn.Module, Tensor], Any], make: Callable[[], nn.Module], x: Tensor, rounds: int
) -> dict[str, Speedup]:
    """How much faster a runtime runs each variant than the dense network."""
    torch.manual_seed(0)
    dense = make().eval()
    reference = Session(start, dense, x)
    found = {}
    for variant, model in variants(dense, x).items():
        session = Session(start, model, x)
        close = {"rtol": 1e-3, "atol": 1e-3}
        torch.testing.assert_close(torch.as_tensor(session(x)), model(x).detach(), **close)
        found[variant] = regrow.compare_latency(reference, session, x, repeats=rounds).speedup
    return found


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(rounds=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, zeros, channels = list[Row](), list[float](), list[float]()
    for name, (make, shape) in CASES.items():
        for runtime in filter(find_spec, SESSIONS):
            found = speedups(SESSIONS[runtime], make, torch.randn(shape), options.rounds)
            shown = {variant: str(speedup) for variant, speedup in found.items()}
            rows.append({"network": name, "runtime": runtime} | shown)
            channels.append(found.pop(CUT).ratio)
            zeros += [speedup.low for speedup in found.values()]
    claims = {
        "zeros: the largest lower end of an interval": (max(zeros), 1.1),
        "half of the channels: time of the cut network / dense": (1 / min(channels), 0.67),
    }
    show("Zeros and channels in other runtimes", rows, claims, options.out)


if __name__ == "__main__":
    main()
