# SPDX-License-Identifier: MIT
"""Sparse tensors as the values that are kept and packed codes of their positions.

A tensor `(out, in, ...)` is stored in the smallest of three forms:

- As it is.
- Units: the matrix `(out, in * kh * kw)` is tiled by the largest blocks of which each is kept or
  zero as a whole, 1 x 1 for single weights. A kept unit has a code of k bits, the number of zero
  units before it; the code 2^k - 1 stands for that many zero units and no kept one. With k = 1 the
  codes are a bit mask, 0 = kept. The k that takes the fewest bytes is chosen.
- Groups: n of every m consecutive inputs are kept. The code of a group is the index of its bit mask
  among the numbers of m bits of which n are set, in ascending order.

Codes are packed in little bit order, and ones fill the last byte. All other weights are +0.0.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TypedDict

import torch
from torch import Tensor

from regrow.utils.bits import integer_type, pack_bits, unpack_bits
from regrow.utils.errors import ConfigError

VALUES = {"fp16": torch.float16, "int8": torch.int8}  # types to which values may be rounded
_GROUPS = (2, 4, 8, 16)  # sizes of groups
_ROUNDING = 2**-11  # of the largest value of a tensor: what fp16 rounds by, but for subnormals
_HEADER = 200  # bytes that an encoded tensor adds to the header of a file


class Form(TypedDict):
    """How a tensor is encoded."""

    shape: list[int]
    dtype: str  # as in torch
    kind: str  # "unit" or "group"
    size: list[int]  # rows and columns of a unit, or n and m of a group
    bits: int  # of a code


def encode_tensors(
    state: Mapping[str, Tensor], values: str | None = None, rounds: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Form]]:
    """Encode the floating-point tensors of two or more dimensions that get smaller.

    `values` rounds wider values of the tensors `rounds` to "fp16"; or to "int8", multiples of 1/127
    of a row's largest. Returns the tensors to store, and the forms of the encoded ones by name.
    """
    stored, forms = dict(state), dict[str, Form]()
    for name, tensor in state.items():
        if tensor.dim() < 2 or not tensor.is_floating_point() or not tensor.numel():
            continue
        rounded, scale = _round(name, tensor, values if name in rounds else None)
        kept = _integers(tensor) != 0
        form = _smallest_form(kept, str(tensor.dtype).removeprefix("torch."), rounded.itemsize)
        mask = _units(kept, form)
        if form["kind"] == "group":  # zeros fill a group with fewer kept weights
            first = mask.to(torch.uint8).topk(form["size"][0], dim=1).indices
            mask = torch.zeros_like(mask).scatter_(1, first, True)
        parts = {
            f"{name}.values": _units(_integers(rounded), form)[mask].view(rounded.dtype),
            f"{name}.codes": _packed_codes(mask, form),
            **{f"{name}.scale": each for each in scale},
        }
        if sum(part.nbytes for part in parts.values()) + _HEADER >= tensor.nbytes:
            continue
        if taken := parts.keys() & state.keys():
            raise ConfigError(
                f"a sparse file stores {name} as {', '.join(parts)}, and the model has a "
                f"{min(taken)}: write sparse=False"
            )
        del stored[name]
        stored |= parts
        forms[name] = form
    return stored, forms


def decode_tensors(stored: Mapping[str, Tensor], forms: Mapping[str, Form]) -> dict[str, Tensor]:
    """Return the tensors that `encode_tensors` encoded; a ValueError names damaged ones."""
    state = dict(stored)
    for name, form in forms.items():
        try:
            values, codes = state.pop(f"{name}.values"), state.pop(f"{name}.codes")
            mask = _mask_of_codes(codes, form)
            if int(mask.count_nonzero()) != len(values):
                raise ValueError(f"{len(values)} values, {int(mask.count_nonzero())} positions")
            units = torch.zeros(mask.shape, dtype=integer_type(values.dtype))
            units[mask] = _integers(values)
            tensor = _joined(units, form).view(values.dtype).to(getattr(torch, form["dtype"]))
            scale = state.pop(f"{name}.scale", None)
            state[name] = tensor if scale is None else tensor.mul_(scale)
        except Exception as error:  # damaged parts cause any error in torch
            raise ValueError(f"{name} has parts that do not fit together: {error!r}") from error
    return state


def _round(name: str, tensor: Tensor, values: str | None) -> tuple[Tensor, list[Tensor]]:
    """Return the rounded values of a tensor, and for int8 the scale of its rows."""
    if values is None or VALUES[values].itemsize >= tensor.itemsize:
        return tensor, []
    rounded, scale = tensor.to(torch.float16), list[Tensor]()
    if values == "int8":
        scale = [tensor.abs().amax([*range(1, tensor.dim())], keepdim=True).float() / 127]
        rounded = (tensor / scale[0].where(scale[0] > 0, 1)).round()
    largest = tensor.abs().max()
    lost = values == "fp16" and bool(
        ((rounded.to(tensor) - tensor).abs() > _ROUNDING * largest).any()
    )
    if lost or not bool(rounded.isfinite().all()):
        raise ConfigError(
            f"{name} has values that {values} cannot hold, up to {largest:g}: leave out "
            f"values={values!r}"
        )
    return rounded.to(VALUES[values]), scale


def _smallest_form(kept: Tensor, dtype: str, width: int) -> Form:
    """Choose the form in which codes, and values of `width` bytes, take the fewest bytes."""
    shape, matrix = list(kept.shape), kept.flatten(1)
    unit = [_largest_step(matrix, 0), _largest_step(matrix, 1)]
    times = _gaps(matrix[:: unit[0], :: unit[1]]).bincount()
    gaps = times.nonzero().flatten()
    lengths = {k: k * int(((gaps // (2**k - 1) + 1) * times[gaps]).sum()) for k in range(1, 17)}
    bits = min(lengths, key=lambda k: lengths[k])
    smallest = lengths[bits] / 8 + int(times.sum()) * math.prod(unit) * width
    form = Form(shape=shape, dtype=dtype, kind="unit", size=unit, bits=bits)
    for m in (m for m in _GROUPS if shape[1] % m == 0):
        other = Form(shape=shape, dtype=dtype, kind="group", size=[0, m], bits=0)
        groups = _units(kept, other)
        other["size"][0] = n = int(groups.sum(1).max())
        other["bits"] = bits = (math.comb(m, n) - 1).bit_length()
        size = len(groups) * (bits / 8 + n * width)
        if bits and size < smallest:
            smallest, form = size, other
    return form


def _largest_step(matrix: Tensor, dim: int) -> int:
    """Return the largest size of equal slices along `dim` within which nothing changes."""
    size = matrix.shape[dim]
    changes = matrix.narrow(dim, 1, size - 1) != matrix.narrow(dim, 0, size - 1)
    return math.gcd(size, *(changes.any(1 - dim).nonzero().flatten() + 1).tolist())


def _units(tensor: Tensor, form: Form) -> Tensor:
    """Return the weights of each unit or group as a row."""
    first, second = form["size"]
    if form["kind"] == "group":
        return tensor.movedim(1, -1).reshape(-1, second)
    tiles = tensor.reshape(len(tensor) // first, first, -1, second)
    return tiles.transpose(1, 2).reshape(-1, first * second)


def _joined(units: Tensor, form: Form) -> Tensor:
    """Return the tensor of which `_units` returns these rows."""
    (first, second), shape = form["size"], form["shape"]
    if form["kind"] == "group":
        return units.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()
    return units.view(shape[0] // first, -1, first, second).transpose(1, 2).reshape(shape)


def _gaps(kept: Tensor) -> Tensor:
    """Return the number of zeros before each kept unit."""
    positions = kept.flatten().nonzero().flatten()
    return positions.diff(prepend=positions.new_tensor([-1])) - 1


def _masks(form: Form) -> Tensor:
    """Return the bit masks of m bits of which n are set."""
    n, m = form["size"]
    if m not in _GROUPS:
        raise ValueError(f"groups of {m}")
    return torch.tensor([i for i in range(2**m) if i.bit_count() == n], dtype=torch.int32)


def _packed_codes(mask: Tensor, form: Form) -> Tensor:
    """Encode the mask of each unit or group."""
    bits = form["bits"]
    if form["kind"] == "group":
        powers = 2 ** torch.arange(mask.shape[1], dtype=torch.int32)
        codes = torch.searchsorted(_masks(form), (mask * powers).sum(1, dtype=torch.int32))
    else:
        gaps, most = _gaps(mask[:, 0]), 2**bits - 1
        ends = (gaps // most + 1).cumsum(0)
        codes = torch.full((int(ends[-1]) if len(ends) else 0,), most)
        codes[ends - 1] = gaps % most
    flags = torch.stack([(codes >> bit) % 2 == 1 for bit in range(bits)], 1).flatten()
    return pack_bits(torch.cat([flags, flags.new_ones(-len(flags) % 8)]))


def _mask_of_codes(packed: Tensor, form: Form) -> Tensor:
    """Return the mask that `_packed_codes` encoded."""
    bits, size, total = form["bits"], form["size"], math.prod(form["shape"])
    flags = unpack_bits(packed, (8 * len(packed) // bits, bits))
    codes = sum(flags[:, bit].long() << bit for bit in range(bits))
    assert isinstance(codes, Tensor)
    if form["kind"] == "group":
        masks = _masks(form)[codes[: total // size[1]]]
        return masks[:, None] >> torch.arange(size[1]) & 1 == 1
    most = 2**bits - 1
    ends = (codes + (codes < most)).cumsum(0)
    mask = torch.zeros(total // math.prod(size), dtype=torch.bool)
    mask[ends[codes < most] - 1] = True
    return mask[:, None].expand(-1, math.prod(size))


def _integers(tensor: Tensor) -> Tensor:
    """View values as integers, because -0.0 is not +0.0, and all of their types can be indexed."""
    return tensor.contiguous().view(integer_type(tensor.dtype))
