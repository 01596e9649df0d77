# SPDX-License-Identifier: MIT
"""Calibration of networks that share, transform or skip layers, and of inputs that do not vary."""

import copy
from collections import UserDict

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import regrow
from regrow.calibration.sequence_rows import RecurrentRows
from regrow.utils.errors import ConfigError, StateError


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(model, dense, *inputs):
    """Squared error of the outputs, relative to their variance."""
    with torch.no_grad():
        goal = dense.eval()(*inputs)
        return float((model.eval()(*inputs) - goal).square().mean() / goal.var())


class Query(nn.Module):
    """A layer with a bias that only gets a parameter, the same for all examples."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 16))
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.c(torch.relu(self.a(self.query) + self.b(x)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_weights_of_constant_inputs_stay_and_the_bias_makes_up_for_those_that_go(seed):
    torch.manual_seed(seed)
    dense, x = Query(), draw(600, 8, seed=seed)
    model, raw = copy.deepcopy(dense), copy.deepcopy(dense)
    masks = regrow.calibrate(model, x.split(100), 0.5, criterion="magnitude").masks
    regrow.prune(raw, 0.5)
    assert torch.equal(model.a.weight, raw.a.weight)
    assert torch.allclose(model.a(model.query), dense.a(dense.query), atol=1e-5)
    assert masks.sparsity == pytest.approx(0.5, abs=1e-3)
    assert error(model, dense, x) < error(raw, dense, x)


def test_one_sample_many_times():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    model, x = copy.deepcopy(dense), draw(1, 8)
    regrow.calibrate(model, [x.repeat(7, 1), x.repeat(3, 1)], 0.5)
    assert torch.allclose(model(x), dense(x), atol=1e-4)


@pytest.mark.parametrize("criterion", ["magnitude", "obs"])
def test_layers_behind_one_that_has_died(criterion):
    for seed in range(20, 30):
        torch.manual_seed(seed)
        sizes = (12, 20), (20, 15), (15, 5)
        layers = [layer for size in sizes for layer in (nn.Linear(*size), nn.ReLU())]
        model = nn.Sequential(*layers[:-1])
        model[0].weight.data.zero_()
        model[0].bias.data.fill_(0.5)
        regrow.calibrate(model, draw(600, 12).split(100), 0.9, criterion=criterion)
        assert max(float(p.detach().abs().max()) for p in model.parameters()) < 10


def test_no_damping_with_fewer_examples_than_inputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 4))
    result = regrow.calibrate(model, [draw(10, 30)], 0.5, damping=0)
    assert result.sparsity == 0.5
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("damping", [-1, float("nan"), True, "much"])
def test_a_damping_that_is_none(damping):
    model = nn.Linear(4, 4)
    for act in (
        lambda: regrow.calibrate(model, [draw(8, 4)], 0.5, damping=damping),
        lambda: regrow.repair(model, model, {}, [draw(8, 4)], damping=damping),
        lambda: regrow.free_sparsity(model, [draw(8, 4)], damping=damping),
        lambda: regrow.PostTrainingPruning(0.5, damping=damping),
    ):
        with pytest.raises(ConfigError, match="damping"):
            act()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.middle, self.decode = (nn.Linear(10, 10) for _ in range(3))
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.decode(self.middle(self.encode(x).relu()))


def test_a_weight_that_two_layers_share():
    model, x = Tied(), draw(256, 10)
    with pytest.raises(ConfigError, match=r"encode\.weight.*shared.*exclude=\['encode\.weight'\]"):
        regrow.calibrate(model, [x], 0.5)
    shared = model.encode.weight.detach().clone()
    result = regrow.calibrate(model, [x], 0.5, exclude=["encode.weight"])
    assert [*result.masks] == ["middle.weight"]
    assert torch.equal(model.decode.weight, shared)


def test_a_repair_leaves_a_shared_weight_as_it_was_pruned():
    dense, x = Tied(), draw(256, 10)
    model = copy.deepcopy(dense)
    masks = regrow.prune(model, 0.5)
    pruned = model.encode.weight.detach().clone()
    done = regrow.repair(model, dense, masks, [x], at_least=2.0, measure=lambda m: error(m, m, x))
    assert {"refit", "joint"} <= {*done.measures}
    masks = regrow.prune(model, 0.5)
    regrow.repair(model, dense, masks, [x], at_least=1.0, measure=lambda m: 1 - error(m, dense, x))
    assert torch.equal(model.encode.weight == 0, pruned == 0)


class Scaled(nn.Linear):
    """A layer with an equalized learning rate (StyleGAN)."""

    def forward(self, x):
        return F.linear(x, self.weight * 0.3, self.bias * 0.01)


class Rebuilt(nn.Linear):
    """As torch's, in its own words."""

    def forward(self, x):
        return F.linear(x, self.weight, bias=self.bias)


class Padded(nn.Conv2d):
    """Pads its inputs by itself, as TensorFlow does."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


def test_a_layer_that_transforms_its_weight():
    torch.manual_seed(0)
    dense, x = nn.Sequential(Scaled(8, 16), nn.ReLU(), nn.Linear(16, 4)), draw(64, 8)
    for criterion in ("obs", "wanda", "magnitude"):
        with pytest.raises(ConfigError, match=r"Scaled .*own forward.*exclude=\['0\.weight'\]"):
            regrow.calibrate(copy.deepcopy(dense), [x], 0.5, criterion=criterion)
    model = copy.deepcopy(dense)
    masks = regrow.prune(model, 0.5)
    first = model[0].weight.detach().clone()
    regrow.repair(model, dense, masks, [x], at_least=1.0, measure=lambda m: 1 - error(m, dense, x))
    assert torch.equal(model[0].weight == 0, first == 0)


def test_layers_with_an_own_forward_that_use_their_weight_itself():
    torch.manual_seed(0)
    layers = Padded(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), Rebuilt(8 * 16, 4)
    dense, x = nn.Sequential(*layers), draw(256, 3, 8, 8)
    model, raw = copy.deepcopy(dense), copy.deepcopy(dense)
    regrow.calibrate(model, [x], 0.6, criterion="magnitude")
    regrow.prune(raw, 0.6)
    assert error(model, dense, x) < 0.6 * error(raw, dense, x)


class Sometimes(nn.Module):
    """Uses a layer for some batches only, not for the first."""

    def __init__(self):
        super().__init__()
        self.first, self.rare, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(self.rare(x).relu() if len(x) == 64 else x)


@pytest.mark.parametrize("criterion", ["obs", "wanda", "magnitude"])
def test_a_layer_that_some_batches_use(criterion):
    torch.manual_seed(0)
    dense, batches = Sometimes(), [draw(32, 8), draw(64, 8, seed=1), draw(64, 8, seed=2)]
    model, raw = copy.deepcopy(dense), copy.deepcopy(dense)
    result = regrow.calibrate(model, batches, 0.5, criterion=criterion)
    assert result.rows == {"first.weight": 160, "rare.weight": 128, "last.weight": 160}
    for name, mask in result.masks.items():
        raw.get_parameter(name).data.mul_(mask)
    assert error(model, dense, batches[1]) < error(raw, dense, batches[1])
    masks = regrow.prune(raw, 0.5)
    before = raw.rare.bias.detach().clone()
    regrow.repair(
        raw, dense, masks, batches, at_least=1.0, measure=lambda m: 1 - error(m, dense, batches[1])
    )
    assert not torch.equal(raw.rare.bias, before)


class Experts(nn.Module):
    """Each example goes to the expert with the largest gate."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(8, 3), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        chosen, out = self.gate(x).argmax(1), torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            out[chosen == k] = expert(x[chosen == k])
        return out


def test_experts_that_get_other_examples_than_in_the_dense_network():
    torch.manual_seed(0)
    model, x = Experts(), draw(512, 8)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StateError, match=r"experts\.0\.weight.*rows.*routing.*exclude"):
        regrow.calibrate(model, [x], 0.6, criterion="magnitude")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Lazy(nn.Module):
    """Makes a buffer when it first runs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        if not hasattr(self, "places"):
            self.register_buffer("places", torch.ones(8))
        return self.layer(x * self.places)


def test_a_buffer_that_the_first_pass_makes():
    assert regrow.calibrate(Lazy(), [draw(64, 8)], 0.5).sparsity == 0.5


@pytest.mark.parametrize("criterion", ["obs", "wanda", "magnitude"])
def test_an_encoder_with_a_padding_mask(criterion):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    dense = nn.TransformerEncoder(layer, 2).eval()
    mask = torch.zeros(16, 5, dtype=torch.bool)
    mask[:, 3:] = True
    batch = {"src": draw(16, 5, 8), "src_key_padding_mask": mask}
    for refit in (True, "joint"):
        model = copy.deepcopy(dense)
        regrow.calibrate(model, [batch], 0.5, criterion=criterion, refit=refit)
        assert all(bool(p.isfinite().all()) for p in model.parameters())


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x, table):
        return self.layer(x) + table.mean()


@pytest.mark.parametrize("names", [("x", "table"), ("table", "x")])
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_the_order_of_named_inputs_does_not_count(names, kind):
    given = {"x": draw(16, 8), "table": draw(1024, 2)}
    batches = [kind((name, given[name]) for name in names)] * 100
    assert regrow.calibrate(Named(), batches, 0.5).rows == {"layer.weight": 1024}


def test_a_cell_whose_arguments_are_named_in_another_order():
    cell, x, state = nn.GRUCell(6, 6), draw(5, 6), draw(5, 6, seed=1)
    for key, rows in (("weight_ih", x), ("weight_hh", state)):
        found = RecurrentRows(key, cell).inputs((), {"hx": state, "input": x})
        assert torch.equal(found[0], rows)


def test_float16_goes_with_no_joint_refit():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).half()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match=r"float16: call model\.float\(\)"):
        regrow.calibrate(model, [draw(64, 8).half()], 0.5, criterion="magnitude", refit="joint")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_labels_of_a_dict_are_left_out():
    x, table = draw(64, 8), draw(64, 2)
    found = []
    for labels in ({}, {"labels": torch.zeros(64)}):
        torch.manual_seed(0)
        model = Named()
        regrow.calibrate(model, [{"x": x, "table": table} | labels], 0.5)
        found.append(model.layer.weight)
    assert torch.equal(*found)
    with pytest.raises(ConfigError, match="Named takes x, table, a batch has image, label: give"):
        regrow.calibrate(Named(), [{"image": x, "label": table}], 0.5)


class Fitted(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 4)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, _):
        inputs, labels = batch if isinstance(batch, list | tuple) else (batch["x"], batch["label"])
        return F.cross_entropy(self(inputs), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: regrow.PostTrainingPruning(0.5, batches=4),
        lambda: regrow.MagnitudePruning(0.5, schedule="one_shot", begin=0, refit=True),
    ],
)
def test_training_batches_may_be_dicts_with_labels(make):
    x, labels = draw(4, 16, 8), torch.randint(4, (4, 16))
    found = []
    for batches in (
        [*zip(x, labels, strict=True)],
        [{"x": a, "label": b} for a, b in zip(x, labels, strict=True)],
    ):
        module = Fitted()
        trainer = pl.Trainer(
            max_epochs=1, callbacks=[make()], accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, DataLoader(batches, batch_size=None))
        found.append(module.layer.weight)
    assert torch.equal(*found)
