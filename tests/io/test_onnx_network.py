# SPDX-License-Identifier: MIT
"""An ONNX file in int8: zeros stay zero, and it computes nearly what the float file computes."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import regrow
from regrow import ConfigError, StateError
from regrow.io import onnx_network
from regrow.io.onnx_network import OnnxNetwork, quantize_onnx

X = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    )
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    return net.eval()


def arrays(path):
    graph = onnx.load(path).graph
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A pruned network, its masks and its file."""
    net, path = network(), tmp_path_factory.mktemp("exported") / "float.onnx"
    masks = regrow.prune(net, 0.9)
    with torch.no_grad():
        net[4].weight[3] = 0  # a row of zeros has no largest weight to scale by
    regrow.export(net, path, X)
    return net, masks, path


def test_masked_weights_are_zero_in_int8_and_others_are_rounded(exported, tmp_path):
    net, masks, path = exported
    result = quantize_onnx(path, tmp_path / "int8.onnx", [X])
    found = arrays(tmp_path / "int8.onnx")
    for name in ("0.weight", "4.weight"):
        weight, int8 = found[f"{name}_scale"], found[f"{name}_quantized"]
        assert int8.dtype == np.int8
        assert not found[f"{name}_zero_point"].any()
        assert not int8[~masks[name].numpy()].any()
        # batch norm is folded into the convolution, as a factor of each output channel
        scale = 1.0
        if name == "0.weight":
            scale = (net[1].weight / (net[1].running_var + net[1].eps).sqrt()).detach()
            scale = scale.numpy()[:, None, None, None]
        dense = net.get_parameter(name).detach().numpy() * scale
        steps = weight.reshape(-1, *[1] * (dense.ndim - 1))
        assert np.abs(int8 * steps - dense).max() <= (0.501 * steps).max()
    zeros = sum(int((net.get_parameter(name) == 0).sum()) for name in masks)
    assert (result.weights, result.zeros) == (8 * 9 + 2880, zeros)
    assert result.bytes == (tmp_path / "int8.onnx").stat().st_size


def test_outputs_are_near_those_of_the_float_file_at_any_batch_size(exported, tmp_path):
    net, _, path = exported
    result = quantize_onnx(path, tmp_path / "int8.onnx", [X])
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx")
    for inputs in (X, X[:1]):
        [found] = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        right = net(inputs).detach().numpy()
        assert np.abs(found - right).max() <= 0.1 * np.abs(right).max()
    assert 0 < result.error <= 0.1


def test_ranges_come_from_the_data(exported, tmp_path):
    """The scale of the input is its range / 255, of so many samples as are asked for."""
    batches = [(X[:8], torch.zeros(8)), (100 * X[8:], torch.zeros(8))]
    for samples, inputs in ((8, [X[:8]]), (9, [X[:8], 100 * X[8:]])):
        quantize_onnx(exported[2], tmp_path / "int8.onnx", batches, samples=samples)
        found = arrays(tmp_path / "int8.onnx")
        name = onnx.load(exported[2]).graph.input[0].name
        width = max(float(x.max()) for x in inputs) - min(float(x.min()) for x in inputs)
        assert found[f"{name}_scale"] == pytest.approx(width / 255, rel=1e-5)


def test_a_lost_zero_raises_and_leaves_the_earlier_file(exported, tmp_path, monkeypatch):
    (tmp_path / "int8.onnx").write_text("earlier")
    constants = onnx_network._constants
    monkeypatch.setattr(
        onnx_network,
        "_constants",
        lambda file: {n: v * (v.dtype != np.float32) for n, v in constants(file).items()},
    )
    with pytest.raises(StateError, match="are not zero in int8"):
        quantize_onnx(exported[2], tmp_path / "int8.onnx", [X])
    assert (tmp_path / "int8.onnx").read_text() == "earlier"


def test_no_data_and_no_weights_raise(exported, tmp_path):
    with pytest.raises(ConfigError, match="give at least one batch"):
        quantize_onnx(exported[2], tmp_path / "int8.onnx", [])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 8])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 8])],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "relu")
    with pytest.raises(ConfigError, match="no layer with weights"):
        quantize_onnx(tmp_path / "relu", tmp_path / "int8.onnx", [torch.ones(2, 8)])
    assert not (tmp_path / "int8.onnx").exists()


def test_an_onnx_file_is_a_network(exported):
    net, _, path = exported
    found = OnnxNetwork(path)
    torch.testing.assert_close(found(X), net(X), rtol=1e-4, atol=1e-5)
    assert found.batch is None
    assert not [*found.parameters()]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(4, 8)

    def forward(self, a, b):
        return self.a(a) + self.b(b)


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory):
    torch.manual_seed(0)
    path, batch = tmp_path_factory.mktemp("two") / "two.onnx", draw_pair()
    regrow.export(Two().eval(), path, batch)
    return path


def draw_pair():
    return {"a": torch.randn(64, 4), "b": 100 * torch.randn(64, 4)}


def test_inputs_of_a_dict_are_taken_by_name(two_inputs, tmp_path):
    batch = draw_pair()
    turned = {"label": torch.zeros(64)} | {name: batch[name] for name in reversed(batch)}
    for number, given in enumerate((batch, turned)):
        quantize_onnx(two_inputs, tmp_path / f"{number}.onnx", [given])
    files = [OnnxNetwork(tmp_path / f"{number}.onnx") for number in (0, 1)]
    found = [file(**given) for file in files for given in (batch, turned)]
    assert all(torch.equal(outputs, found[0]) for outputs in found)
    expected = OnnxNetwork(two_inputs)(batch["a"], batch["b"])
    assert (found[0] - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"a": torch.zeros(64, 4)}, "two.onnx takes a, b, a batch has a: give a dict"),
        (torch.zeros(64, 4), "takes a, b, a batch has 1 tensors: give a dict"),
        (
            {n: x.double() for n, x in draw_pair().items()},
            r"takes float32 of shape \(batch, 4\) for a, .* has float64 of shape \(64, 4\)",
        ),
    ],
)
def test_batches_that_do_not_fit_the_inputs_raise(two_inputs, tmp_path, batch, message):
    with pytest.raises(ConfigError, match=message):
        quantize_onnx(two_inputs, tmp_path / "int8.onnx", [batch])
    assert not (tmp_path / "int8.onnx").exists()
    with pytest.raises(ConfigError, match=r"no file .*none\.onnx"):
        quantize_onnx(tmp_path / "none.onnx", tmp_path / "int8.onnx", [batch])


def test_a_tensor_is_taken_in_batches(exported, tmp_path):
    """As one batch of the same examples."""
    results = [
        quantize_onnx(exported[2], tmp_path / f"{number}.onnx", data)
        for number, data in enumerate((X, [X]))
    ]
    assert results[0].error == results[1].error
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()


NOT_FINITE = X.clone()
NOT_FINITE[3, 0, 2, 5] = float("nan")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            [torch.zeros(4, 1, 8, 9)],
            ConfigError,
            r"of shape \(batch, 1, 8, 8\) for .* of shape \(4, 1, 8, 9\)",
        ),
        ([torch.zeros(4, 64)], ConfigError, r"of shape \(batch, 1, 8, 8\) .* shape \(4, 64\)"),
        ([X, NOT_FINITE], StateError, "inputs are not finite: check the calibration data"),
        ([(X / 0).nan_to_num(nan=0.0, posinf=float("inf"))], StateError, "inputs are not finite"),
        ([X.numpy()], ConfigError, "must hold a batch of examples, got ndarray: write a tensor"),
    ],
)
def test_batches_that_cannot_be_measured_raise(exported, tmp_path, data, error, message):
    with pytest.raises(error, match=message):
        quantize_onnx(exported[2], tmp_path / "int8.onnx", data)
    assert not [*tmp_path.iterdir()]


def test_a_file_that_is_not_onnx_raises(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"what was there")
    with pytest.raises(ConfigError, match=r"a\.onnx is no ONNX file that runs here: \S"):
        quantize_onnx(tmp_path / "a.onnx", tmp_path / "int8.onnx", [X])
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_errors_of_the_converter_name_the_file(tmp_path):
    """It sets a scale for each output channel, which grouped transposed convolutions lack."""
    x = torch.randn(2, 8, 5, 5)
    regrow.export(nn.Sequential(nn.ConvTranspose2d(8, 12, 3, groups=2)), tmp_path / "a.onnx", x)
    with pytest.raises(ConfigError, match=r"ONNX Runtime cannot convert .*a\.onnx to int8: \S"):
        quantize_onnx(tmp_path / "a.onnx", tmp_path / "int8.onnx", [x])
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
