# SPDX-License-Identifier: MIT
"""Attention heads: which rows and columns of which weights belong to a head.

A head is pruned with its rows of the query, key and value weights and its columns of the output
weight: it then adds nothing to the output, whatever the biases are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from regrow.utils.names import strip_compile_prefix

RECOGNISED = (
    "heads are found in nn.MultiheadAttention, in timm's attention (qkv, proj), and in modules "
    "with num_heads or num_attention_heads and Linear layers q_proj, k_proj, v_proj, out_proj (or "
    "o_proj), query, key, value, dense, or to_q, to_k, to_v, to_out"
)
_QUERIES = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("to_q", "to_k", "to_v"),
    ("qkv",),
)
_OUTPUTS = ("out_proj", "o_proj", "dense", "to_out", "to_out.0", "proj")


@dataclass(frozen=True)
class HeadPart:
    """Where the heads of an attention module are in one of its weights."""

    module: str  # its name
    heads: int  # their number
    dim: int  # 0 for queries, keys and values, whose heads are rows; 1 for the output weight
    packed: int  # matrices in a row along `dim`: 3 for queries, keys and values in one weight
    weights: tuple[str, ...]  # names of all weights of the module that have heads

    def sums(self, scores: Tensor) -> Tensor:
        """Sum the scores `(rows, columns)` of each head."""
        wide = torch.promote_types(scores.dtype, torch.float32)
        return self._split(scores).sum((0, 2, 3), dtype=wide)

    def kept(self, mask: Tensor) -> Tensor:
        """Return which heads keep any weight under a mask, non-zero = kept."""
        return self._split(mask != 0).any(3).any(2).any(0)

    def mask(self, heads: Tensor, like: Tensor) -> Tensor:
        """Turn kept heads into a mask of the shape and strides of `like`."""
        size = like.shape[self.dim] // (self.packed * self.heads)
        lines = heads.repeat_interleave(size).repeat(self.packed)
        mask = torch.empty_like(like, dtype=torch.bool)
        return mask.copy_(lines.unsqueeze(1 - self.dim))

    def _split(self, tensor: Tensor) -> Tensor:
        """`(rows, columns)` -> `(packed, heads, size, others)`."""
        lines = tensor.movedim(self.dim, 0)
        return lines.reshape(self.packed, self.heads, -1, lines.shape[1])


def find_heads(model: nn.Module) -> dict[str, HeadPart | str]:
    """Find the weights with attention heads, by name; where heads are not known, say why.

    Heads are consecutive rows of equal number. Packed weights hold all queries, then all keys, then
    all values; this is known of PyTorch's and timm's modules only.
    """
    found: dict[str, HeadPart | str] = {}
    modules = {strip_compile_prefix(f"{name}.")[:-1]: m for name, m in model.named_modules()}
    for name, module in modules.items():
        heads = getattr(module, "num_heads", getattr(module, "num_attention_heads", None))
        if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
            continue
        layout = dict(_layout(name, module, modules))
        if layout and (reason := _unknown(module, heads, layout)):
            found |= dict.fromkeys(layout, reason)
            continue
        for weight, (dim, packed, _) in layout.items():
            found[weight] = HeadPart(name, heads, dim, packed, tuple(layout))
    return found


_Layout = tuple[int, int, Tensor]  # the dimension of heads, the number of packed matrices, weight


def _layout(
    name: str, module: nn.Module, modules: Mapping[str, nn.Module]
) -> Iterator[tuple[str, _Layout]]:
    """Yield the weights of an attention module, by full name; none if it is not recognised."""
    prefix = f"{name}." if name else ""
    if isinstance(module, nn.MultiheadAttention):
        packed = module.in_proj_weight is not None
        inputs = ("in_proj",) if packed else ("q_proj", "k_proj", "v_proj")
        for key in inputs:
            weight = getattr(module, f"{key}_weight")
            yield f"{prefix}{key}_weight", (0, 3 // len(inputs), weight)
        yield f"{prefix}out_proj.weight", (1, 1, module.out_proj.weight)
        return
    linear = {key: m.weight for key, m in modules.items() if _is_linear(m)}
    beside = f"{name.rpartition('.')[0]}.output.dense".lstrip(".")  # of transformers
    outputs = [*(prefix + key for key in _OUTPUTS), beside]
    output = next((key for key in outputs if key in linear), None)
    for keys in _QUERIES:
        if output is not None and all(prefix + key in linear for key in keys):
            for key in keys:
                yield f"{prefix}{key}.weight", (0, 3 // len(keys), linear[prefix + key])
            yield f"{output}.weight", (1, 1, linear[output])
            return


def _is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    return isinstance(module, nn.Linear) and not is_lazy(module.weight)


def _unknown(module: nn.Module, heads: int, layout: Mapping[str, _Layout]) -> str | None:
    """Say why the heads of a recognised module are not known; None if they are."""
    shared = getattr(module, "num_key_value_heads", getattr(module, "num_kv_heads", heads))
    if shared != heads:
        return f"no heads of its own: {shared} heads of keys and values are shared by {heads}"
    *inputs, (_, _, output) = layout.values()
    values = inputs[-1][2].shape[0] // inputs[-1][1]
    if values != output.shape[1] or any(w.shape[0] % (n * heads) for _, n, w in inputs):
        return f"a size that is not that of {heads} heads"
    own = isinstance(module, nn.MultiheadAttention)
    if inputs[0][1] == 3 and not own and type(module).__module__.partition(".")[0] != "timm":
        return "no known heads: the order of q, k and v in it is known of PyTorch and timm only"
    if not own and _mixes_heads(module, heads, values):
        return "no heads of its own: a layer or norm of its module mixes them"
    return None


def _mixes_heads(module: nn.Module, heads: int, size: int) -> bool:
    """Whether a layer from heads to heads, or a norm over all of them, lets one change others."""
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if not isinstance(weight, Tensor) or is_lazy(weight):
            continue
        if tuple(weight.shape[:2]) == (heads, heads) or tuple(weight.shape) == (size,):
            return True
    return False
