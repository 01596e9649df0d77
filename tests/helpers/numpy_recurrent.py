# SPDX-License-Identifier: MIT
"""Recurrent layers in NumPy, after the equations in PyTorch's documentation.

`weights` are arrays by the names of the layer's parameters; inputs are `(steps, inputs)`.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_step(x, state, w, hidden):
    h, c = state
    i, f, g, o = (w["ih"] @ x + w["b_ih"] + w["hh"] @ h + w["b_hh"]).reshape(4, hidden)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (w["hr"] @ h if "hr" in w else h), c


def gru_step(x, state, w, hidden):
    (h,) = state
    r_x, z_x, n_x = (w["ih"] @ x + w["b_ih"]).reshape(3, hidden)
    r_h, z_h, n_h = (w["hh"] @ h + w["b_hh"]).reshape(3, hidden)
    r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
    n = np.tanh(n_x + r * n_h)
    return ((1 - z) * n + z * h,)


def rnn_step(x, state, w, hidden):
    (h,) = state
    return (np.tanh(w["ih"] @ x + w["b_ih"] + w["hh"] @ h + w["b_hh"]),)


STEPS = {"LSTM": lstm_step, "GRU": gru_step, "RNN": rnn_step}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def run(kind, weights, x, states=None):
    """The outputs of all steps `(steps, directions * outputs)`."""
    layer = 0
    while f"weight_ih_l{layer}" in weights:
        outputs = []
        for direction, suffix in enumerate(("", "_reverse")):
            if f"weight_ih_l{layer}{suffix}" in weights:
                index = None if states is None else outputs_before(weights, layer) + direction
                outputs.append(one_direction(kind, weights, x, layer, suffix, states, index))
        x, layer = np.concatenate(outputs, 1), layer + 1
    return x


def outputs_before(weights, layer):
    return layer * (2 if "weight_ih_l0_reverse" in weights else 1)


def one_direction(kind, weights, x, layer, suffix, states, index):
    def of(name):
        return weights.get(f"{name}_l{layer}{suffix}")

    hidden = len(of("weight_hh")) // GATES[kind]
    w = {"ih": of("weight_ih"), "hh": of("weight_hh")}
    for bias in ("ih", "hh"):
        given = of(f"bias_{bias}")
        w[f"b_{bias}"] = np.zeros(GATES[kind] * hidden) if given is None else given
    if of("weight_hr") is not None:
        w["hr"] = of("weight_hr")
    sizes = [w["hh"].shape[1], hidden][: 2 if kind == "LSTM" else 1]
    state = [np.zeros(s) for s in sizes] if index is None else [s[index] for s in states]
    found = []
    for step in x[::-1] if suffix else x:
        state = STEPS[kind](step, state, w, hidden)
        found.append(state[0])
    return np.stack(found[::-1] if suffix else found)


def kept_gates(kind, hidden, kept):
    """The rows of the kept units in the weights of all gates."""
    return np.concatenate([gate * hidden + kept for gate in range(GATES[kind])])


def cut_by_hand(kind, weights, hidden, units, outputs=None, projected=0):
    """The weights with these hidden units, and of a projection these outputs."""
    read = units if outputs is None else outputs
    rows, size = kept_gates(kind, hidden, units), projected or hidden
    small = {}
    for name, w in weights.items():
        if name.startswith("weight_hr"):
            small[name] = w[outputs][:, units]
        elif name.startswith("weight_hh"):
            small[name] = w[rows][:, read]
        elif name.startswith("weight_ih_l0"):
            small[name] = w[rows]
        elif name.startswith("weight_ih"):  # reads all directions of the layer below
            directions = w.shape[1] // size
            columns = np.concatenate([d * size + read for d in range(directions)])
            small[name] = w[rows][:, columns]
        else:
            small[name] = w[rows]
    return small
