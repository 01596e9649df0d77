# SPDX-License-Identifier: MIT
"""Plans: training continues with the optimizer state, and checkpoints rebuild the small model."""

import copy
import io
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn, optim

import regrow
from regrow import load
from regrow.channels import ChannelCut, prune, slice_optimizer_state
from regrow.io.checkpoints import KEY
from regrow.utils.errors import StateError

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
MAKERS = {
    "momentum": lambda p: optim.SGD(p, lr=0.001, momentum=0.9),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5),
}


class Split(nn.Module):
    """A hidden layer whose width is an attribute too."""

    def __init__(self, width=8):
        super().__init__()
        self.width = width
        self.a, self.norm = nn.Linear(6, 2 * width), nn.BatchNorm1d(2 * width)
        self.b = nn.Linear(width, 3)

    def forward(self, x):
        one, two = self.norm(self.a(x)).split(self.width, 1)
        return self.b(one.relu() * two)


def network(width=8):
    torch.manual_seed(0)
    return Split(width)


def steps(model, optimizer, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(16, 6, generator=generator)).square().sum().backward()
        optimizer.step()


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


def by_hand(values, original, small):
    """The rows and columns of the original that the small parameter holds."""
    for dim in range(original.ndim):
        rows = original.movedim(dim, 0).flatten(1) if original.ndim > 1 else original[:, None]
        if original.shape[dim] != small.shape[dim]:
            held = [i for i, row in enumerate(rows) if torch.isin(row, small).any()]
            values = values.index_select(dim, torch.tensor(held))
    return values


@pytest.mark.parametrize("kind", MAKERS)
def test_training_continues_like_a_model_built_small(kind):
    model = network()
    optimizer = MAKERS[kind](model.parameters())
    steps(model, optimizer, 4)
    original = copy.deepcopy(model)
    plan = prune(model, X, 0.5)
    state = copy.deepcopy(optimizer.state_dict())
    slice_optimizer_state([optimizer], model, plan)
    small = network(4)
    small.load_state_dict(model.state_dict())
    other = MAKERS[kind](small.parameters())
    for index, (name, parameter) in enumerate(model.named_parameters()):
        for key, value in state["state"][index].items():
            if isinstance(value, torch.Tensor) and value.ndim:
                before = original.get_parameter(name).detach()
                state["state"][index][key] = by_hand(value, before, parameter.detach())
    other.load_state_dict(state)
    steps(model, optimizer, 5, seed=1)
    steps(small, other, 5, seed=1)
    assert model.b.weight.isfinite().all()
    assert equal(model, small)


@pytest.mark.parametrize(
    "make", [partial(optim.Adafactor, lr=0.01), partial(optim.LBFGS, lr=0.1, max_iter=3)]
)
def test_state_that_cannot_be_sliced_is_reset(make):
    def step(model, optimizer):
        def closure():
            optimizer.zero_grad()
            loss = model(X).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    model = network()
    optimizer = make(model.parameters())
    step(model, optimizer)
    slice_optimizer_state(iter([optimizer]), model, prune(model, X, 0.5))
    small = network(4)
    small.load_state_dict(model.state_dict())
    step(model, optimizer)
    step(small, make(small.parameters()))
    for layer in ("a", "b"):  # factored or flat before
        assert torch.equal(getattr(model, layer).weight, getattr(small, layer).weight)


def test_empty_optimizer_state_is_cut():
    model = network()
    optimizer = MAKERS["adam"](model.parameters())
    slice_optimizer_state([optimizer], model, prune(model, X, 0.5))
    small = network(4)
    small.load_state_dict(model.state_dict())
    other = MAKERS["adam"](small.parameters())
    steps(model, optimizer, 2)
    steps(small, other, 2)
    assert equal(model, small)


def test_state_dict_holds_only_tensors_and_builtin_types():
    model = network()
    plan = prune(model, X, 0.5)
    file = io.BytesIO()
    torch.save(plan.state_dict(), file)
    file.seek(0)
    again = ChannelCut.from_state(torch.load(file, weights_only=True))
    other = network()
    again.apply(other)
    other.load_state_dict(model.state_dict())
    assert equal(model, other)
    assert torch.equal(model.eval()(X), other.eval()(X))
    assert (other.width, other.a.out_features, other.norm.num_features) == (4, 8, 8)


def test_two_successive_cuts_make_one_plan():
    model = network()
    first = prune(model, X, 0.25)
    state = copy.deepcopy(first)
    second = prune(model, X, 0.5)
    both = first.compose(second)
    other = network()
    both.apply(other)
    assert equal(model, other)
    assert [len(first.kept["a.bias"][0]), len(second.kept["a.bias"][0])] == [16, 12]
    assert both.removed == {"a": 5}
    assert other.width == model.width == 3
    assert first.kept["a.bias"][0].tolist() == state.kept["a.bias"][0].tolist(), "it is unchanged"


def test_plan_of_another_model_raises_and_changes_nothing():
    plan = prune(network(), X, 0.5)
    for model in (network(6), nn.Linear(6, 3)):
        before = copy.deepcopy(model)
        with pytest.raises(StateError, match="the channel plan is of another model"):
            plan.apply(model)
        assert equal(model, before)
    with pytest.raises(StateError, match="another model"):
        plan.apply(plan_applied(plan))


def plan_applied(plan):
    model = network()
    plan.apply(model)
    return model


def test_unknown_format_raises():
    with pytest.raises(StateError, match="format 9, this version reads"):
        ChannelCut.from_state({"format": 9})


@pytest.mark.parametrize("how", ["class", "model", "file"])
def test_checkpoint_restores_the_small_model(how, tmp_path):
    model = network()
    plan = prune(model, X, 0.5)
    checkpoint = {"state_dict": model.state_dict(), KEY: plan.state_dict()}
    if how == "file":
        torch.save(checkpoint, tmp_path / "last.ckpt")
        found = load(Split, tmp_path / "last.ckpt", width=8)
    else:
        found = load(Split if how == "class" else network(), checkpoint)
    assert equal(found, model)
    assert torch.equal(found.eval()(X), model.eval()(X))
    assert load(Split, checkpoint | {"hyper_parameters": {"width": 8}}).width == 4
    assert equal(load(Split, {"state_dict": network().state_dict()}), network())


def test_weights_that_do_not_fit_raise_and_change_nothing():
    plan, model = prune(network(), X, 0.5), network()
    checkpoint = {"state_dict": network().state_dict(), KEY: plan.state_dict()}
    with pytest.raises(StateError, match="weights are of another model"):
        load(model, checkpoint)
    assert equal(model, network())
    assert model.width == 8


def test_expanded_model_has_zeros_in_removed_channels():
    model = network()
    original = copy.deepcopy(model)
    plan = prune(model, X, 0.5)
    assert plan.matches(model)
    assert not plan.matches(original)
    small = {name: value.clone() for name, value in model.state_dict().items()}
    plan.restore_shapes(model)
    assert not plan.matches(model)
    assert model.width == original.width
    for name, value in model.state_dict().items():
        assert value.shape == original.state_dict()[name].shape
        if name in plan.kept:  # kept rows, then kept columns, counted by hand
            places = torch.ones(value.shape, dtype=torch.bool)
            for dim, keep in plan.kept[name].items():
                places &= keep.view([-1 if d == dim else 1 for d in range(value.ndim)])
            assert torch.equal(value[places], small[name].flatten())
            assert not value[~places].any()
            assert torch.equal(plan.scatter(name, small[name]), value)


def test_channel_count_ignores_float_rounding_of_the_target():
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 2))
    plan = prune(model, X, 0.9, round_to=1)  # 1 - 0.9 is less than 0.1 in binary
    assert plan.removed == {"0": 9}


def test_printed_record_names_groups_and_not_the_tensors():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    text = repr(prune(net, torch.zeros(2, 4), 0.5))
    assert "removed={'0': 4}" in text
    assert "not_prunable=" in text
    assert "tensor(" not in text


def test_undo_follows_a_model_that_was_cast():
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    before = copy.deepcopy(net)
    plan = prune(net, torch.zeros(2, 8), 0.5, include=["0"])
    net.half()
    plan.undo()
    expected = before.half().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in net.state_dict().items())


class Hyper(regrow.ChannelsMixin, pl.LightningModule):
    def __init__(self, width=16):
        super().__init__()
        self.save_hyperparameters()
        self.a, self.b = nn.Linear(4, width), nn.Linear(width, 2)

    def forward(self, x):
        return self.b(self.a(x).relu())


def test_a_function_gets_the_hyper_parameters_that_it_takes(tmp_path):
    net, path = Hyper(width=24), tmp_path / "cut.ckpt"
    plan = prune(net, torch.zeros(2, 4), 0.5)
    content = {"state_dict": net.state_dict(), "regrow_channels": plan.state_dict()}
    torch.save(content | {"hyper_parameters": {"width": 24}}, path)
    for make in (
        Hyper,
        lambda: Hyper(24),
        lambda width: Hyper(width),
        lambda **more: Hyper(**more),
    ):
        assert regrow.load(make, path).a.out_features == net.a.out_features < 24


def test_weights_of_another_class_are_refused_in_load_from_checkpoint(tmp_path):
    class Other(regrow.ChannelsMixin, pl.LightningModule):
        def __init__(self, width=16):
            super().__init__()
            self.fc = nn.Linear(4, 4)

    net, path = Hyper(), tmp_path / "cut.ckpt"
    plan = prune(net, torch.zeros(2, 4), 0.5)
    content = {"state_dict": net.state_dict(), "regrow_channels": plan.state_dict()}
    version = {"pytorch-lightning_version": pl.__version__}
    torch.save(content | version | {"hyper_parameters": {"width": 16}}, path)
    assert Hyper.load_from_checkpoint(path).a.out_features == 8
    with pytest.raises(StateError, match=r"plan is of another model: a[.]weight has shape None"):
        Other.load_from_checkpoint(path)


def test_two_cuts_are_saved_as_one(tmp_path):
    def make():
        return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))

    net, path = make(), tmp_path / "a.safetensors"
    first, second = (prune(net, torch.zeros(2, 4), 0.25) for _ in range(2))
    with pytest.raises(StateError, match=r"plan=first\.compose\(second\)"):
        regrow.export(net, path, plan=first)
    regrow.export(net, path, plan=second)
    with pytest.raises(StateError, match=r"save first\.compose\(second\)"):
        regrow.load(make, path)
    regrow.export(net, path, plan=first.compose(second))
    assert regrow.load(make, path)[0].out_features == net[0].out_features


def on_the_meta_device(make):
    def empty():
        with torch.device("meta"):
            return make()

    return empty


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


def test_a_model_on_the_meta_device_keeps_its_shared_weights_and_dtypes(tmp_path):
    net, path = Tied().half(), tmp_path / "a.safetensors"
    regrow.export(net, path)
    loaded = load(on_the_meta_device(Tied), path)
    assert loaded.head.weight is loaded.embed.weight
    assert torch.equal(loaded.head.weight, net.head.weight.float())


class Grid(nn.Module):
    """A layer, and a buffer that state dicts leave out."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.register_buffer("grid", torch.ones(3), persistent=False)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_model_that_is_built_on_the_meta_device_gets_the_values(tmp_path, suffix):
    net, path = Split().eval(), tmp_path / f"a.{suffix}"
    net.a.weight.requires_grad_(False)
    plan = prune(net, X[:2], 0.5)

    def make():
        model = Split().eval()
        model.a.weight.requires_grad_(False)
        return model

    if suffix == "ckpt":
        torch.save({"state_dict": net.state_dict(), KEY: plan.state_dict()}, path)
    else:
        regrow.export(net, path, plan=plan)
    loaded = load(on_the_meta_device(make), path)
    torch.testing.assert_close(loaded.state_dict(), net.state_dict(), rtol=0, atol=0)
    assert torch.equal(loaded(X), net(X))
    assert [p.requires_grad for p in loaded.parameters()] == [
        p.requires_grad for p in net.parameters()
    ]


def test_a_buffer_on_the_meta_device_that_the_file_lacks_raises(tmp_path):
    regrow.export(Grid(), tmp_path / "a.safetensors")
    with pytest.raises(StateError, match=r"grid is on the meta device.*on another device"):
        load(on_the_meta_device(Grid), tmp_path / "a.safetensors")
    assert torch.equal(load(Grid, tmp_path / "a.safetensors").grid, torch.ones(3))
