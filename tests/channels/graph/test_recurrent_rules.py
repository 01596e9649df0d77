# SPDX-License-Identifier: MIT
"""Recurrent layers lose hidden units, and compute what equations in NumPy say they should."""

import copy

import numpy as np
import numpy_recurrent
import pytest
import torch
from cut_oracle import Net, check, distinct, noise
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from regrow.channels import groups, prune
from regrow.channels.cut.channel_cut import ChannelCut
from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.groups import groups_from_trace
from regrow.channels.graph.trace import trace
from regrow.utils.errors import ConfigError

ROWS = torch.zeros(2, 5, 6, dtype=torch.float64)
ROW = torch.zeros(2, 6, dtype=torch.float64)


def net(kind, hidden=8, out=None, **more):
    """A linear layer of five features, a recurrent layer, an output of three numbers."""
    layer = getattr(nn, kind)(5, hidden, batch_first=True, **more)
    width = (out or hidden) * (1 + more.get("bidirectional", False))
    run = lambda m, x, *state: m.c(m.d(m.a(x), *state)[0])  # noqa: E731
    return Net(run, a=nn.Linear(6, 5), d=layer, c=nn.Linear(width, 3))


LAYERS = [
    ("LSTM", {}),
    ("GRU", {}),
    ("RNN", {}),
    ("LSTM", {"num_layers": 2}),
    ("GRU", {"bidirectional": True}),
    ("LSTM", {"num_layers": 3, "bidirectional": True, "dropout": 0.1}),
    ("GRU", {"num_layers": 2, "bidirectional": True, "bias": False}),
    ("LSTM", {"proj_size": 4, "hidden": 12}),
    ("LSTM", {"proj_size": 4, "hidden": 12, "num_layers": 2, "bidirectional": True}),
    ("LSTM", {"proj_size": 1, "hidden": 4, "bias": False}),
]


@pytest.mark.parametrize(("kind", "more"), LAYERS, ids=[f"{k}-{m}" for k, m in LAYERS])
def test_units_are_cut_as_by_hand_in_numpy(kind, more):
    hidden, projected = more.get("hidden", 8), more.get("proj_size", 0)
    model = distinct(net(kind, out=projected, **more))
    before = {name: p.detach().numpy().copy() for name, p in model.d.named_parameters()}
    features = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    x = noise(ROWS)
    plan = prune(model, x, 0.4, distribution="uniform", round_to=1)
    groups_of = {"d": hidden, "a": 5} | ({"d#2": projected} if projected > 1 else {})
    assert {*plan.removed} == {*groups_of}

    units = plan.kept["d.weight_ih_l0"][0][:hidden].nonzero().flatten().numpy()
    inputs = plan.kept["a.weight"][0].nonzero().flatten().numpy()
    outputs = None
    if projected:
        outputs = np.arange(projected)
        if projected > 1:
            outputs = plan.kept["d.weight_hr_l0"][0].nonzero().flatten().numpy()
    small = numpy_recurrent.cut_by_hand(kind, before, hidden, units, outputs, projected)
    for name in small:
        if name.startswith("weight_ih_l0"):
            small[name] = small[name][:, inputs]
    width = projected or hidden
    read = units if outputs is None else outputs
    columns = np.concatenate(
        [d * width + read for d in range(1 + more.get("bidirectional", False))]
    )
    for example, found in zip(x.numpy(), model(x).detach().numpy(), strict=True):
        given = example @ features["a.weight"][inputs].T + features["a.bias"][inputs]
        states = numpy_recurrent.run(kind, small, given)
        expected = states @ features["c.weight"][:, columns].T + features["c.bias"]
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)

    layer = model.d
    assert (layer.input_size, layer.hidden_size) == (len(inputs), len(units))
    assert layer.proj_size == (len(outputs) if projected else 0)
    plain = getattr(nn, kind)(
        layer.input_size,
        layer.hidden_size,
        **{k: v for k, v in more.items() if k not in ("hidden", "proj_size")},
        **({"proj_size": layer.proj_size} if projected else {}),
        batch_first=True,
    ).double()
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(plain.eval()(model.a(x))[0], layer(model.a(x))[0])

    fresh = distinct(net(kind, out=projected, **more))
    ChannelCut.from_state(plan.state_dict()).apply(fresh)
    assert torch.equal(fresh(x), model(x))
    plan.undo()
    assert (layer.input_size, layer.hidden_size, layer.proj_size) == (5, hidden, projected)
    assert all(np.array_equal(p.detach(), features[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize(("kind", "more"), LAYERS, ids=[f"{k}-{m}" for k, m in LAYERS])
def test_units_are_masked_and_cut_alike(kind, more):
    hidden, projected = more.get("hidden", 8), more.get("proj_size", 0)
    sizes = {"a": 5, "d": hidden} | ({"d#2": projected} if projected > 1 else {})
    check(net(kind, out=projected, **more), ROWS, sizes)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_cells_lose_units_in_a_loop_whose_first_state_is_sized_by_an_attribute(kind):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.width = 8
            self.a, self.cell = nn.Linear(6, 5), getattr(nn, f"{kind}Cell")(5, 8)
            self.c = nn.Linear(8, 3)

        def forward(self, x):
            h = x.new_zeros(len(x), self.width)
            state = (h, h) if kind == "LSTM" else h
            for step in self.a(x).unbind(1):
                state = self.cell(step, state)
            return self.c(state[0] if kind == "LSTM" else state)

    model = nn.Sequential(Loop(), nn.Linear(3, 2))
    _, small = check(model, ROWS, {"0.a": 5, "0.cell": 8, "0.c": 3})
    assert (small[0].cell.input_size, small[0].cell.hidden_size, small[0].width) == (3, 4, 4)
    reference, kept = copy.deepcopy(small), small[0].cell
    weights = {f"{n}_l0": p.detach().numpy() for n, p in kept.named_parameters()}
    x = noise(ROWS)
    for example, found in zip(x, small(x), strict=True):
        given = reference[0].a(example).detach().numpy()
        last = torch.tensor(numpy_recurrent.run(kind, weights, given)[-1])
        assert torch.allclose(found, reference[1](reference[0].c(last)))


def test_first_state_made_by_a_layer_is_cut_with_the_units():
    def run(m, x):
        h = m.h(x[:, 0]).unsqueeze(0)
        return m.c(m.d(x, h)[0])

    layers = {"h": nn.Linear(6, 8), "d": nn.GRU(6, 8, batch_first=True), "c": nn.Linear(8, 3)}
    check(Net(run, **layers), ROWS, {"h": 8})


def test_first_state_that_is_an_input_fixes_the_units_and_says_so():
    state = (torch.zeros(1, 2, 8).double(), torch.zeros(1, 2, 8).double())

    model = Net(
        lambda m, x, h, c: m.c(m.d(m.a(x), (h, c))[0]),
        a=nn.Linear(6, 5),
        d=nn.LSTM(5, 8, batch_first=True),
        c=nn.Linear(8, 3),
    ).double()
    found = {g.name: g.fixed_reason for g in groups(model, (ROWS, *state))}
    assert found["a"] is None
    assert found["d"] == "recurrent layer: a state or weight of fixed length"


def test_learned_first_state_is_cut_with_the_units():
    def run(m, x):
        return m.c(m.d(x, m.h.expand(-1, len(x), -1).contiguous())[0])

    layers = {"d": nn.RNN(6, 8, batch_first=True), "c": nn.Linear(8, 3), "h": torch.zeros(1, 1, 8)}
    check(Net(run, **layers), ROWS, {"d": 8})


def test_last_state_of_both_directions_is_read_by_a_linear_layer():
    def run(m, x):
        _, (h, _) = m.d(m.a(x))
        return m.c(torch.cat([h[-2], h[-1]], 1))

    layer = nn.LSTM(5, 8, 2, batch_first=True, bidirectional=True)
    layers = {"a": nn.Embedding(9, 5), "d": layer, "c": nn.Linear(16, 3)}
    _, small = check(Net(run, **layers), torch.arange(8).view(2, 4), {"a": 5, "d": 8})
    assert (small.a.embedding_dim, small.d.input_size) == (3, 3)


def test_layer_norm_between_recurrent_layers_is_approximate():
    def run(m, x):
        return m.c(m.e(m.n(m.d(x)[0]))[0])

    layers = {
        "d": nn.LSTM(6, 8, batch_first=True),
        "n": nn.LayerNorm(8),
        "e": nn.GRU(8, 4, batch_first=True),
        "c": nn.Linear(4, 3),
    }
    check(Net(run, **layers), ROWS, {"d": 8, "e": 4}, approximate=["d"])


def test_relu_networks_lose_units():
    check(net("RNN", num_layers=2, nonlinearity="relu"), ROWS, {"a": 5, "d": 8})


@pytest.mark.filterwarnings("ignore:.*(deprecated|weight_norm|spectral_norm)")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
def test_recurrent_layers_with_computed_weights_lose_units(wrap, name):
    model = distinct(net("LSTM"))
    wrap(model.d, name)
    plan = prune(model, noise(ROWS), 0.4, distribution="uniform", round_to=1)
    assert plan.removed == {"a": 2, "d": 4}
    assert plan.error < 1e-12
    assert (model.d.input_size, model.d.hidden_size) == (3, 4)


def test_steps_are_never_cut():
    model = nn.Sequential(nn.Conv1d(6, 6, 1), nn.LSTM(5, 8, batch_first=True))
    first = {g.name: g.fixed_reason for g in groups(model, torch.zeros(2, 6, 5))}["0"]
    assert first == "recurrent layer: a step or an example"


def test_projection_stays_smaller_than_the_units():
    model = distinct(net("LSTM", hidden=6, out=5, proj_size=5))
    traced = trace(model, ROWS)
    found = TrialCut(model, traced, groups_from_trace(traced, model), ROWS).find_valid(
        {"d": torch.arange(3), "a": torch.arange(2)}
    )
    message = "an LSTM of 3 units cannot have proj_size=5: it must be smaller"
    assert found.failed == {"d": message}
    assert (model.d.input_size, model.d.hidden_size) == (3, 6)


class Packed(nn.Module):
    """Packs its sequences; with `padded`, not while it is exported."""

    def __init__(self, kind, padded):
        super().__init__()
        self.padded, self.a = padded, nn.Linear(6, 5)
        self.d = getattr(nn, kind)(5, 8, 2, batch_first=True, bidirectional=True)
        self.c = nn.Linear(16, 3)

    def forward(self, x):
        x = self.a(x)
        if self.padded and torch.compiler.is_exporting():
            return self.c(self.d(x)[0])
        packed = pack_padded_sequence(x, [5, 3, 2][: len(x)], batch_first=True)
        return self.c(pad_packed_sequence(self.d(packed)[0], batch_first=True)[0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_packed_sequences_are_cut_after_the_change_that_the_error_asks_for(kind):
    with pytest.raises(ConfigError, match=r"skip pack_padded_sequence, if any, while torch"):
        groups(Packed(kind, padded=False).double(), ROWS)
    check(Packed(kind, padded=True), ROWS, {"a": 5, "d": 8})


def read_by_slices(m, x):
    y, _ = m.d(x)
    return m.c(torch.cat([y[:, -1, : m.k], y[:, 0, m.k :]], 1))


def read_by_views(m, x):
    _, (h, _) = m.d(x)
    last = h.view(2, 2, len(x), m.k)[-1].transpose(0, 1)
    return m.c(last.reshape(len(x), 2 * m.k))


def start_from_zeros(m, x):
    h = torch.zeros(4, len(x), m.k, dtype=x.dtype)
    return m.c(m.d(x, (h, h))[0].view(len(x), -1, 2 * m.k).mean(1))


@pytest.mark.parametrize("run", [read_by_slices, read_by_views, start_from_zeros])
def test_sizes_that_the_code_around_a_layer_reads_are_updated(run):
    layer = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True)
    model = Net(run, d=layer, c=nn.Linear(16, 3))
    model.k = 8
    _, small = check(model, ROWS, {"d": 8})
    assert small.k == small.d.hidden_size == 4
