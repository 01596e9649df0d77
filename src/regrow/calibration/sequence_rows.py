# SPDX-License-Identifier: MIT
"""Weights of recurrent layers and of attention as matrix products of rows."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.rnn import PackedSequence, unpack_sequence

from regrow.calibration.layer_rows import LayerRows
from regrow.utils.errors import StateError
from regrow.utils.names import strip_compile_prefix

_CELLS = (nn.RNNCell, nn.LSTMCell, nn.GRUCell)


@dataclass(frozen=True)
class RecurrentRows(LayerRows):
    """A weight of an RNN, LSTM or GRU, or of a cell: of its inputs, or of its hidden states.

    Example:
        >>> layer = RecurrentRows("weight_hh_l0", nn.LSTM(2, 4))
        >>> layer.matrix.shape, layer.inputs((torch.zeros(3, 5, 2),), {}).shape
        (torch.Size([1, 16, 4]), torch.Size([1, 15, 4]))
    """

    @property
    def key(self) -> str:
        """The name of the weight within its module."""
        return self.name.rpartition(".")[2]

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, getattr(self.module, self.key))

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.module, self.key.replace("weight", "bias"), None)

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        named = dict(zip(("input", "hx"), args, strict=False)) | dict(kwargs)
        x, state = named["input"], named.get("hx")
        if isinstance(x, PackedSequence):  # one sequence after the other
            found = []
            for n, part in enumerate(unpack_sequence(x)):
                own = None if state is None else _map_state(state, lambda h, n=n: h[:, n])
                found.append(self.inputs((part, own), {}))
            return torch.cat(found, 1)
        own = self.key.startswith("weight_ih")
        if isinstance(self.module, _CELLS):
            hidden = state[0] if isinstance(state, tuple) else state
            width = self.module.hidden_size
            hidden = x.new_zeros(*x.shape[:-1], width) if hidden is None else hidden
        else:
            x, hidden = _read_layer(cast(nn.RNNBase, self.module), x, state, self.key)
        rows: Tensor = x if own else hidden
        return rows.reshape(1, -1, rows.shape[-1])


def _read_layer(module: nn.RNNBase, x: Tensor, state: Any, key: str) -> tuple[Tensor, Tensor]:
    """Return the inputs and the previous hidden states of one layer and direction.

    The layers run one after the other, since `nn.RNNBase` returns the last one's outputs only. For
    the `weight_hr` of an LSTM with projections, the second are the states that it projects.
    """
    if x.ndim == 2:  # one example
        x = x.unsqueeze(int(not module.batch_first))
        state = None if state is None else _map_state(state, lambda h: h.unsqueeze(1))
    x = x.transpose(0, 1) if module.batch_first else x
    directions = 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            suffix = f"l{layer}{'_reverse' if direction else ''}"
            single = _single_layer(module, suffix, x.shape[-1])
            steps = x.flip(0) if direction else x
            at = layer * directions + direction
            start = None if state is None else _map_state(state, lambda h, at=at: h[at : at + 1])
            out, _ = single(steps, start)
            if key.endswith(f"_{suffix}"):
                first = start[0] if isinstance(start, tuple) else start
                first = torch.zeros_like(out[:1]) if first is None else first
                hidden = torch.cat([first, out[:-1]])
                if key.startswith("weight_hr"):
                    hidden = _unprojected(single, steps, hidden, start and start[1][0])
                return steps, hidden
            outputs.append(out.flip(0) if direction else out)
        x = torch.cat(outputs, -1)
    raise StateError(f"{key} is no weight of inputs or of hidden states: exclude it")


def _unprojected(single: nn.RNNBase, steps: Tensor, hidden: Tensor, cell: Any) -> Tensor:
    """Return o_t * tanh(c_t) of an LSTM, given its inputs and previous hidden states."""
    w_ih, w_hh, *biases, _ = (parameter.detach() for parameter in single.parameters())
    gates = steps @ w_ih.mT + hidden @ w_hh.mT + sum(biases)
    outputs = []
    for i, f, g, o in zip(*gates.chunk(4, -1), strict=True):
        cell = i.sigmoid() * g.tanh() + (0 if cell is None else f.sigmoid() * cell)
        outputs.append(o.sigmoid() * cell.tanh())
    return torch.stack(outputs)


def _single_layer(module: nn.RNNBase, suffix: str, width: int) -> nn.RNNBase:
    """Make one layer and direction of a recurrent layer, with its weights."""
    more: dict[str, Any] = {}
    if isinstance(module, nn.RNN):
        more["nonlinearity"] = module.nonlinearity
    elif isinstance(module, nn.LSTM):
        more["proj_size"] = module.proj_size
    kind: Any = type(module)
    single: nn.RNNBase = kind(width, module.hidden_size, bias=module.bias, **more)
    weights = {
        name.replace("l0", suffix): parameter for name, parameter in single.named_parameters()
    }
    for name, parameter in weights.items():
        parameter.data = getattr(module, name).detach()
    return single


def _map_state(state: Any, change: Any) -> Any:
    return tuple(map(change, state)) if isinstance(state, tuple) else change(state)


@dataclass(frozen=True)
class ProjectionRows(LayerRows):
    """An input projection of `nn.MultiheadAttention`: of queries, keys and values.

    `in_proj_weight` has three groups; where keys or values have another width each has one weight.

    Example:
        >>> layer = ProjectionRows("in_proj_weight", nn.MultiheadAttention(4, 2))
        >>> x = torch.zeros(3, 5, 4)
        >>> layer.matrix.shape, layer.inputs((x, x, x), {}).shape
        (torch.Size([3, 4, 4]), torch.Size([3, 15, 4]))
    """

    @property
    def key(self) -> str:
        """The name of the weight within its module."""
        return self.name.rpartition(".")[2]

    @property
    def weight(self) -> Tensor:
        return cast(Tensor, getattr(self.module, self.key))

    @property
    def groups(self) -> int:
        return 3 if self.key == "in_proj_weight" else 1

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = getattr(self.module, "in_proj_bias", None)
        if bias is None or self.groups == 3:
            return bias
        return bias.detach().chunk(3)["qkv".index(self.key[0])]

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        named = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
        given = [named[name] for name in ("query", "key", "value")]
        if self.groups == 1:
            given = [given["qkv".index(self.key[0])]]
        rows = [x.reshape(-1, x.shape[-1]) for x in given]
        most = max(map(len, rows))  # in cross-attention, rows of the shorter are repeated evenly
        rows = [x[torch.arange(most, device=x.device) * len(x) // most] for x in rows]
        return torch.stack(rows)


@dataclass(frozen=True)
class HeadOutputRows(LayerRows):
    """The output projection of `nn.MultiheadAttention`, whose inputs are the heads' outputs.

    Example:
        >>> layer = HeadOutputRows("out_proj.weight", nn.MultiheadAttention(4, 2))
        >>> x = torch.zeros(3, 5, 4)
        >>> layer.inputs((x, x, x), {}).shape
        torch.Size([1, 15, 4])
    """

    @property
    def weight(self) -> Tensor:
        return cast(nn.MultiheadAttention, self.module).out_proj.weight

    @property
    def bias(self) -> Tensor | None:
        return cast(nn.MultiheadAttention, self.module).out_proj.bias

    @property
    def groups(self) -> int:
        return 1

    def inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        attention = cast(nn.MultiheadAttention, self.module)
        heads, width = copy.copy(attention), attention.embed_dim
        identity = copy.deepcopy(attention.out_proj)
        with torch.no_grad():
            identity.weight.copy_(torch.eye(width))
            if identity.bias is not None:
                identity.bias.zero_()
        heads._modules = {"out_proj": identity}
        out, _ = heads.forward(*args, **kwargs)  # not a call, which would run the hooks again
        return out.reshape(1, -1, width)


def find_rows(model: nn.Module) -> Iterator[LayerRows]:
    """Yield each weight of a model that calibration knows, once.

    Weights that several modules share are left out: each module has its own inputs.
    """
    seen = set[str]()
    users = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    for path, module in model.named_modules():
        for key, kind in _weights_of(module):
            name = strip_compile_prefix(f"{path}.{key}" if path else key)
            if name not in seen:  # the output projection of attention is a Linear layer as well
                seen.add(name)
                layer = kind(name, module)
                if users[id(layer.weight)] < 2:
                    yield layer


def _weights_of(module: nn.Module) -> list[tuple[str, type[LayerRows]]]:
    if isinstance(module, nn.Linear | _ConvNd):
        return [("weight", LayerRows)]
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        names = [name for name, _ in module.named_parameters(recurse=False)]
        return [(name, RecurrentRows) for name in names if name.startswith("weight")]
    if isinstance(module, nn.MultiheadAttention):
        whole = ("in_proj_weight",)
        parts = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        found = whole if module.in_proj_weight is not None else parts
        return [*((key, ProjectionRows) for key in found), ("out_proj.weight", HeadOutputRows)]
    return []
