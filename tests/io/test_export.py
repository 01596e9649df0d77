# SPDX-License-Identifier: MIT
"""Exported files, read by the programs that use them."""

import importlib.util

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from exported_networks import Net, Tied, expected, trained_net
from torch import nn

import regrow
from regrow import channels
from regrow.utils.errors import ConfigError, StateError


class Fixed(nn.Module):
    """A module that accepts only batches of two."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        return self.fc(x.view(2, 3))


class Dice(nn.Module):
    """A module with random outputs."""

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.fixture
def net():
    return trained_net()


def everything(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_onnx_computes_the_pruned_model_at_any_batch_size(net, tmp_path):
    regrow.prune(net, 0.5)
    net.norm.eval()  # a mode of its own, which must stay
    before, modes = everything(net), [m.training for m in net.modules()]
    parameters = [id(p) for p in net.parameters()]
    done = regrow.export(net, tmp_path / "net.onnx", torch.randn(1, 3, 6, 6))
    assert (done.to, done.batch, done.reason) == ("onnx", None, "")
    assert 0 <= done.error < 1e-4
    assert same(before, net.state_dict())
    assert modes == [m.training for m in net.modules()]
    assert parameters == [id(p) for p in net.parameters()]
    assert [*tmp_path.iterdir()] == [tmp_path / "net.onnx"]
    assert done.bytes == (tmp_path / "net.onnx").stat().st_size
    read = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(read, full_check=True)
    weights = [onnx.numpy_helper.to_array(w) for w in read.graph.initializer]
    assert sum(int((w == 0).sum()) for w in weights if w.ndim > 1) >= 200  # of 512 pruned: folded
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    [given] = session.get_inputs()
    assert given.shape == ["batch", 3, 6, 6]
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 6, 6)
        [found] = session.run(None, {given.name: x.numpy()})
        np.testing.assert_allclose(found, expected(net, x).numpy(), rtol=0, atol=1e-5)


def test_onnx_of_attention_with_named_inputs(tmp_path):
    torch.manual_seed(0)
    model, fast = Tied(), torch.backends.mha.get_fastpath_enabled()
    example = {"weight": torch.ones(2, 4), "ids": torch.randint(0, 10, (2, 4))}
    regrow.export(model, tmp_path / "tied.onnx", example)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    session = onnxruntime.InferenceSession(tmp_path / "tied.onnx")
    ids, weight = torch.randint(0, 10, (5, 4)), torch.rand(5, 4)
    found = session.run(None, {"ids": ids.numpy(), "weight": weight.numpy()})
    for mine, theirs in zip(found, expected(model, ids, weight).values(), strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=0, atol=1e-5)


def test_pt2_of_a_cut_model_runs_without_its_class(net, tmp_path):
    channels.prune(net, torch.randn(2, 3, 6, 6), 0.5)
    done = regrow.export(net, tmp_path / "net.pt2", torch.randn(4, 3, 6, 6))
    assert done.batch is None
    loaded = torch.export.load(tmp_path / "net.pt2")
    assert loaded.state_dict["conv.weight"].shape == (8, 3, 3, 3)
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 6, 6)
        torch.testing.assert_close(loaded.module()(x), expected(net, x))


def test_model_with_one_fixed_batch_size_is_reported(tmp_path):
    model = Fixed()
    with pytest.warns(UserWarning, match="takes batches of 2 only: .*batch"):
        done = regrow.export(model, tmp_path / "fixed.pt2", torch.randn(2, 3))
    assert done.batch == 2
    assert "batch" in done.reason
    x = torch.randn(2, 3)
    found = torch.export.load(tmp_path / "fixed.pt2").module()(x)
    torch.testing.assert_close(found, expected(model, x))


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_first_layer_that_works_in_place_leaves_the_example_unchanged(tmp_path, suffix):
    """The example input is unchanged, and the file computes the same."""
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2))
    example = -torch.ones(2, 3)
    done = regrow.export(model, tmp_path / f"model.{suffix}", example)
    assert done.batch is None
    assert torch.equal(example, -torch.ones(2, 3))


@pytest.mark.parametrize("standing", [None, b"what was there"])
def test_a_failing_check_writes_nothing(tmp_path, standing):
    path = tmp_path / "dice.pt2"
    if standing is not None:
        path.write_bytes(standing)
    with pytest.raises(StateError, match=r"not the model: outputs differ by .*was not written"):
        regrow.export(Dice(), path, torch.ones(2, 50))
    assert (path.read_bytes() if path.exists() else None) == standing
    assert len([*tmp_path.iterdir()]) == (standing is not None)


def test_existing_file_is_replaced_atomically(net, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"what was there")
    plain = tmp_path / "plain"
    plain.touch()
    with path.open("rb") as reader:
        regrow.export(net, path)
        assert reader.read() == b"what was there"  # never written into
    assert same(safetensors.torch.load_file(path), net.state_dict())
    assert path.stat().st_mode == plain.stat().st_mode
    assert {*tmp_path.iterdir()} == {path, plain}


def test_the_example_of_a_lightning_module_is_used(net, tmp_path):
    net.example_input_array = torch.zeros(1, 3, 6, 6)
    assert regrow.export(net, tmp_path / "a" / "net", to="pt2").path == tmp_path / "a" / "net"
    loaded = torch.export.load(str(tmp_path / "a" / "net")).module()
    assert loaded(torch.zeros(3, 3, 6, 6)).shape == (3, 5)


X = torch.zeros(2, 3, 6, 6)


@pytest.mark.parametrize(
    ("name", "example", "to", "message"),
    [
        ("net.tflite", X, None, r"'net.tflite' names no format: .* \.onnx, \.safetensors, \.pt2"),
        ("net.onnx", X, "pt2", "is onnx by its suffix, to='pt2'"),
        ("net", X, "onx", "did you mean 'onnx'"),
        ("net.onnx", None, None, "needs an example: write export"),
        ("net.pt2", torch.tensor(1.0), None, "must hold a batch"),
        ("net.pt2", torch.zeros(2, 4, 6, 6), None, "Net does not run on the example input"),
        ("folder.pt2", X, None, "is a folder"),
        ("file/net.pt2", X, None, "cannot be written"),
    ],
)
def test_wrong_arguments_raise(net, tmp_path, name, example, to, message):
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=message):
        regrow.export(net, tmp_path / name, example, to=to)
    assert len([*tmp_path.iterdir()]) == 2


def test_data_dependent_control_flow_raises(tmp_path):
    with pytest.raises(ConfigError, match=r"Branch cannot be written as pt2: .*control flow"):
        regrow.export(Branch(), tmp_path / "branch.pt2", torch.ones(2, 3))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime", "safetensors"])
def test_a_missing_package_is_named(net, tmp_path, monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == missing else find(n))
    suffix = "safetensors" if missing == "safetensors" else "onnx"
    with pytest.raises(ConfigError, match=rf'{missing}: pip install "regrow\[export\]"'):
        regrow.export(net, tmp_path / f"net.{suffix}", X)
    assert not [*tmp_path.iterdir()]


def test_plan_of_another_model_raises(net, tmp_path):
    plan = channels.prune(net, X, 0.5)
    with pytest.raises(StateError, match=r"plan= is of another model: it leaves conv\.weight"):
        regrow.export(Net(), tmp_path / "net.safetensors", plan=plan)
