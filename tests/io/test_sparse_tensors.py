# SPDX-License-Identifier: MIT
"""Sparse files: every bit comes back, and sizes are those of a formula.

`read_sparse.py` of docs/how_to/export.md, which uses nothing of regrow, reads every file too.
"""

import gzip
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from exported_networks import Tied
from torch import nn

import regrow
from regrow.io.safetensors import read_tensors, write_tensors
from regrow.utils.errors import ConfigError, StateError

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "export.md"


def read_without_regrow(path):
    [program] = re.findall(
        r"^```python\n(# read_sparse\.py\n.*?)^```", PAGE.read_text(), re.S | re.M
    )
    assert "regrow" not in program.replace("regrow_sparse", "")
    assert len(program.splitlines()) <= 40
    names = {}
    exec(program, names)
    return names["read"](path)


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_same_bits(found, state):
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(bits(found[name]), bits(tensor)), name


def written(path, state, **how):
    """What the file holds, after both readers have agreed on it to the bit."""
    write_tensors(path, state, {}, sparse=True, rounds=state.keys(), **how)
    found = read_tensors(path)["state_dict"]
    assert_same_bits(read_without_regrow(path), found)
    return found


def stored(path):
    """Tensors and forms as they are in the file."""
    with safetensors.safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["regrow_sparse"])


def pruned(shape, granularity, sparsity):
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(*shape[1::-1], shape[2])
    regrow.prune(layer, sparsity, granularity=granularity)
    return layer.weight.detach()


def in_channels(shape):
    weight = torch.randn(shape)
    weight[::2] = 0
    weight[:, 1] = 0
    return weight


WEIGHTS = {
    "weights, 10 %": lambda: pruned((30, 50), "weight", 0.1),
    "weights, 90 %": lambda: pruned((30, 50), "weight", 0.9),
    "weights of a convolution": lambda: pruned((10, 6, 3, 3), "weight", 0.7),
    "weights, 99.9 %": lambda: pruned((100, 70), "weight", 0.999),
    "2:4": lambda: pruned((30, 48), "2:4", 0.5),
    "1:4 of a convolution": lambda: pruned((10, 8, 3, 3), "1:4", 0.75),
    "3:8": lambda: pruned((30, 48), "3:8", 0.625),
    "1:3": lambda: pruned((30, 48), "1:3", 2 / 3),
    "blocks": lambda: pruned((64, 96), "block:16x16", 0.75),
    "blocks of one row": lambda: pruned((30, 96), "block:1x16", 0.8),
    "blocks of a convolution": lambda: pruned((32, 16, 3, 3), "block:4x9", 0.6),
    "channels": lambda: in_channels((20, 8, 3, 3)),
    "dense": lambda: torch.randn(20, 30),
    "all zero": lambda: torch.zeros(40, 30),
    "one value at the end": lambda: torch.eye(200)[[0]].flip(1).contiguous(),
    "empty": lambda: torch.zeros(0, 4),
    "sparse vector": lambda: torch.eye(300)[3],
    "counters": lambda: torch.eye(40, dtype=torch.int64),
    "strided": lambda: pruned((50, 80), "weight", 0.9).t(),
}


@pytest.mark.parametrize("make", WEIGHTS.values(), ids=WEIGHTS)
def test_every_bit_comes_back(tmp_path, make):
    weight = make()
    assert_same_bits(
        written(tmp_path / "a.safetensors", {"fc.weight": weight}), {"fc.weight": weight}
    )


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str
)
@pytest.mark.parametrize("name", ["weights, 90 %", "2:4", "blocks"])
def test_every_bit_of_other_types_comes_back(tmp_path, name, dtype):
    weight = WEIGHTS[name]().to(dtype)
    written_there = written(tmp_path / "a.safetensors", {"w": weight})
    assert_same_bits(written_there, {"w": weight})
    assert "w" in stored(tmp_path / "a.safetensors")[1]


def test_negative_zeros_and_values_that_are_no_numbers_come_back(tmp_path):
    weight = pruned((30, 50), "weight", 0.9)
    weight[0, :4] = torch.tensor([-0.0, math.nan, math.inf, 1e-45])
    assert_same_bits(written(tmp_path / "a.safetensors", {"w": weight}), {"w": weight})


def test_random_patterns_come_back(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        rows, columns, r, c = torch.randint(1, 9, (4,), generator=generator).tolist()
        density = torch.rand((), generator=generator)
        units = (torch.rand(rows, columns, generator=generator) < density).float()
        mask = units.repeat_interleave(r, 0).repeat_interleave(c, 1)
        weight = torch.randn(mask.shape, generator=generator) * mask.abs()
        weight = torch.where(mask != 0, weight, 0).repeat(4, 4)  # large enough to be worth a code
        assert_same_bits(written(tmp_path / "a.safetensors", {"w": weight}), {"w": weight})


def data_bytes(path):
    """Bytes of the file after its header."""
    content = path.read_bytes()
    return len(content) - 8 - int.from_bytes(content[:8], "little")


def packed(count, width):
    """Bytes of `count` codes of `width` bits."""
    return -(-count * width // 8)


def test_groups_take_their_values_and_the_fewest_whole_bits(tmp_path):
    for (n, m), width in {(2, 4): 3, (1, 4): 2, (3, 8): 6}.items():  # log2 of 6, 4, 56, rounded up
        path = tmp_path / "a.safetensors"
        written(path, {"w": pruned((30, 48), f"{n}:{m}", (m - n) / m)})
        groups = 30 * 48 // m
        assert data_bytes(path) == packed(groups, width) + 4 * n * groups


def test_blocks_take_their_values_and_at_most_a_bit_a_block(tmp_path):
    path = tmp_path / "a.safetensors"
    written(path, {"w": pruned((128, 192), "block:16x16", 0.75)})
    assert data_bytes(path) <= 4 * 24 * 256 + packed(96, 1)
    assert stored(path)[1]["w"]["size"] == [16, 16]


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95, 0.98, 0.99])
def test_positions_take_little_more_than_their_entropy_and_less_than_gzip(tmp_path, sparsity):
    weight, path = pruned((300, 784), "weight", sparsity), tmp_path / "a.safetensors"
    written(path, {"w": weight})
    kept, density = int(weight.count_nonzero()), 1 - sparsity
    entropy = -density * math.log2(density) - sparsity * math.log2(sparsity)
    assert data_bytes(path) - 4 * kept <= 1.12 * weight.numel() * entropy / 8
    dense = tmp_path / "dense.safetensors"
    safetensors.torch.save_file({"w": weight}, dense)
    peer = len(gzip.compress(dense.read_bytes(), 9))
    assert len(gzip.compress(path.read_bytes(), 9)) < peer
    assert sparsity == 0.5 or path.stat().st_size < peer


def test_a_tensor_that_would_not_shrink_is_stored_as_it_is(tmp_path):
    state = {
        "dense": torch.randn(50, 60),
        "nearly dense": pruned((50, 60), "weight", 0.01),
        "small": torch.eye(5),
        "bias": torch.eye(999)[0],
        "steps": torch.eye(99, dtype=torch.int64),
    }
    written(tmp_path / "a.safetensors", state)
    tensors, forms = stored(tmp_path / "a.safetensors")
    assert not forms
    assert_same_bits(tensors, state)


def test_8_bit_values_are_rounded_row_by_row_as_numpy_rounds(tmp_path):
    weight = pruned((10, 6, 5, 5), "weight", 0.7) * torch.logspace(-3, 3, 10).view(-1, 1, 1, 1)
    weight[3] = 0
    found = written(tmp_path / "a.safetensors", {"w": weight}, values="int8")["w"]
    rows = weight.numpy().reshape(10, -1)
    scale = np.abs(rows).max(1, keepdims=True) / np.float32(127)
    right = np.rint(rows / np.where(scale == 0, np.float32(1), scale)).astype(np.int8) * scale
    np.testing.assert_array_equal(found.numpy().reshape(10, -1), right)
    assert (np.abs(right - rows) <= 0.5001 * scale).all()
    assert not found[weight == 0].any()
    tensors, _ = stored(tmp_path / "a.safetensors")
    assert tensors["w.values"].dtype == torch.int8


def test_16_bit_values_are_those_of_numpy(tmp_path):
    weight = pruned((30, 50), "weight", 0.9)
    found = written(tmp_path / "a.safetensors", {"w": weight}, values="fp16")["w"]
    np.testing.assert_array_equal(
        found.numpy(), weight.numpy().astype(np.float16).astype(np.float32)
    )
    assert found.dtype == torch.float32


def test_dense_weights_are_rounded_and_vectors_are_not(tmp_path):
    state = {"w": torch.randn(40, 50), "bias": torch.randn(400)}
    path = tmp_path / "a.safetensors"
    found = written(path, state, values="fp16")
    assert torch.equal(found["bias"], state["bias"])
    assert torch.equal(found["w"], state["w"].half().float())
    assert data_bytes(path) <= 2 * 2000 + 4 * 400 + 1


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(64, 50)


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = Small()
    regrow.prune(model, 0.8)
    return model


def test_exported_model_loads_to_the_bit(small, tmp_path):
    dense = regrow.export(small, tmp_path / "dense.safetensors")
    done = regrow.export(small, tmp_path / "a.safetensors", sparse=True)
    assert (done.to, done.error) == ("safetensors", 0.0)
    assert done.bytes == (tmp_path / "a.safetensors").stat().st_size < dense.bytes / 2
    again = regrow.load(Small, tmp_path / "a.safetensors")
    assert_same_bits(again.state_dict(), small.state_dict())
    assert regrow.sparsity(again) == regrow.sparsity(small) >= 0.8


def test_cut_and_masked_model_loads_to_the_bit(tmp_path):
    torch.manual_seed(0)

    def make():
        return nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 50))

    model = make()
    plan = regrow.channels.prune(model, torch.randn(2, 40), 0.5)
    regrow.prune(model, 0.9)
    regrow.export(model, tmp_path / "a.safetensors", plan=plan, sparse=True)
    assert stored(tmp_path / "a.safetensors")[1]
    assert_same_bits(regrow.load(make, tmp_path / "a.safetensors").state_dict(), model.state_dict())


def test_tied_weights_are_stored_once_and_load_tied(tmp_path):
    torch.manual_seed(0)
    model = Tied()
    regrow.prune(model, 0.9, include=["embed.weight"])
    regrow.export(model, tmp_path / "a.safetensors", sparse=True, values="fp16")
    again = regrow.load(Tied, tmp_path / "a.safetensors")
    assert again.head.weight is again.embed.weight
    assert torch.equal(again.head.weight, model.head.weight.half().float())


def test_largest_error_of_rounded_values_is_reported(small, tmp_path):
    done = regrow.export(small, tmp_path / "a.safetensors", sparse=True, values="int8")
    found, state = regrow.load(Small, tmp_path / "a.safetensors").state_dict(), small.state_dict()
    errors = {n: (found[n] - state[n]).abs().max() / state[n].abs().max() for n in state}
    assert done.error == pytest.approx(float(max(errors.values())))
    assert 1e-3 < done.error < 1 / 254 + 1e-6
    assert not errors["norm.weight"]
    assert not errors["fc.bias"]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "a.onnx",
            {"sparse": True},
            "sparse files are safetensors, got onnx: write to='safetensors'",
        ),
        ("a.safetensors", {"values": "int8"}, "values='int8' rounds the weights of a sparse file"),
        ("a.safetensors", {"sparse": True, "values": "int4"}, "values must be one of fp16, int8"),
    ],
)
def test_wrong_arguments_raise(small, tmp_path, name, given, message):
    with pytest.raises(ConfigError, match=message):
        regrow.export(small, tmp_path / name, torch.zeros(2, 3, 4, 4), **given)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("values", "wrong"), [("fp16", 7e4), ("fp16", math.nan), ("int8", math.inf)]
)
def test_values_that_the_type_cannot_hold_raise(small, tmp_path, values, wrong):
    with torch.no_grad():
        small.fc.weight[0, 0] = wrong
    with pytest.raises(ConfigError, match=f"fc.weight has values that {values} cannot hold"):
        regrow.export(small, tmp_path / "a.safetensors", sparse=True, values=values)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("scale", [1e-8, 1e-6])
def test_weights_that_16_bit_values_would_flatten_raise(small, tmp_path, scale):
    """Below 6e-8 they would be zero, and below 6e-5 have few steps."""
    with torch.no_grad():
        small.fc.weight *= scale
    message = r"fc\.weight has values that fp16 cannot hold, up to .*e-.*leave out values='fp16'"
    with pytest.raises(ConfigError, match=message):
        regrow.export(small, tmp_path / "a.safetensors", sparse=True, values="fp16")
    assert not [*tmp_path.iterdir()]
    done = regrow.export(small, tmp_path / "a.safetensors", sparse=True, values="int8")
    assert done.error < 1 / 254 + 1e-6


def test_single_tiny_values_among_others_are_rounded(small, tmp_path):
    with torch.no_grad():
        small.fc.weight[:2, :2] = torch.tensor([[1e-8, -1e-6], [1e-30, 1e-45]])
    path = tmp_path / "a.safetensors"
    assert regrow.export(small, path, sparse=True, values="fp16").error < 2**-11
    found = regrow.load(Small, path).fc.weight
    assert torch.equal(found, small.fc.weight.half().float())


def test_name_that_is_taken_raises(tmp_path):
    state = {"w": pruned((30, 50), "weight", 0.9), "w.values": torch.ones(2)}
    with pytest.raises(ConfigError, match=r"w\.values"):
        write_tensors(tmp_path / "a.safetensors", state, {}, sparse=True)


@pytest.mark.parametrize("change", ["lost", "short", "shape", "zero", "bits"])
def test_damaged_file_raises(tmp_path, change):
    path = tmp_path / "a.safetensors"
    written(path, {"w": pruned((30, 50), "weight", 0.9)})
    tensors, forms = stored(path)
    if change == "lost":
        del tensors["w.codes"]
    elif change == "short":
        tensors["w.values"] = tensors["w.values"][:-3].clone()
    elif change == "shape":
        forms["w"]["shape"] = [30, 4]
    elif change == "zero":
        forms["w"]["bits"] = 0
    else:
        del forms["w"]["bits"]
    safetensors.torch.save_file(tensors, path, {"regrow_sparse": json.dumps(forms)})
    with pytest.raises(StateError, match=f"{re.escape(str(path))} cannot be read .*: w has parts"):
        read_tensors(path)


def test_another_program_does_not_take_the_codes_for_weights(small, tmp_path):
    regrow.export(small, tmp_path / "a.safetensors", sparse=True)
    with pytest.raises(RuntimeError, match=r"fc\.weight"):
        Small().load_state_dict(safetensors.torch.load_file(tmp_path / "a.safetensors"))


def test_rounding_leaves_norms_biases_scales_and_buffers_exact(tmp_path):
    def make():
        net = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1), nn.LayerNorm([64, 8, 8]), nn.Linear(64, 64)
        )
        net[2].scale = nn.Parameter(torch.rand(1, 64, 1, 1))
        net[2].register_buffer("grid", torch.rand(64, 64))
        return net

    torch.manual_seed(0)
    net = make()
    for value in net.parameters():
        nn.init.normal_(value)
    regrow.prune(net, 0.9)
    for values in ("int8", "fp16"):
        path = tmp_path / f"{values}.safetensors"
        regrow.export(net, path, sparse=True, values=values)
        loaded = regrow.load(make, path).state_dict()
        exact = {
            name for name, value in net.state_dict().items() if torch.equal(value, loaded[name])
        }
        assert {*net.state_dict()} - exact == {"0.weight", "2.weight"}
