# SPDX-License-Identifier: MIT
"""What OpenVINO, ExecuTorch and coremltools, where installed, make of the zeros of a network."""

import copy

import pytest
import torch
from torch import nn

import regrow

X = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
WEIGHTS = 256 * 256 + 64 * 256
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]


def networks():
    """A dense network, and the same with 95 % zeros."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64)).eval()
    sparse = copy.deepcopy(dense)
    regrow.prune(sparse, 0.95, distribution="uniform")
    return dense, sparse


def finding(runtime, model):
    [found] = [f for f in regrow.diagnose(model, X).findings if f.rule.runtime == runtime]
    return found


def test_openvino_multiplies_the_zeros_of_float32(tmp_path):
    """`diagnose` says that it needs int8 and AMX: in float32 the kernels are those of dense."""
    openvino = pytest.importorskip("openvino")
    kernels = []
    for model in networks():
        regrow.export(model, tmp_path / "a.onnx", X)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 0.5,
        }
        compiled = openvino.Core().compile_model(tmp_path / "a.onnx", "CPU", settings)
        found = torch.from_numpy(compiled(X.numpy())[0])
        torch.testing.assert_close(found, model(X).detach(), rtol=1e-4, atol=1e-4)
        facts = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
        kernels.append(
            [(f["layerType"].astype(str), f["primitiveType"].astype(str)) for f in facts]
        )
    assert kernels[0] == kernels[1]
    assert "sparse" not in str(kernels[1])
    assert "FullyConnected" in str(kernels[1])
    assert finding("OpenVINO", model).rule.needs.startswith("int8, a CPU with AMX")


def test_executorch_stores_zeros():
    pytest.importorskip("executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    sizes = []
    for model in networks():
        traced = torch.export.export(model, (X,))
        lowered = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
        made = lowered.to_executorch().buffer
        program = Runtime.get().load_program(made)
        [found] = program.load_method("forward").execute([X])
        torch.testing.assert_close(found, model(X).detach(), rtol=1e-4, atol=1e-4)
        sizes.append(len(made))
    assert sizes[0] == sizes[1] > 4 * WEIGHTS
    assert finding("ExecuTorch", model).share == 0


def test_coremltools_stores_a_bit_mask_and_the_values_that_are_not_zero(tmp_path):
    """Two bytes less for each zero of float16, and one bit more for each weight."""
    tools = pytest.importorskip("coremltools")
    from coremltools.optimize import coreml

    _, sparse = networks()
    given = [tools.TensorType("x", shape=X.shape)]
    whole = tools.convert(torch.jit.trace(sparse, X), inputs=given, convert_to="mlprogram")
    config = coreml.OptimizationConfig(coreml.OpThresholdPrunerConfig(threshold=1e-12))
    pruned = coreml.prune_weights(whole, config)
    sizes = []
    for name, model in {"whole": whole, "pruned": pruned}.items():
        folder = tmp_path / f"{name}.mlpackage"
        model.save(str(folder))
        sizes.append(sum(file.stat().st_size for file in folder.rglob("*.bin")))
    zeros = sum(int((p == 0).sum()) for p in sparse.parameters())
    assert sizes[0] - sizes[1] == pytest.approx(2 * zeros - WEIGHTS / 8, rel=0.01)
    assert finding("Core ML", sparse).share == 1
