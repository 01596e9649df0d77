# SPDX-License-Identifier: MIT
"""SynFlow against its formula: products of matrices of |w|, and no layer ever emptied."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import regrow
from regrow.app.models.cifar_vgg import VGG
from regrow.criteria.synflow import synflow
from regrow.utils.errors import ConfigError, StateError


def chain(*widths, activation=nn.ReLU, bias=True):
    torch.manual_seed(0)
    layers = []
    for one, other in itertools.pairwise(widths):
        layers += [nn.Linear(one, other, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


def flow_by_hand(matrices):
    """|w| times what flows in from ones, times what flows on to the outputs."""
    found, sizes = [], [np.abs(m) for m in matrices]
    for place, matrix in enumerate(sizes):
        before = np.ones(sizes[0].shape[1])
        for earlier in sizes[:place]:
            before = earlier @ before
        after = np.ones(sizes[-1].shape[0])
        for later in reversed(sizes[place + 1 :]):
            after = after @ later
        found.append(after[:, None] * matrix * before[None, :])
    return found


def algorithm(matrices, sparsity, rounds):
    """The paper's rounds in NumPy; returns which weights stay."""
    kept = [np.ones(m.shape, bool) for m in matrices]
    total = sum(m.size for m in matrices)
    for k in range(1, rounds + 1):
        scores = flow_by_hand([m * keep for m, keep in zip(matrices, kept, strict=True)])
        for score in scores:
            score[np.unravel_index(score.argmax(), score.shape)] = np.inf  # one stays in any case
        flat = np.concatenate([score.ravel() for score in scores])
        keep = np.zeros(total, bool)
        count = total - round((1 - (1 - sparsity) ** (k / rounds)) * total)
        keep[np.argsort(-flat, kind="stable")[:count]] = True
        parts = np.split(keep, np.cumsum([m.size for m in matrices])[:-1])
        kept = [part.reshape(m.shape) for part, m in zip(parts, matrices, strict=True)]
    return kept


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid])
def test_scores_equal_those_of_the_linearized_network(activation):
    net = chain(5, 7, 4, 3, activation=activation)
    scores = synflow(net, torch.randn(2, 5), 0.0, rounds=1)
    matrices = [m.weight.detach().double().numpy() for m in net if isinstance(m, nn.Linear)]
    for score, wanted in zip(scores.values(), flow_by_hand(matrices), strict=True):
        np.testing.assert_allclose(score.numpy(), wanted, rtol=1e-10)


@pytest.mark.parametrize("rounds", [1, 5, 40])
def test_rounds_follow_the_schedule_of_the_paper(rounds):
    net = chain(20, 30, 16, 10)
    matrices = [m.weight.detach().double().numpy() for m in net if isinstance(m, nn.Linear)]
    scores = synflow(net, torch.zeros(1, 20), 0.9, rounds=rounds)
    masks = regrow.prune(net, 0.9, criterion=scores)
    for mask, wanted in zip(masks.values(), algorithm(matrices, 0.9, rounds), strict=True):
        np.testing.assert_array_equal(mask.numpy(), wanted)


class Branches(nn.Module):
    """Batch norm, a skip connection, functional and in-place activations."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 4)
        nn.init.zeros_(self.norm.weight)  # as a residual network may begin

    def forward(self, x):
        x = nn.functional.relu_(self.first(x))
        x = (x + self.norm(self.second(x))).relu()
        return nn.functional.log_softmax(self.last(x.mean((2, 3))), 1)


def test_score_sums_are_equal_in_every_layer_of_a_chain():
    """A layer's scores sum up to R; those around a skip connection to R together."""
    net = VGG(depth=11, width=4)
    sums = [float(s.sum()) for s in synflow(net, torch.zeros(1, 3, 32, 32), 0.0, rounds=1).values()]
    assert sums == pytest.approx([sums[0]] * len(sums), rel=1e-9)
    torch.manual_seed(0)
    scores = synflow(Branches(), torch.zeros(1, 3, 8, 8), 0.0, rounds=1)
    first, second, last = (float(s.sum()) for s in scores.values())
    assert first == pytest.approx(last, rel=1e-9)
    assert 0 < second < last


@pytest.mark.parametrize(
    ("depth", "width"),
    [
        (16, 8),
        pytest.param(19, 16, marks=pytest.mark.slow),
        pytest.param(16, 64, marks=pytest.mark.slow),
    ],
)
def test_no_layer_of_vgg_is_emptied_at_a_thousandth(depth, width):
    torch.manual_seed(0)
    net = VGG(depth=depth, width=width)
    twin, batch = copy.deepcopy(net), torch.randn(8, 3, 16, 16)
    scores = synflow(net, torch.zeros(1, 3, 16, 16), 0.999)
    masks = regrow.prune(net, 0.999, criterion=scores)
    assert masks.pruned == round(0.999 * masks.total)
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    assert min(kept.values()) > 1, kept  # more than the one that every method has to leave
    alive = synflow(net, torch.zeros(1, 3, 16, 16), 0.0, rounds=1, kept=masks)
    assert all(float(score.max()) > 0 for score in alive.values()), "it is cut in two"

    def loss(model, inputs):
        return nn.functional.cross_entropy(model(inputs), torch.arange(8) % 10)

    by_gradient = regrow.prune(twin, 0.999, criterion=regrow.snip(twin, [batch], loss))
    assert min(int(mask.sum()) for mask in by_gradient.values()) == 1, "SNIP collapses here"


def test_scores_of_deep_networks_do_not_overflow():
    """In single precision this flow would be infinite."""
    net = chain(*[64] * 120, activation=nn.Identity, bias=False)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    sums = [float(score.sum()) for score in synflow(net, torch.ones(1, 64), 0.0, rounds=1).values()]
    assert torch.tensor(sums[0], dtype=torch.float64).to(torch.float32).isinf()
    assert sums == pytest.approx([sums[0]] * len(sums), rel=1e-6)


def test_scores_beyond_float64_raise():
    net = chain(8, 8, 8)
    for layer in (net[0], net[2]):
        nn.init.constant_(layer.weight, 1e38)
    net.double()
    net[0].weight.data.fill_(1e300)
    with pytest.raises(StateError, match=r"through 0\.weight exceeds double precision"):
        synflow(net, torch.ones(1, 8), 0.5)


def test_layers_without_flow_raise_with_their_names():
    net = Branches()
    net.idle = nn.Linear(4, 4)
    with pytest.raises(ConfigError, match=r"nothing flows through idle.weight.*exclude=\['idle"):
        synflow(net, torch.ones(1, 3, 8, 8), 0.5)


def test_the_model_is_not_changed():
    net = Branches()
    before = copy.deepcopy(net.state_dict())
    synflow(net, torch.zeros(1, 3, 8, 8), 0.9, rounds=3)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.training
    assert all(p.grad is None and p.dtype == torch.float32 for p in net.parameters())


def test_scoring_continues_from_given_masks():
    net = chain(20, 30, 16, 10)
    half = regrow.prune(net, 0.5)
    scores = synflow(net, torch.zeros(1, 20), 0.9, rounds=10, kept=half)
    for name, mask in half.items():
        assert bool((scores[name][~mask] == -1).all())
    pruned = sum(int((score == -1).sum()) for score in scores.values())
    assert pruned / half.total == pytest.approx(1 - 0.5 * 0.2**0.9, abs=1e-2)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"sparsity": 90}, "sparsity must be in"), ({"rounds": 0}, "rounds must be")],
)
def test_wrong_settings_raise(change, words):
    with pytest.raises(ConfigError, match=words):
        synflow(chain(2, 2), torch.ones(1, 2), **({"sparsity": 0.5} | change))


def recurrent_flow(layers, steps):
    """R of h_t = |W| x_t + |U| h_(t-1) for ones, summed over the outputs and the last state."""
    inputs, last = [torch.ones(layers[0][0].shape[1], dtype=torch.float64)] * steps, []
    for into, within in layers:
        states = [torch.zeros(len(within), dtype=torch.float64)]
        for x in inputs:
            states.append(into @ x + within @ states[-1])
        inputs = states[1:]
        last.append(states[-1])
    return torch.stack(inputs).sum() + torch.stack(last).sum()


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_recurrent_layers_have_no_biases_and_no_activations(nonlinearity):
    torch.manual_seed(0)
    net = nn.RNN(3, 4, 2, nonlinearity=nonlinearity, batch_first=True)
    scores = synflow(net, torch.zeros(2, 5, 3), 0.0, rounds=1)
    weights = {name: p.detach().double().abs() for name, p in net.named_parameters()}
    weights = {name: weights[name].requires_grad_() for name in scores}
    pairs = [(weights[f"weight_ih_l{k}"], weights[f"weight_hh_l{k}"]) for k in (0, 1)]
    recurrent_flow(pairs, 5).backward()
    for name, score in scores.items():
        torch.testing.assert_close(score, weights[name].grad * weights[name].detach())


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_recurrent_cells_have_no_biases_and_no_activations(nonlinearity):
    cell = nn.RNNCell(3, 4, nonlinearity=nonlinearity)
    cell.weight_hh.data.fill_(2.0)
    given = (torch.zeros(1, 3), torch.zeros(1, 4))  # both replaced by ones
    scores = synflow(cell, given, 0.0, rounds=1)
    assert torch.equal(scores["weight_hh"], torch.full((4, 4), 2.0, dtype=torch.float64))
    torch.testing.assert_close(scores["weight_ih"], cell.weight_ih.detach().double().abs())


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "LSTMCell", "GRUCell", "MultiheadAttention"])
def test_biases_of_all_layers_are_zero(kind):
    """Their values make no difference."""

    class Call(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            known = {} if kind.endswith("Cell") else {"batch_first": True}
            if kind == "MultiheadAttention":
                known["add_bias_kv"] = True
            self.layer = getattr(nn, kind)(4, 2, **known)

        def forward(self, x):
            if kind == "MultiheadAttention":
                return self.layer(x, x, x)
            if not kind.endswith("Cell"):
                return self.layer(x)
            state = x[0, :, :2]
            return self.layer(x[0], (state, state) if kind == "LSTMCell" else state)

    found = []
    for value in (0.0, 3.0):
        net = Call()
        for name, parameter in net.named_parameters():
            if "bias" in name:
                parameter.data.fill_(value)
        found.append(synflow(net, torch.zeros(1, 5, 4), 0.0, rounds=1))
    for name, score in found[0].items():
        assert torch.equal(score, found[1][name])
