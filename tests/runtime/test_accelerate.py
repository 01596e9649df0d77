# SPDX-License-Identifier: MIT
"""Accelerated models compute the same, are restored, and stay dense where nothing is gained."""

import copy
import math

import pytest
import torch
from torch import nn

import regrow
from regrow.profiling.latency import Comparison, Latency, Speedup
from regrow.runtime.sparse_layers import SparseLinear

LATENCY = Latency(1.0, 1.0, 1.0, "cpu", 1, 1, 2)


@pytest.fixture
def ratios(monkeypatch):
    """Ratios that comparisons find, by the class of the compared module; 1.0 for others."""
    found = {}

    def compare(reference, model, example, *, repeats):
        ratio = found.get(type(model), 1.0)
        return Comparison(LATENCY, LATENCY, Speedup(ratio, ratio - 0.1, ratio + 0.1, 1.05))

    monkeypatch.setattr("regrow.runtime.choice.compare_latency", compare)
    monkeypatch.setattr("regrow.runtime.accelerate.compare_latency", compare)
    return found


def sparse_net(sparsity=0.9):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10)).eval()
    regrow.prune(net, sparsity, distribution="uniform")
    return net


def test_faster_layers_are_replaced_and_undo_puts_the_same_objects_back(ratios):
    ratios.update({SparseLinear: 2.0, nn.Sequential: 1.5})
    net, x = sparse_net(), torch.randn(3, 40)
    layers, parameters, state = [*net], [*net.parameters()], copy.deepcopy(net.state_dict())
    with torch.inference_mode():
        expected = net(x)
    result = regrow.accelerate(net, x)
    assert result.gains
    assert [choice.form for choice in result.layers] == ["CSR", "CSR"]
    assert [choice.sparsity for choice in result.layers] == pytest.approx([0.9, 0.9])
    assert [type(layer) for layer in net] == [SparseLinear, nn.ReLU, SparseLinear]
    assert {*net.state_dict()} == {*state}
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())
    with torch.inference_mode():
        assert torch.allclose(net(x), expected, atol=1e-6)
    result.undo()
    assert all(one is other for one, other in zip(net, layers, strict=True))
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    with torch.inference_mode():
        assert torch.equal(net(x), expected)
    result.undo()  # nothing more


def test_a_layer_used_twice_is_replaced_at_both_places(ratios):
    ratios.update({SparseLinear: 2.0, nn.Sequential: 2.0})
    layer = nn.Linear(8, 8)
    net = nn.Sequential(layer, nn.ReLU(), layer).eval()
    regrow.prune(net, 0.9)
    result = regrow.accelerate(net, torch.randn(2, 8))
    assert net[0] is net[2]
    assert isinstance(net[0], SparseLinear)
    result.undo()
    assert net[0] is layer
    assert net[2] is layer


@pytest.mark.parametrize("load", [0.0, 1000.0])
def test_layers_within_noise_stay_dense_and_the_table_says_why(ratios, monkeypatch, load):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    net = sparse_net()
    result = regrow.accelerate(net, torch.randn(3, 40))
    assert not result.gains
    assert [choice.form for choice in result.layers] == ["dense", "dense"]
    assert "CSR within noise: 1.00x (0.90 to 1.10)" in str(result)
    assert "nothing is gained (no layer is faster)" in str(result)
    assert "85 %" in str(result)
    assert ("measured beside other processes (load 1000.0 on" in str(result)) == (load > 0)
    assert isinstance(net[0], nn.Linear)


def test_every_layer_stays_dense_if_the_whole_model_is_not_faster(ratios):
    ratios.update({SparseLinear: 2.0})
    net = sparse_net()
    result = regrow.accelerate(net, torch.randn(3, 40))
    assert not result.gains
    assert [choice.form for choice in result.layers] == ["dense", "dense"]
    assert isinstance(net[0], nn.Linear)
    assert "model: within noise" in str(result)


def test_outputs_beyond_the_tolerance_are_refused(ratios):
    ratios.update({SparseLinear: 2.0, nn.Sequential: 2.0})
    net = sparse_net()
    result = regrow.accelerate(net, torch.randn(3, 40), tolerance=1e-12)
    assert result.layers[0].form == "dense"
    assert "CSR differs by" in result.layers[0].reason


def test_layers_that_are_not_called_stay_dense(ratios):
    ratios.update({SparseLinear: 2.0, nn.Sequential: 2.0})
    net = sparse_net()
    net[0].unused = nn.Linear(4, 4)
    result = regrow.accelerate(net, torch.randn(3, 40))
    assert [c.reason for c in result.layers if c.name == "0.unused"] == ["not called"]


def test_what_is_kept_was_measured_as_faster_and_computes_the_same():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(64, 64, 1), nn.Conv2d(64, 8, 3), nn.Flatten(), nn.LazyLinear(256))
    x = torch.randn(4, 64, 12, 12)
    net(x)
    regrow.prune(net.eval(), 0.97, distribution="uniform")
    with torch.inference_mode():
        expected = net(x)
        result = regrow.accelerate(net, x, repeats=5)
        assert torch.allclose(net(x), expected, atol=1e-5)
    for choice in result.layers:
        assert (choice.form == "dense") == (choice.speedup is None)
        assert choice.speedup is None or choice.speedup.is_faster
    assert result.gains == any(choice.form != "dense" for choice in result.layers)
    result.undo()
    assert [type(layer) for layer in net] == [nn.Conv2d, nn.Conv2d, nn.Flatten, nn.Linear]


def test_models_that_cannot_be_accelerated_raise(ratios):
    ratios.update({SparseLinear: 2.0, nn.Sequential: 2.0})
    net, x = sparse_net(), torch.randn(3, 40)
    with pytest.raises(regrow.StateError, match=r"call model\.eval\(\)"):
        regrow.accelerate(net.train(), x)
    with pytest.raises(regrow.ConfigError, match=r"nn\.Sequential\(layer\)"):
        regrow.accelerate(nn.Linear(4, 4).eval(), torch.zeros(1, 4))
    with pytest.raises(regrow.ConfigError, match="tolerance must be a number above 0"):
        regrow.accelerate(net.eval(), x, tolerance=0)
    regrow.accelerate(net, x)
    with pytest.raises(regrow.StateError, match="accelerated already"):
        regrow.accelerate(net, x)
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(40, 30)).eval()
    with pytest.raises(regrow.StateError, match=r"0\.weight is on the meta device.*to_empty"):
        regrow.accelerate(empty, x)


def test_accelerated_models_refuse_gradients_train_mode_and_new_weights(ratios):
    ratios.update({SparseLinear: 2.0, nn.Sequential: 2.0})
    net, x = sparse_net(), torch.randn(3, 40)
    state = net.state_dict()
    regrow.accelerate(net, x)
    with pytest.raises(regrow.StateError, match="no gradients"):
        net(x)
    with torch.no_grad():
        assert net(x).shape == (3, 10)
        with pytest.raises(regrow.StateError, match=r"call undo\(\) to train"):
            net.train()(x)
    with pytest.raises(regrow.StateError, match=r"call undo\(\), load it"):
        net.load_state_dict(state)


class Around(nn.Module):
    """Two layers, in a forward pass given as a function."""

    def __init__(self, run):
        super().__init__()
        self.fc, self.out, self.run = nn.Linear(40, 30), nn.Linear(30, 10), run

    def forward(self, x):
        return self.run(self, x)


def under_autocast(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        return m.out(m.fc(x).relu())


def slope(m, x):
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        return torch.autograd.grad(m.out(m.fc(x).tanh()).sum(), x)[0]


def by_type(m, x):
    return m.out(m.fc(x).relu() if isinstance(m.fc, nn.Linear) else x[:, :30])


def with_other_outputs(change):
    def run(m, x):
        y = m.out(m.fc(x).relu())
        return y if isinstance(m.fc, nn.Linear) else change(y)

    return run


@pytest.mark.parametrize(
    "run",
    [
        by_type,
        with_other_outputs(lambda y: y * math.nan),
        with_other_outputs(lambda y: (y, y)),
        with_other_outputs(lambda y: y[:1]),
        with_other_outputs(lambda y: y.shape),
    ],
)
def test_a_model_that_computes_something_else_with_sparse_layers_is_dense_again(ratios, run):
    ratios.update({SparseLinear: 2.0, Around: 2.0})
    net, x = Around(run).eval(), torch.randn(3, 40)
    regrow.prune(net, 0.9, distribution="uniform")
    expected, layers = net(x), [net.fc, net.out]
    with pytest.raises(regrow.ConfigError, match=r"is dense again: its outputs differ by .* type"):
        regrow.accelerate(net, x)
    assert [net.fc, net.out] == layers
    assert torch.equal(net(x), expected)


def with_random_numbers(m, x):
    return nn.functional.dropout(m.out(m.fc(x).relu()), 0.5, training=True)


def with_numbers_of_its_own(m, x):
    m.calls = getattr(m, "calls", 0) + 1
    return m.calls * m.out(m.fc(x).relu())


@pytest.mark.parametrize("run", [with_random_numbers, with_numbers_of_its_own])
def test_outputs_that_change_from_call_to_call_are_no_difference(ratios, run):
    ratios.update({SparseLinear: 2.0, Around: 2.0})
    net = Around(run).eval()
    regrow.prune(net, 0.9, distribution="uniform")
    assert regrow.accelerate(net, torch.randn(3, 40)).gains
    assert isinstance(net.fc, SparseLinear)


def test_layers_keep_their_sizes(ratios):
    ratios.update({SparseLinear: 2.0, Around: 2.0})
    net = Around(lambda m, x: m.out(m.fc(x.reshape(-1, m.fc.in_features)).relu())).eval()
    regrow.prune(net, 0.9, distribution="uniform")
    regrow.accelerate(net, torch.randn(3, 40))
    with torch.inference_mode():
        assert isinstance(net.fc, SparseLinear)
        assert net(torch.zeros(2, 40)).shape == (2, net.out.out_features)


@pytest.mark.parametrize("run", [under_autocast, slope])
def test_a_model_that_fails_with_sparse_layers_is_dense_again(monkeypatch, run):
    def compare(reference, model, example, *, repeats):
        if isinstance(model, Around):
            with torch.inference_mode(run is not slope):
                model(example)
        return Comparison(LATENCY, LATENCY, Speedup(2.0, 1.9, 2.1, 1.05))

    monkeypatch.setattr("regrow.runtime.choice.compare_latency", compare)
    monkeypatch.setattr("regrow.runtime.accelerate.compare_latency", compare)
    net, x = Around(run).eval(), torch.randn(3, 40)
    regrow.prune(net, 0.9, distribution="uniform")
    expected, layers = net(x), [net.fc, net.out]
    for _ in range(2):
        with pytest.raises(regrow.ConfigError, match="with sparse layers, and is dense again"):
            regrow.accelerate(net, x)
        assert [net.fc, net.out] == layers
        assert torch.equal(net(x), expected)
