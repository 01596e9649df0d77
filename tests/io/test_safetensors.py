# SPDX-License-Identifier: MIT
"""Safetensors files, against the library itself."""

import pytest
import safetensors
import safetensors.torch
import torch
from exported_networks import Net, Tied, expected, trained_net
from torch import nn

import regrow
from regrow import channels
from regrow.io.checkpoints import KEY
from regrow.io.safetensors import read_tensors, write_tensors
from regrow.utils.errors import ConfigError, StateError


@pytest.fixture
def net():
    return trained_net()


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_safetensors_restore_the_small_model(net, tmp_path):
    plan = channels.prune(net, torch.randn(2, 3, 6, 6), 0.5)
    path = tmp_path / "net.safetensors"
    regrow.export(net, path, plan=plan)
    assert same(safetensors.torch.load_file(path), net.state_dict())
    again = regrow.load(Net, path)
    assert (again.conv.out_channels, again.norm.num_features) == (8, 8)
    x = torch.randn(3, 3, 6, 6)
    assert torch.equal(expected(again, x), expected(net, x))
    found = read_tensors(path)[KEY]
    kept = found["kept"]["fc.weight"]["1"]
    assert kept.dtype == torch.bool
    assert torch.equal(kept, plan.kept["fc.weight"][1])
    assert {k: v for k, v in found.items() if k != "kept"} == {
        k: v for k, v in plan.state_dict().items() if k != "kept"
    }


def test_safetensors_written_elsewhere_load(net, tmp_path):
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net.safetensors")
    assert same(regrow.load(Net, tmp_path / "net.safetensors").state_dict(), net.state_dict())


def test_tied_weights_are_stored_once_and_load_tied(tmp_path):
    torch.manual_seed(0)
    model = Tied()
    for name, write in (
        ("ours", lambda file: regrow.export(model, file)),
        ("theirs", lambda file: safetensors.torch.save_model(model, str(file))),
    ):
        path = tmp_path / f"{name}.safetensors"
        write(path)
        with safetensors.safe_open(path, "pt") as file:
            assert len({"embed.weight", "head.weight"} & {*file.keys()}) == 1
        again = regrow.load(Tied, path)
        assert again.head.weight is again.embed.weight
        assert same(again.state_dict(), model.state_dict())
    other = Tied()
    safetensors.torch.load_model(other, tmp_path / "ours.safetensors")
    assert same(other.state_dict(), model.state_dict())


def test_views_and_compiled_names_are_exported(tmp_path):
    model = nn.Linear(4, 4)
    model.register_buffer("part", model.weight.detach()[1:3].t())
    regrow.export(torch.compile(model, backend="eager"), tmp_path / "model.safetensors")
    assert same(safetensors.torch.load_file(tmp_path / "model.safetensors"), model.state_dict())


def test_metadata_keeps_its_types(tmp_path):
    more = {"regrow_x": {"tuple": (1, [2.5, None]), "bools": torch.tensor([True, False]), "1": {}}}
    write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(2)}, more)
    found = read_tensors(tmp_path / "a.safetensors")["regrow_x"]
    assert found.pop("bools").tolist() == [True, False]
    assert found == {"tuple": (1, [2.5, None]), "1": {}}
    with pytest.raises(ConfigError, match="cannot store"):
        write_tensors(tmp_path / "b.safetensors", {}, {"regrow_x": {1: 2}})


def test_damaged_or_foreign_file_raises(net, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"\x00" * 20)
    with pytest.raises(StateError, match="cannot be read as safetensors"):
        regrow.load(Net, path)
    regrow.export(net, path)
    with pytest.raises(StateError, match="of another model"):
        regrow.load(Net, path, width=8)
    with pytest.raises(ConfigError, match="is no tensor"):
        write_tensors(path, {"x": 1}, {})
