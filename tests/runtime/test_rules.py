# SPDX-License-Identifier: MIT
"""What runtimes make of zeros: each condition against an independent reading of its source."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.sparse.semi_structured import SparseSemiStructuredTensorCUTLASS

import regrow
from regrow.runtime.candidates import find_candidates
from regrow.runtime.rules import RULES, SEMI_STRUCTURED, Layer

CHECKS = {rule.runtime: rule.check for rule in RULES}


def obstacle(runtime, module, network=None):
    """What hinders a layer, alone or in a network (where it is one of the layers)."""
    modules = [module] if network is None else [m for m in network.modules() if is_layer(m)]
    layers = [Layer(f"{i}.weight", m, 1.0) for i, m in enumerate(modules)]
    return CHECKS[runtime](next(x for x in layers if x.module is module), layers)


def is_layer(module):
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd)


def masked(module, kept):
    with torch.no_grad():
        module.weight.copy_(torch.as_tensor(kept, dtype=torch.float32))
    return module


def mobile(width=16, stem=3, colours=3):
    return nn.Sequential(
        nn.Conv2d(colours, width, stem, stride=2, padding=stem // 2),
        nn.Conv2d(width, width, 5, stride=2, padding=2, groups=width),
        nn.Conv2d(width, width, 1),
        nn.Conv2d(width, width, 3, padding="same", groups=width),
        nn.Conv2d(width, 2 * width, 1),
        nn.Flatten(),
        nn.Linear(2 * width * 16, 10),
    )


def mlp(width=256):
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def has_sparse_weights(weights):
    """TensorRT's condition for weights (K, C, R, S), in loops."""
    outputs, inputs, height, width = weights.shape
    return inputs % 4 == 0 and all(
        np.count_nonzero(weights[k, c : c + 4, r, s]) <= 2
        for k in range(outputs)
        for c in range(0, inputs, 4)
        for r in range(height)
        for s in range(width)
    )


@pytest.mark.parametrize("density", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("inputs", [256, 258])
def test_two_of_four_is_as_in_the_manual_of_tensorrt(density, inputs):
    generator = np.random.default_rng(int(100 * density))
    found = set()
    for positions in (1, 3):
        kept = generator.random((256, inputs, positions, 1)) < density
        sparse = generator.permuted(np.arange(4) < 2, axis=0)
        for mask in (kept, kept & np.resize(sparse, inputs)[:, None, None]):
            module = masked(nn.Conv2d(inputs, 256, (positions, 1)), mask)
            fits = obstacle("TensorRT 2:4", module) is None
            assert fits == has_sparse_weights(mask)
            found.add(fits)
    assert found == ({False} if inputs % 4 else {False, True})


def test_two_of_four_gains_nothing_in_narrow_convolutions():
    for width, fits in ((128, False), (256, True)):
        conv = nn.Conv2d(width, width, 1)
        regrow.prune(nn.Sequential(conv), 0.5, granularity="2:4")
        assert (obstacle("TensorRT 2:4", conv) is None) == fits


def test_tensorrt_does_not_consider_grouped_and_transposed_convolutions():
    for conv in (nn.Conv2d(512, 512, 1, groups=2), nn.ConvTranspose2d(256, 256, 1)):
        nn.init.zeros_(conv.weight)
        assert obstacle("TensorRT 2:4", conv).reason.startswith("transposed, grouped")
    assert obstacle("tensor cores", nn.Conv2d(512, 512, 1, groups=2)).reason == (
        "grouped convolution"
    )


def test_shapes_of_two_of_four_are_those_of_torch():
    limits = SparseSemiStructuredTensorCUTLASS._DTYPE_SHAPE_CONSTRAINTS[torch.float16]
    assert (limits.sparse_min_rows, limits.sparse_min_cols) == SEMI_STRUCTURED
    for outputs, inputs, fits in ((32, 64, True), (64, 32, False), (33, 64, False)):
        layer = masked(nn.Linear(inputs, outputs), np.zeros((outputs, inputs)))
        assert (obstacle("PyTorch GPU", layer) is None) == fits
    assert obstacle("PyTorch GPU", nn.Conv2d(64, 32, 1)).reason == "torch has no 2:4 kernel"


def test_layers_that_torch_can_use_are_tried_by_accelerate():
    for level, granularity in ((0.85, "weight"), (0.8, "block:16x16"), (0.8, "block:4x4")):
        for module in (nn.Linear(80, 80), nn.Conv2d(80, 80, 1, stride=2)):
            regrow.prune(nn.Sequential(module), level, granularity=granularity)
            assert obstacle("PyTorch CPU", module) is None
            forms = {name.split()[0] for name, _ in find_candidates(module)}
            assert forms & {"CSR", "BSR"}
    assert obstacle("PyTorch CPU", masked(nn.Conv2d(8, 8, 3), np.zeros((8, 8, 3, 3))))
    dense = obstacle("PyTorch CPU", nn.Linear(16, 16))
    assert dense.reason == "0% zeros"


def test_xnnpack_counts_zeros_of_all_pointwise_convolutions_together():
    net = mobile()
    first, last = net[2], net[4]  # 256 and 512 weights: more than 512 of 768 must be zero
    for zeros, fits in ((512, False), (513, True)):
        masked(last, np.zeros((32, 16, 1, 1)))
        masked(first, np.arange(256).reshape(16, 16, 1, 1) >= zeros - 512)
        assert (obstacle("LiteRT", first, net) is None) == fits
        assert (obstacle("LiteRT", last, net) is None) == fits
    assert obstacle("LiteRT", net[0], net).reason == "no 1x1 convolution"
    assert obstacle("LiteRT", net[6], net).reason == "no 1x1 convolution"


@pytest.mark.parametrize(
    ("odd", "name"),
    [
        (nn.Conv2d(32, 32, 3, padding=1), "5.weight"),
        (nn.Conv2d(32, 32, 1, stride=2), "5.weight"),
        (nn.Conv2d(32, 32, 3, groups=32), "5.weight"),
        (nn.Conv2d(32, 32, 3, padding="same", dilation=2, groups=32), "5.weight"),
        ({"stem": 7}, "0.weight"),
        ({"colours": 1}, "0.weight"),
    ],
)
def test_xnnpack_is_sparse_only_in_networks_of_its_subset(odd, name):
    net = mobile(**odd) if isinstance(odd, dict) else mobile().insert(5, odd)
    for pointwise in (net[2], net[4]):
        nn.init.zeros_(pointwise.weight)
        assert obstacle("LiteRT", pointwise, net).reason == f"no sparse network may have {name}"


def test_channels_that_are_not_multiples_of_eight_are_told():
    net = nn.Sequential(nn.Conv2d(3, 28, 3), nn.Conv2d(28, 16, 3), nn.Conv2d(16, 10, 3)).eval()
    assert obstacle("tensor cores", net[0], net).change == "round_to=8 in ChannelPruning"
    assert obstacle("tensor cores", net[1], net).reason == "28 -> 16 channels"
    assert obstacle("tensor cores", net[2], net) is None, "10 classes are no choice"
    regrow.channels.prune(net, torch.zeros(1, 3, 8, 8), 0.3, round_to=8)
    assert all(obstacle("tensor cores", layer, net) is None for layer in net)


def test_inputs_of_transposed_convolutions_are_in_their_first_dimension():
    layer = Layer("weight", nn.ConvTranspose2d(8, 6, 3), 1.0)
    masked(layer.module, np.arange(8)[:, None, None, None] % 4 < np.full((1, 6, 3, 3), 2))
    assert layer.nonzero.shape == (6, 8, 9)
    assert layer.is_two_of_four
    assert layer.sparsity == 0.5


ADVICE = [
    ("PyTorch CPU", mlp, {"sparsity": 0.9}),
    ("PyTorch CPU", mlp, {"sparsity": 0.8, "granularity": "block:16x16"}),
    ("PyTorch GPU", mlp, {"sparsity": 0.5, "granularity": "2:4"}),
    ("TensorRT 2:4", mlp, {"sparsity": 0.5, "granularity": "2:4"}),
    ("LiteRT", mobile, {"sparsity": 0.7, "granularity": "block:4x1", "include": ["2", "4"]}),
    ("OpenVINO", mlp, {"sparsity": 0.8}),
    ("Core ML", mlp, {"sparsity": 0.75}),
    ("Core ML", mlp, {"sparsity": 0.5, "granularity": "2:4"}),
]


@pytest.mark.parametrize(("runtime", "make", "advice"), ADVICE)
def test_a_layer_fits_once_the_change_is_made(runtime, make, advice):
    torch.manual_seed(0)
    net = make()
    chosen = net[2]
    change = obstacle(runtime, chosen, net).change
    assert all(str(value) in change for key, value in advice.items() if key != "include")
    regrow.prune(net, distribution="uniform", **advice)
    assert obstacle(runtime, chosen, net) is None


def test_openvino_needs_multiples_of_64():
    layer = masked(nn.Linear(96, 64), np.zeros((64, 96)))
    assert obstacle("OpenVINO", layer).change == "round_to=64 in ChannelPruning"
    assert obstacle("OpenVINO", masked(nn.Conv2d(64, 64, 1), np.zeros((64, 64, 1, 1))))


@pytest.mark.parametrize("runtime", ["ExecuTorch", "ONNX Runtime"])
def test_runtimes_without_sparse_kernels_are_said_to_store_zeros(runtime):
    found = obstacle(runtime, masked(nn.Linear(64, 64), np.zeros((64, 64))))
    assert found.reason == "zeros are stored, and multiplied"
    assert "ChannelPruning" in found.change


def test_onnxruntime_runs_the_same_dense_graph_of_a_sparse_network(tmp_path):
    """What it makes of the file: the same operators on weights of the same shapes."""
    graphs, sizes = [], []
    for level in (0, 0.95):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64))
        if level:
            regrow.prune(net, level, granularity="weight")
        path, optimized = tmp_path / f"{level}.onnx", tmp_path / f"{level}-optimized.onnx"
        regrow.export(net, path, torch.zeros(1, 3, 4, 4))
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(optimized)
        onnxruntime.InferenceSession(path, options)
        graph = onnx.load(optimized).graph
        weights = sorted((*array.dims,) for array in graph.initializer)
        graphs.append(([node.op_type for node in graph.node], weights))
        sizes.append(path.stat().st_size)
        assert not graph.sparse_initializer
    assert graphs[0] == graphs[1]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
