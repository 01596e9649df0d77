# SPDX-License-Identifier: MIT
"""Label rules of recurrent layers and cells (see `labels.Rule`).

Unit i of a layer is row i of each gate in its weights and biases, and a column of the weights that
read it. `nn.LSTM` and its like have one size for all their layers and directions, so unit i of
each of them is one channel; likewise output i of the projections of an LSTM.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regrow.channels.graph.labels import FIXED, Arguments, LabelledTensor, Labels, make_axis

REASON = "recurrent layer"


def recurrent(labels: Labels, a: Arguments, shape: Sequence[int]) -> list[LabelledTensor]:
    """Unite units with rows and columns; a cell is `weight_ih`, `weight_hh`, biases, `weight_hr`.

    Returns the outputs and the last states.
    """
    x, states = a["input"] if "input" in a else a["data"], _states(a)
    directions = 1 + int(a["bidirectional"])
    count = len(a["params"]) // (a["num_layers"] * directions)
    cells = [a["params"][i : i + count] for i in range(0, len(a["params"]), count)]
    units, outputs = _units_and_outputs(labels, cells[0], states)
    for number, cell in enumerate(cells):
        if number < directions:
            labels.unite_dims(x, -1, cell[0], 1, REASON)
        else:
            _unite(labels, cell[0], 1, outputs)
        _unite_cell(labels, cell, units, outputs)
    for axis in labels.axes(x):
        if axis.shape[-1] == 1:  # each step depends on those before it
            labels.fix(axis, f"{REASON}: a step or an example")
    both = make_axis(outputs.repeat(directions), -1, len(shape))
    return [labels.value(shape, [both]), *_united_states(labels, states, units, outputs)]


def recurrent_cell(
    labels: Labels, a: Arguments, shape: Sequence[int]
) -> LabelledTensor | list[LabelledTensor]:
    """Unite the units of one step of a recurrent layer; returns the new state or states."""
    states = _states(a)
    cell = [a[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if a[name] is not None]
    units, outputs = _units_and_outputs(labels, cell, states)
    labels.unite_dims(a["input"], -1, cell[0], 1, REASON)
    _unite_cell(labels, cell, units, outputs)
    found = _united_states(labels, states, units, outputs)
    return found if len(found) > 1 else found[0]


def _states(a: Arguments) -> list[LabelledTensor]:
    """Return the initial states: of an LSTM outputs and cells."""
    return [a["hx"]] if isinstance(a["hx"], LabelledTensor) else list(a["hx"])


def _units_and_outputs(
    labels: Labels, cell: Sequence[LabelledTensor], states: Sequence[LabelledTensor]
) -> tuple[Tensor, Tensor]:
    """Return the labels of the units, and those of the outputs: the same without a projection."""
    units = _rows(labels, cell[1], states[-1].shape[-1])
    return units, _rows(labels, cell[-1], cell[-1].shape[0]) if _is_projected(cell) else units


def _is_projected(cell: Sequence[LabelledTensor]) -> bool:
    """Whether a projection follows the weights and biases, of which there are two or four."""
    return len(cell) % 2 == 1


def _rows(labels: Labels, weight: LabelledTensor, size: int) -> Tensor:
    found = labels.labels_along(weight, 0, REASON)
    return torch.full((size,), FIXED) if found is None else found[:size]


def _unite_cell(
    labels: Labels, cell: Sequence[LabelledTensor], units: Tensor, outputs: Tensor
) -> None:
    """Unite the rows of all gates, the columns that read the outputs, and the projection."""
    gates = cell
    if _is_projected(cell):
        *gates, last = cell
        _unite(labels, last, 0, outputs)
        _unite(labels, last, 1, units)
    for tensor in gates:
        _unite(labels, tensor, 0, units)
    _unite(labels, gates[1], 1, outputs)


def _united_states(
    labels: Labels, states: Sequence[LabelledTensor], units: Tensor, outputs: Tensor
) -> list[LabelledTensor]:
    """Unite the last dimension of the states; return those after the last step."""
    found = []
    for state, vector in zip(states, (outputs, units), strict=False):
        _unite(labels, state, -1, vector)
        found.append(labels.value(state.shape, [make_axis(vector, -1, state.ndim)]))
    return found


def _unite(labels: Labels, value: LabelledTensor, dim: int, wanted: Tensor) -> None:
    """Unite a dimension with labels that are repeated along it, once for each gate or direction."""
    found = labels.labels_along(value, dim, REASON)
    if found is not None:
        labels.unite(found.view(-1, len(wanted)), wanted, REASON)
    elif value.shape[dim] > 1 and not value.resizable:
        labels.fix(wanted, f"{REASON}: a state or weight of fixed length")
