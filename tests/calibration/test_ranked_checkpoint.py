# SPDX-License-Identifier: MIT
"""One file with ranked weights gives every sparsity, equal to pruning directly."""

import copy

import pytest
import torch
from torch import nn

import regrow
from regrow.calibration.calibrate import calibrated_layers, refit_layers
from regrow.calibration.moments import Data
from regrow.utils.errors import ConfigError, StateError


def network(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(7, 13), nn.ReLU(), nn.Linear(13, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight.mul(8).round() / 8)  # many ties
    return net


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk", "lamp"])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_every_sparsity_equals_pruning_directly(tmp_path, distribution, criterion):
    path, settings = (
        tmp_path / "ranked.ckpt",
        {"distribution": distribution, "criterion": criterion},
    )
    regrow.save_ranked(network(), path, seed=3, **settings)
    for sparsity in (0.0, 0.1, 0.31, 0.5, 0.77, 0.83, 0.95):
        direct, loaded = network(), network(seed=1)
        wanted = regrow.prune(direct, sparsity, seed=3, **settings)
        masks = regrow.load_ranked(path, loaded, sparsity)
        assert equal(masks, wanted)
        assert equal(loaded.state_dict(), direct.state_dict())
        assert masks.sparsity == pytest.approx(sparsity, abs=0.5 / wanted.total)


def test_selected_layers_and_their_floor_are_those_of_the_file(tmp_path):
    path = tmp_path / "ranked.ckpt"
    regrow.save_ranked(network(), path, exclude=["@last"], min_density=0.2)
    direct, loaded = network(), network(seed=1)
    wanted = regrow.prune(direct, 0.7, exclude=["@last"], min_density=0.2)
    assert equal(regrow.load_ranked(path, loaded, 0.7), wanted)
    assert {*wanted} == {"0.weight", "2.weight"}


def test_the_file_is_also_a_checkpoint_of_the_dense_network(tmp_path):
    net, path = network(), tmp_path / "ranked.ckpt"
    before = copy.deepcopy(net.state_dict())
    regrow.save_ranked(net, path)
    assert equal(net.state_dict(), before)
    content = torch.load(path, weights_only=True)
    assert equal(content["state_dict"], before)
    weights = sum(layer.weight.numel() for layer in net[::2])
    stored = sum(
        plane.numel() for planes in content["regrow_ranks"]["planes"].values() for plane in planes
    )
    assert stored <= weights.bit_length() * (weights / 8 + 3)  # 8 bits a weight here


def test_ranks_of_calibration_and_a_refit_for_each_sparsity(tmp_path):
    path, x = tmp_path / "ranked.ckpt", torch.randn(256, 7)
    dense = network()
    regrow.save_ranked(dense, path, criterion="obs", data=[x])
    direct, loaded, plain = network(), network(1), network(1)
    result = regrow.calibrate(direct, [x], 0.6, criterion="obs", refit=False)
    refit_layers(
        direct, dense, calibrated_layers(direct, None, None), result.masks, Data([x]), 1e-3
    )
    masks = regrow.load_ranked(path, loaded, 0.6, data=[x])
    assert equal(masks, result.masks)
    for name, value in loaded.state_dict().items():
        assert torch.allclose(value, direct.state_dict()[name], atol=1e-5)
    assert equal(regrow.load_ranked(path, plain, 0.6), result.masks)
    with torch.no_grad():
        errors = [float((net(x) - dense(x)).norm()) for net in (loaded, plain)]
    assert errors[0] < errors[1]


def test_other_files_models_and_settings_are_refused(tmp_path):
    path, net = tmp_path / "ranked.ckpt", network()
    regrow.save_ranked(net, path)
    other = nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, 5))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(StateError, match=r"0.weight"):
        regrow.load_ranked(path, other, 0.5)
    assert equal(other.state_dict(), before)
    with pytest.raises(ConfigError, match=r"write 0\.83"):
        regrow.load_ranked(path, net, 83)
    torch.save({"state_dict": net.state_dict()}, tmp_path / "plain.ckpt")
    with pytest.raises(StateError, match="save_ranked"):
        regrow.load_ranked(tmp_path / "plain.ckpt", net, 0.5)
    with pytest.raises(ConfigError, match="data="):
        regrow.save_ranked(net, path, criterion="obs")
    with pytest.raises(ConfigError, match="magnitude"):
        regrow.save_ranked(net, path, criterion="magnitud")
    with pytest.raises(ConfigError, match="distribution"):
        regrow.save_ranked(net, path, distribution="globl")


def nested():
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))


def linears(*names):
    return nn.ModuleDict({name: nn.Linear(4, 4) for name in names})


@pytest.mark.parametrize(
    ("make", "exclude", "ranked"),
    [
        (nested, ["1"], ["0.weight"]),  # also the tail of another name
        (lambda: linears("a[0]", "a0"), None, ["a[0].weight", "a0.weight"]),
        (lambda: linears("a*", "ab"), ["ab"], ["a*.weight"]),
    ],
)
def test_names_of_the_file_are_no_patterns(tmp_path, make, exclude, ranked):
    path, direct, loaded = tmp_path / "ranked.ckpt", make(), make()
    regrow.save_ranked(direct, path, exclude=exclude)
    wanted = regrow.prune(direct, 0.5, exclude=exclude)
    assert [*wanted] == ranked
    assert equal(regrow.load_ranked(path, loaded, 0.5), wanted)
    assert equal(loaded.state_dict(), direct.state_dict())
    if isinstance(loaded, nn.Sequential):  # which can run
        assert [*regrow.load_ranked(path, loaded, 0.5, data=[torch.randn(32, 4)])] == ranked


def test_an_error_leaves_the_model_as_it_was(tmp_path):
    path, model = tmp_path / "ranked.ckpt", network(1)
    regrow.save_ranked(network(), path)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StateError, match="finite"):
        regrow.load_ranked(path, model, 0.5, data=[torch.full((8, 7), torch.nan)])
    assert equal(model.state_dict(), before)
    regrow.save_ranked(network(), path, min_density=0.6)
    with pytest.raises(ConfigError, match="min_density"):
        regrow.load_ranked(path, model, 0.9)
    assert equal(model.state_dict(), before)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    regrow.save_ranked(tied, path)
    tied[1].weight = tied[0].weight
    with pytest.raises(StateError, match=r"1\.weight"):
        regrow.load_ranked(path, tied, 0.5)


def test_layers_that_keep_almost_nothing_are_named(tmp_path):
    path, net = tmp_path / "ranked.ckpt", nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    net[0].weight.data.mul_(1e-3)
    regrow.save_ranked(net, path)
    with pytest.warns(UserWarning, match=r"under 1 % .* in 0\.weight.*min_density"):
        regrow.load_ranked(path, net, 0.6)


class Counted(nn.Sequential):
    """Has state that is no parameter."""

    seen = 0

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


def test_a_model_with_state_of_its_own(tmp_path):
    path, saved, loaded = tmp_path / "ranked.ckpt", Counted(*network()), Counted(*network(1))
    saved.seen = 5
    regrow.save_ranked(saved, path)
    regrow.load_ranked(path, loaded, 0.5)
    assert loaded.seen == 5
    with pytest.raises(StateError, match="_extra_state"):
        regrow.load_ranked(path, network(), 0.5)


@pytest.mark.parametrize("layer", [False, True])
@pytest.mark.parametrize("extra", [False, True])
def test_the_file_of_a_compiled_model_is_that_of_the_plain_one(tmp_path, layer, extra):
    def compiled(net):
        if not layer:
            return torch.compile(net, backend="eager")
        net[0] = torch.compile(net[0], backend="eager")
        return net

    def make(seed=0):
        return Counted(*network(seed)) if extra else network(seed)

    path, direct = tmp_path / "ranked.ckpt", network()
    wanted = regrow.prune(direct, 0.5)
    for saved, loaded in ((compiled(make()), make(1)), (make(), compiled(make(1)))):
        regrow.save_ranked(saved, path)
        assert equal(regrow.load_ranked(path, loaded, 0.5), wanted)
        assert all(map(torch.equal, loaded.parameters(), direct.parameters()))
