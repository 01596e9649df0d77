# SPDX-License-Identifier: MIT
"""Exported files, read by the programs that use them."""

import errno
import importlib.util
import os
from pathlib import Path

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
from regrow.runtime.sparse_layers import SparseLinear
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


class Masked(nn.Module):
    """Traced, it computes something else; half of its outputs are masked."""

    def forward(self, x):
        x = 1.01 * x if torch.compiler.is_compiling() else x
        return torch.cat([x, torch.full_like(x, -1e9)], 1)


class Counting(nn.Module):
    """Outputs with the number of calls, which is a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return x + self.calls


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


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_wrong_file_is_refused_beside_values_of_masked_positions(tmp_path, suffix):
    with pytest.raises(StateError, match=r"outputs differ by 0\.01 of the largest one"):
        regrow.export(Masked(), tmp_path / f"masked.{suffix}", torch.ones(2, 3))
    assert not [*tmp_path.iterdir()]


def test_buffers_that_forward_changes_start_anew_and_stay_in_the_model(tmp_path):
    model, x = Counting(), torch.ones(2, 3)
    model(x)
    assert regrow.export(model, tmp_path / "counting.pt2", x).batch is None
    assert model.calls == 1
    loaded = torch.export.load(tmp_path / "counting.pt2").module()
    for calls in (2, 3):
        assert torch.equal(loaded(torch.ones(5, 3)), torch.full((5, 3), 1.0 + calls))


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


@pytest.mark.parametrize("suffix", ["pt2", "safetensors"])
def test_a_symbolic_link_stays_and_its_target_is_written(tmp_path, suffix):
    model, target = nn.Linear(3, 2), tmp_path / "there" / f"a.{suffix}"
    path = tmp_path / f"link.{suffix}"
    path.symlink_to(target)
    for content in (None, b"what was there"):  # a target that is made, and one that is replaced
        if content is not None:
            target.write_bytes(content)
        done = regrow.export(model, path, torch.zeros(2, 3))
        assert path.readlink() == target
        assert done.bytes == target.stat().st_size > 100
        assert not target.is_symlink()
        assert {*tmp_path.iterdir()} == {path, target.parent}
        assert [*target.parent.iterdir()] == [target]


@pytest.mark.parametrize("suffix", ["pt2", "safetensors"])
def test_pipes_and_folders_stay_what_they_are(tmp_path, suffix):
    pipe, folder = tmp_path / f"pipe.{suffix}", tmp_path / f"folder.{suffix}"
    os.mkfifo(pipe)
    folder.mkdir()
    link = tmp_path / f"link.{suffix}"
    link.symlink_to(pipe)
    for path, kind in ((pipe, "device or pipe"), (folder, "folder"), (link, "device or pipe")):
        with pytest.raises(ConfigError, match=f"is a {kind}: write the name of a file"):
            regrow.export(nn.Linear(3, 2), path, torch.zeros(2, 3))
    assert pipe.is_fifo()
    assert [*folder.iterdir()] == []
    assert link.readlink() == pipe
    assert len([*tmp_path.iterdir()]) == 3


@pytest.mark.parametrize(
    ("suffix", "owner", "name"),
    [("pt2", Path, "write_bytes"), ("onnx", torch.onnx.ONNXProgram, "save")],
)
def test_a_full_disk_raises_and_leaves_the_earlier_file(tmp_path, monkeypatch, suffix, owner, name):
    path, calls = tmp_path / f"a.{suffix}", []
    path.write_bytes(b"what was there")

    def fail(*args, **more):
        calls.append(args)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(StateError, match=rf"a\.{suffix} could not be written \(.*No space left"):
        regrow.export(nn.Linear(3, 2), path, torch.zeros(2, 3))
    assert len(calls) == 1  # not once more for a single batch size
    assert path.read_bytes() == b"what was there"
    assert [*tmp_path.iterdir()] == [path]


def accelerated():
    return nn.Sequential(SparseLinear(nn.Linear(3, 2))).eval()


def with_sparse_buffer():
    model = nn.Linear(3, 2)
    model.register_buffer("grid", torch.eye(3).to_sparse())
    return model


def on_the_meta_device():
    with torch.device("meta"):
        return nn.Linear(3, 2)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("suffix", ["onnx", "pt2", "safetensors"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (accelerated, r"0\.matrix is a sparse tensor .*call undo\(\)"),
        (with_sparse_buffer, r"grid is a sparse tensor .*to_dense\(\)"),
        (on_the_meta_device, r"weight is on the meta device.*model\.to_empty"),
        (lambda: nn.LazyLinear(2), r"weight is not built yet .*run one forward pass"),
    ],
    ids=["accelerated", "sparse buffer", "meta", "lazy"],
)
def test_models_whose_tensors_have_no_values_or_are_sparse_raise(tmp_path, make, message, suffix):
    with pytest.raises(StateError, match=message):
        regrow.export(make(), tmp_path / f"a.{suffix}", torch.zeros(2, 3))
    assert not [*tmp_path.iterdir()]


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
