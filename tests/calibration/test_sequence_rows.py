# SPDX-License-Identifier: MIT
"""Weights of recurrent layers and attention are matrix products of the rows they read."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import regrow
from regrow.calibration.sequence_rows import find_rows

T, N, E = 6, 3, 4


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def layers_of(module):
    return {layer.name: layer for layer in find_rows(module)}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_outputs_of_the_last_layer_follow_from_its_rows(kind, batch_first):
    torch.manual_seed(0)
    module = kind(E, 5, num_layers=2, bidirectional=True, batch_first=batch_first).double()
    x, start = draw(T, N, E), draw(4, N, 5)
    state = (start, draw(4, N, 5)) if kind is nn.LSTM else start
    given = (x.transpose(0, 1) if batch_first else x, state)
    y, _ = module(*given)
    y = y.transpose(0, 1) if batch_first else y
    found = layers_of(module)
    assert list(found) == [n for n, _ in module.named_parameters() if n.startswith("weight")]
    for suffix, part in (("l1", slice(0, 5)), ("l1_reverse", slice(5, 10))):
        ih, hh = found[f"weight_ih_{suffix}"], found[f"weight_hh_{suffix}"]
        forward, hidden = (layer.inputs(given, {}).reshape(T, N, -1) for layer in (ih, hh))
        gates = [
            layer.outputs(rows.reshape(1, T * N, -1)).reshape(T, N, -1)
            for layer, rows in ((ih, forward), (hh, hidden))
        ]
        if kind is nn.RNN:
            expected = (gates[0] + gates[1]).tanh()
        elif kind is nn.GRU:
            (r, z, n), (hr, hz, hn) = (g.chunk(3, -1) for g in gates)
            z = (z + hz).sigmoid()
            expected = (1 - z) * (n + (r + hr).sigmoid() * hn).tanh() + z * hidden
        else:
            i, f, g, o = (gates[0] + gates[1]).chunk(4, -1)
            c = state[1][2 + int(suffix != "l1")]
            expected = []
            for t in range(T):
                c = f[t].sigmoid() * c + i[t].sigmoid() * g[t].tanh()
                expected.append(o[t].sigmoid() * c.tanh())
            expected = torch.stack(expected)
        own = y[..., part].flip(0) if suffix.endswith("reverse") else y[..., part]
        assert torch.allclose(expected, own, atol=1e-12)


def test_the_output_of_a_cell_follows_from_its_rows():
    cell = nn.RNNCell(E, 5).double()
    x, h = draw(N, E), draw(N, 5)
    ih, hh = layers_of(cell).values()
    for given, hidden in (((x, h), h), ((x,), torch.zeros(N, 5))):
        assert torch.equal(hh.inputs(given, {})[0], hidden)
        product = sum(layer.outputs(layer.inputs(given, {}))[0] for layer in (ih, hh))
        assert torch.allclose(product.tanh(), cell(*given), atol=1e-12)


@pytest.mark.parametrize("widths", [{}, {"kdim": 3, "vdim": 2}])
def test_the_output_of_attention_follows_from_its_rows(widths):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(E, 2, batch_first=True, **widths).double()
    nn.init.normal_(module.in_proj_bias)
    x = draw(N, T, E), draw(N, T, module.kdim), draw(N, T, module.vdim)
    *projections, last = layers_of(module).values()
    parts = [part for p in projections for part in p.outputs(p.inputs(x, {}))]
    q, k, v = (part.reshape(N, T, 2, 2).transpose(1, 2) for part in parts)
    heads = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, -1, E)
    assert torch.allclose(last.inputs(x, {}), heads, atol=1e-12)
    y, _ = module(*x)
    assert torch.allclose(last.outputs(heads).reshape(N, T, E), y, atol=1e-12)


class Sequences(nn.Module):
    def __init__(self, body, width):
        super().__init__()
        self.body, self.last = body, nn.Linear(width, 3)

    def forward(self, x):
        y = self.body(x)
        return self.last(y[0] if isinstance(y, tuple) else y)


BODIES = {
    "LSTM": lambda: (nn.LSTM(8, 12, num_layers=2, batch_first=True), 12),
    "GRU": lambda: (nn.GRU(8, 12, bidirectional=True, batch_first=True), 24),
    "attention": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 8),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_refit_brings_the_outputs_nearer_to_the_dense_ones(kind):
    torch.manual_seed(0)
    dense = Sequences(*BODIES[kind]()).eval()
    mix, found = torch.randn(8, 8), {}
    x, new = torch.randn(64, 9, 8) @ mix, torch.randn(64, 9, 8) @ mix
    for refit in (False, True):
        model = copy.deepcopy(dense)
        result = regrow.calibrate(model, [x], 0.5, criterion="magnitude", refit=refit)
        with torch.no_grad():
            found[refit] = float((model(new) - dense(new)).norm())
        assert result.sparsity == pytest.approx(0.5, abs=1e-3)
    assert found[True] < found[False]
    result.undo(model)
    assert all(map(torch.equal, model.parameters(), dense.parameters()))


def test_heads_of_attention_are_pruned_whole():
    torch.manual_seed(0)
    dense = nn.TransformerEncoderLayer(16, 4, 16, batch_first=True).eval()
    model, x = copy.deepcopy(dense), torch.randn(64, 9, 16)
    result = regrow.calibrate(model, [x], 0.5, granularity="head", include=["self_attn"])
    rows = result.masks["self_attn.in_proj_weight"].reshape(3, 4, -1)
    columns = result.masks["self_attn.out_proj.weight"].reshape(16, 4, 4)
    kept = rows[0].all(1)
    assert kept.sum() == 2
    assert all(torch.equal(part.any(1), kept) and torch.equal(part.all(1), kept) for part in rows)
    assert torch.equal(columns.all(2).all(0), kept)
    plain = copy.deepcopy(dense)
    regrow.prune(plain, 0.5, granularity="head", include=["self_attn"])
    with torch.no_grad():
        assert (model(x) - dense(x)).norm() < (plain(x) - dense(x)).norm()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_rows(weights, sequences, starts):
    """What each weight of an LSTM layer multiplies, by a loop over sequences and steps."""
    rows = {"weight_ih_l0": [], "weight_hh_l0": [], "weight_hr_l0": []}
    for x, (h, c) in zip(sequences, starts, strict=True):
        for step in x:
            gates = weights["weight_ih_l0"] @ step + weights["weight_hh_l0"] @ h
            gates = gates + weights["bias_ih_l0"] + weights["bias_hh_l0"]
            i, f, g, o = np.split(gates, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            wide = sigmoid(o) * np.tanh(c)
            rows["weight_ih_l0"].append(step)
            rows["weight_hh_l0"].append(h)
            rows["weight_hr_l0"].append(wide)
            h = weights["weight_hr_l0"] @ wide if "weight_hr_l0" in weights else wide
    return {name: np.array(found) for name, found in rows.items()}


def least_squares(x, y, keep, bias):
    """Kept weights of each row, and the biases, by numpy."""
    weights, shifts = np.zeros(keep.shape), np.zeros(len(keep))
    for row, kept in enumerate(keep):
        a = np.hstack([x[:, kept], np.ones((len(x), int(bias)))])
        found = np.linalg.lstsq(a, y[:, row], rcond=None)[0]
        weights[row, kept] = found[: kept.sum()]
        shifts[row] = found[-1] if bias else 0
    return weights, shifts


def arrays(module):
    return {name: value.detach().numpy().copy() for name, value in module.named_parameters()}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("projected", [0, 3])
@pytest.mark.parametrize("key", ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"])
def test_the_refit_of_an_lstm_is_the_least_squares_solution(key, projected, packed):
    if key == "weight_hr_l0" and not projected:
        return
    torch.manual_seed(0)
    module = nn.LSTM(E, 5, proj_size=projected).double()
    lengths = [3, 8, 5, 8, 8, 2] if packed else [8] * 6
    x, h, c = draw(8, 6, E), draw(1, 6, projected or 5), draw(1, 6, 5)
    given = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False) if packed else x
    sequences = [x[:length, n].numpy() for n, length in enumerate(lengths)]
    starts = [(h[0, n].numpy(), c[0, n].numpy()) for n in range(6)]
    dense = arrays(module)
    masks = regrow.calibrate(
        module, [{"input": given, "hx": (h, c)}], 0.4, criterion="magnitude", include=[key],
        damping=0.0,
    ).masks  # fmt: skip
    keep = masks[key].numpy()
    pruned = dense | {key: dense[key] * keep}
    rows, before = (lstm_rows(weights, sequences, starts)[key] for weights in (pruned, dense))
    bias = key.replace("weight", "bias")
    weights, shifts = least_squares(
        rows, before @ dense[key].T + dense.get(bias, 0), keep, bias in dense
    )
    found = arrays(module)
    assert np.allclose(found[key], weights, atol=1e-4)
    assert np.allclose(found.get(bias, 0), shifts, atol=1e-4)
    assert not np.allclose(weights, dense[key] * keep, atol=1e-2)


@pytest.mark.parametrize(("queries", "keys"), [(4, 12), (12, 4), (5, 7)])
@pytest.mark.parametrize("widths", [{}, {"kdim": 3, "vdim": 2}])
def test_the_refit_of_cross_attention_is_the_least_squares_solution(widths, queries, keys):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(E, 2, batch_first=True, **widths).double()
    nn.init.normal_(module.in_proj_bias)
    x = draw(15, queries, E) - 1, draw(15, keys, module.kdim) + 1, draw(15, keys, module.vdim)
    names = [name for name, _ in module.named_parameters() if name.endswith("proj_weight")]
    dense = arrays(module)
    batch = dict(zip(("query", "key", "value"), x, strict=True))
    masks = regrow.calibrate(
        module, [batch], 0.4, criterion="magnitude", include=names, damping=0.0
    ).masks
    found, most = arrays(module), 15 * max(queries, keys)
    for at, given in enumerate(x):
        rows, third = given.flatten(0, 1).numpy(), slice(E * at, E * at + E)
        name, part = (names[at], slice(E)) if widths else (names[0], third)
        if not widths:  # one matrix for all, whose shorter rows are repeated evenly
            rows = rows[[n * len(rows) // most for n in range(most)]]
        old = dense[name][part]
        y = rows @ old.T + dense["in_proj_bias"][third]
        weights, shifts = least_squares(rows, y, masks[name].numpy()[part], True)
        assert np.allclose(found[name][part], weights, atol=1e-4)
        assert np.allclose(found["in_proj_bias"][third], shifts, atol=1e-4)
