# SPDX-License-Identifier: MIT
"""`regrow.calibrate`: masks, refit, undo, and what it refuses."""

import copy
from contextlib import contextmanager

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader

import regrow
from regrow.calibration import calibrate as calibrating
from regrow.calibration.calibrate import calibrated_layers, refit_layers
from regrow.calibration.moments import Data, order_layers, squared_gradients
from regrow.calibration.scores import CRITERIA
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.repeated_forward import MEMORY, RepeatedForward


def data(count=256, shape=(12,), seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )


def images():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(8 * 36, 4),
    )  # fmt: skip


def distance(model, dense, x):
    model.eval()
    with torch.no_grad():
        return float((model(x) - dense.eval()(x)).norm() / dense(x).norm())


@pytest.mark.parametrize("criterion", [*CRITERIA, "magnitude"])
@pytest.mark.parametrize(("make", "shape"), [(perceptron, (12,)), (images, (3, 8, 8))])
def test_a_refit_brings_the_outputs_nearer_to_the_dense_ones(criterion, make, shape):
    x, dense = data(shape=shape), make()
    results = {}
    for refit in (False, True):
        model = copy.deepcopy(dense).train()
        result = regrow.calibrate(model, [x], 0.6, criterion=criterion, refit=refit)
        weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        total = sum(w.numel() for w in weights)
        assert sum(int((w == 0).sum()) for w in weights) == round(0.6 * total)
        assert result.sparsity == pytest.approx(0.6, abs=1 / total)
        assert all(module.training for module in model.modules())
        results[refit] = distance(model, dense, x)
    assert results[True] < results[False]


def test_better_criteria_than_magnitude_without_and_with_refit():
    mix = torch.randn(12, 12, generator=torch.Generator().manual_seed(3))
    x, new, dense = data() @ mix, data(seed=1) @ mix, perceptron()
    found = {}
    for criterion in ("magnitude", "obs"):
        for refit in (False, True):
            model = copy.deepcopy(dense)
            regrow.calibrate(model, [x], 0.7, criterion=criterion, refit=refit)
            found[criterion, refit] = distance(model, dense, new)
    assert found["obs", True] < found["magnitude", True] < found["magnitude", False]
    assert found["obs", False] < found["magnitude", False]


@pytest.mark.parametrize(("make", "shape"), [(perceptron, (12,)), (images, (3, 8, 8))])
def test_layers_refitted_together_are_nearer_to_the_dense_outputs(make, shape):
    x, dense, found = data(shape=shape), make(), {}
    for refit in (True, "joint"):
        model = copy.deepcopy(dense)
        masks = regrow.calibrate(model, x.split(64), 0.6, refit=refit).masks
        found[refit] = distance(model, dense, x)
        assert all(torch.equal(model.get_parameter(n) != 0, mask) for n, mask in masks.items())
    assert found["joint"] < 0.95 * found[True]


@pytest.mark.parametrize("refit", [False, True, "joint"])
def test_undo_gives_the_dense_network_bit_exactly(refit):
    model = images()
    before = copy.deepcopy(model.state_dict())
    result = regrow.calibrate(model, [data(shape=(3, 8, 8))], 0.8, refit=refit)
    assert any(not torch.equal(value, before[n]) for n, value in model.state_dict().items())
    result.undo(model)
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    with pytest.raises(StateError, match="another model"):
        result.undo(nn.Linear(2, 2))


def test_a_layer_whose_kept_weights_suffice_is_fitted_exactly():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    x = data(shape=(4,))
    x[:, 2] = x[:, 0] - 2 * x[:, 1] + 1  # so that one weight is superfluous
    y = model(x)
    keep = torch.tensor([[True, True, False, True]] * 3)
    scores = regrow.Scores({"0.weight": keep.float()})
    masks = regrow.prune(copy.deepcopy(model), 0.25, criterion=scores)
    assert torch.equal(masks["0.weight"], keep)
    regrow.calibrate(model, [x], 0.25, criterion="obs", damping=1e-9)
    assert torch.allclose(model(x), y, atol=1e-4)


def test_masks_hold_in_training_afterwards():
    model = perceptron()
    result = regrow.calibrate(model, [data()], 0.5)
    optimizer = torch.optim.Adam(model.parameters())
    with regrow.enforce(model, result.masks, optimizer):
        model(data()).square().sum().backward()
        optimizer.step()
    assert all(not model.get_parameter(n)[~mask].any() for n, mask in result.masks.items())


@pytest.mark.parametrize("granularity", ["2:4", "block:4x4"])
def test_other_granularities(granularity):
    model, dense, x = perceptron(), perceptron(), data()
    result = regrow.calibrate(model, [x], 0.5, granularity=granularity)
    assert result.sparsity == 0.5
    if granularity == "2:4":
        assert all((m.reshape(-1, 4).sum(1) == 2).all() for m in result.masks.values())
    plain = perceptron()
    regrow.prune(plain, 0.5, granularity=granularity)
    assert distance(model, dense, x) < distance(plain, dense, x)


@pytest.mark.parametrize(("criterion", "batch"), [("obs", 256), ("wanda", 64), ("magnitude", 64)])
def test_random_state_buffers_and_loaders_labels_do_not_matter(criterion, batch):
    model, x = images(), data(shape=(3, 8, 8))
    other = copy.deepcopy(model)
    state = torch.get_rng_state()
    regrow.calibrate(model, [(x, torch.zeros(256))], 0.5, criterion=criterion)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    regrow.calibrate(other, x.split(batch), 0.5, criterion=criterion)
    for (name, one), two in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.allclose(one, two, atol=1e-4), name
    assert torch.equal(model[1].running_mean, images()[1].running_mean)


def test_a_layer_that_is_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.last = nn.Linear(12, 12), nn.Linear(12, 2)

        def forward(self, x):
            return self.last(self.layer(self.layer(x).relu()).relu())

    torch.manual_seed(0)
    model = Twice()
    dense = copy.deepcopy(model)
    result = regrow.calibrate(model, [data()], 0.5)
    assert result.rows["layer.weight"] == 512
    plain = copy.deepcopy(dense)
    regrow.prune(plain, 0.5)
    assert distance(model, dense, data()) < distance(plain, dense, data())


def test_obs_compares_layers_by_their_effect_on_the_outputs():
    torch.manual_seed(0)
    inner, outer = nn.Linear(8, 8, bias=False), nn.Linear(8, 2, bias=False)
    x, small = data(shape=(8,)), 1e-3

    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.other = copy.deepcopy(inner), copy.deepcopy(inner)
            self.outer = copy.deepcopy(outer)

        def forward(self, x):
            return self.outer(self.inner(x) + small * self.other(x))

    masks = regrow.calibrate(Weighted(), [x], 0.4, exclude=["outer"]).masks
    # both have equal weights and inputs, but the second has a thousandth of the effect
    assert masks["other.weight"].sum() < 0.3 * masks["inner.weight"].sum()


def test_rounds_bring_the_outputs_nearer_than_scores_of_the_dense_network_alone():
    x, new, dense = data(512), data(seed=1), perceptron()
    once, rounds = copy.deepcopy(dense), copy.deepcopy(dense)
    regrow.calibrate(rounds, [x], 0.8)
    masks = regrow.calibrate(copy.deepcopy(dense), [x], 0.8, refit=False).masks
    regrow.prune(once, 0.8, criterion=regrow.Scores({n: m.float() for n, m in masks.items()}))
    layers = calibrated_layers(once, None, None)
    refit_layers(once, dense, layers, masks, Data([x]), 1e-3)
    assert distance(rounds, dense, new) < distance(once, dense, new)


def test_a_large_network_is_pruned_in_one_round(monkeypatch):
    x, dense = data(512), perceptron()
    once, large = copy.deepcopy(dense), copy.deepcopy(dense)
    masks = regrow.calibrate(once, [x], 0.8, refit=False).masks  # of scores of the dense network
    weights = sum(mask.numel() for mask in masks.values())
    monkeypatch.setattr("regrow.calibration.calibrate.LARGE", weights)
    again = regrow.calibrate(copy.deepcopy(dense), [x], 0.8).masks
    assert any(not torch.equal(masks[name], again[name]) for name in masks)
    monkeypatch.setattr("regrow.calibration.calibrate.LARGE", weights - 1)
    result = regrow.calibrate(large, [x], 0.8).masks
    assert all(torch.equal(masks[name], result[name]) for name in masks)


def test_outputs_without_gradients_are_refused():
    model = perceptron()
    model.forward = torch.no_grad()(model.forward)
    with pytest.raises(ConfigError, match=r"no gradient with respect to 0.weight.*'magnitude'"):
        regrow.calibrate(model, [data()], 0.5, refit=False)
    assert all(map(torch.equal, model.parameters(), perceptron().parameters()))


def test_squared_gradients_are_those_of_the_jacobian():
    layer, x = nn.Linear(5, 3).requires_grad_(False), data(64, (5,))
    rows = calibrated_layers(layer, ["weight"], None)
    found = squared_gradients(layer, rows, Data([x]), draws=2000)["weight"]
    # z_i = w_i . x: the squares of dz_i/dw_i add up to those of x
    expected = torch.full((1, 3), float(x.square().sum()), dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=0.15)
    assert not layer.weight.requires_grad
    summed = Data([x], total=lambda values: 2 * values)  # as of two ranks with equal inputs
    twice = squared_gradients(layer, rows, summed, draws=2000)["weight"]
    assert torch.allclose(twice, 2 * found)


def test_rows_are_drawn_where_there_are_many():
    model = images()
    result = regrow.calibrate(model, data(shape=(3, 8, 8)).split(64), 0.5, max_rows=100)
    assert result.rows["0.weight"] == 4 * 100


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"criterion": "hessian"}, "criterion must be one of magnitude, obs"),
        ({"criterion": "wanda", "distribution": "global"}, "within a layer only"),
        ({"sparsity": 90}, "write 0.9"),
        ({"refit": "jointly"}, "refit must be True, False or 'joint'"),
        ({"data": []}, "needs a batch or more"),
        ({"samples": 0}, "samples must"),
        ({"criterion": "sparsegpt", "layers": {"0.weight": 0.3}}, "leave layers= out"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_invalid_settings_change_nothing(given, message):
    model = perceptron()
    settings = {"data": [data()], "sparsity": 0.5} | given
    with pytest.raises(ConfigError, match=message):
        regrow.calibrate(model, **settings)
    assert all(map(torch.equal, model.parameters(), perceptron().parameters()))


def test_a_loader_a_datamodule_and_a_tensor_give_the_same():
    x, found = data(192), []

    class Inputs(LightningDataModule):
        def setup(self, stage):
            self.x = x

        def train_dataloader(self):
            return DataLoader(self.x, 128)

    for given in (DataLoader(x, 128), Inputs(), x, x.split(128)):
        model = perceptron()
        regrow.calibrate(model, given, 0.5, criterion="wanda")
        found.append(torch.cat([p.flatten() for p in model.parameters()]))
        free = regrow.free_sparsity(perceptron(), given, 0.5, samples=128)
        assert free.metric == "agreement"
    assert all(torch.equal(found[0], other) for other in found)


def test_inputs_that_are_not_finite():
    x = data()
    x[3, 2] = float("nan")
    with pytest.raises(StateError, match=r"inputs of 0.weight are not finite"):
        regrow.calibrate(perceptron(), [x], 0.5)


def test_an_error_on_another_rank_is_an_error_here():
    with Data([], total=lambda values: values).together():
        pass
    beside = Data([], total=lambda values: values + 1)
    with pytest.raises(StateError, match="another rank"), beside.together():
        pass
    with pytest.raises(ValueError, match="own"), beside.together():
        raise ValueError("own")


def test_a_model_whose_copy_runs_the_original():
    body = perceptron()
    model = nn.Sequential(body)
    model.forward = lambda x: body(x)  # a copy shares the function
    with pytest.raises(StateError, match=r"get \[\] rows .* \[256\] in its dense copy"):
        regrow.calibrate(model, [data()], 0.5)
    assert all(map(torch.equal, body.parameters(), perceptron().parameters()))


def test_layers_that_cannot_be_calibrated_or_do_not_run():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.other = nn.Linear(12, 4), nn.Linear(12, 4)

        def forward(self, x):
            return self.body(x)

    model = Unused()
    with pytest.raises(ConfigError, match=r"other.weight is not used.*exclude=\['other.weight'\]"):
        regrow.calibrate(model, [data()], 0.5)
    assert regrow.calibrate(model, [data()], 0.5, exclude=["other"]).sparsity == 0.5
    with pytest.raises(ConfigError, match=r"weight is no weight that .*exclude=\['weight'\]"):
        regrow.calibrate(nn.Bilinear(4, 4, 2), [data()], 0.5, include=["weight"])


@pytest.mark.parametrize("depth", [2, 8])
def test_a_refit_of_all_layers_runs_each_once_a_batch(depth):
    """But for the first batch, which is counted first, and all in the comparison at the end."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(depth)), nn.ReLU())
    dense, runs = copy.deepcopy(model), {"model": 0, "dense": 0, "behind": 0}
    layers = calibrated_layers(model, None, None)
    masks = regrow.prune(model, 0.5)

    def count(name):
        return lambda *_: runs.update({name: runs[name] + 1})

    for module, name in ((model[0], "model"), (dense[0], "dense"), (model[-1], "behind")):
        module.register_forward_hook(count(name))
    batches = [torch.randn(16, 6) for _ in range(4)]
    assert set(refit_layers(model, dense, layers, masks, Data(batches), 1e-3).values()) == {64}
    # for the layer's inputs, for its outputs with the new weights, and for the comparison
    assert runs == {"model": 4 + 4 + 1 + 4, "dense": 4 + 4 + 4, "behind": 1 + 4}


class Remembers(nn.Module):
    """An activation of a block is kept on the model, which reads it later."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        self.block[1].register_forward_hook(self.remember)
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))

    def remember(self, module, args, output):
        module.kept = output

    def forward(self, x):
        return self.layers(self.block(x) + self.block[1].kept)


class Forgets(Remembers):
    """As a feature extractor does, which takes activations from a store that hooks fill."""

    def forward(self, x):
        vars(self.block[1]).pop("kept", None)
        return super().forward(x)


@pytest.mark.parametrize(
    ("make", "exact"),
    [
        (lambda: nn.Sequential(*(nn.Linear(6, 6) for _ in range(5))), True),
        (lambda: nn.Sequential(nn.LSTM(6, 5, num_layers=2, batch_first=True)), True),
        (lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), True),
        (Remembers, False),
        (Forgets, False),
    ],
)
def test_a_refit_without_repeated_work_gives_what_whole_passes_give(
    monkeypatch, caplog, make, exact
):
    dense, ends, given, most = make(), [], [], [MEMORY]

    class Watched(RepeatedForward):
        def __init__(self, model, memory):
            given.append(memory)
            super().__init__(model, min(memory, most[-1]))

    monkeypatch.setattr(calibrating, "RepeatedForward", Watched)
    batches = [torch.randn(5, 3, 6) for _ in range(3)]
    caplog.set_level("INFO")
    for memory in (MEMORY, 0):
        most.append(memory)
        model = copy.deepcopy(dense)
        layers = order_layers(model, calibrated_layers(model, None, None), batches)
        masks = regrow.prune(model, 0.5)
        refit_layers(model, copy.deepcopy(dense), layers, masks, Data(batches), 1e-3)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert any(not torch.equal(ends[0][name], dense.state_dict()[name]) for name in ends[0])
    assert exact == ("whole forward passes" not in caplog.text)
    assert given == [MEMORY] * 4 if exact else [MEMORY, MEMORY, 0, 0, MEMORY, MEMORY]


@pytest.mark.parametrize(("criterion", "rounds"), [("obs", 4), ("wanda", 1)])
def test_a_terminal_shows_each_layer_that_is_refitted(monkeypatch, criterion, rounds):
    shown = []

    @contextmanager
    def bar(total):
        shown.append(total)
        yield shown.append

    monkeypatch.setattr("regrow.calibration.calibrate.progress_bar", bar)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    regrow.calibrate(net, [torch.randn(64, 8)], 0.5, criterion=criterion)
    assert shown == [2 * rounds, *["refit of 0.weight", "refit of 2.weight"] * rounds]
