# SPDX-License-Identifier: MIT
"""Per-weight optimizer state: find, clear, load.

Most optimizers keep tensors of the parameter's shape, and there 0 is nothing gathered. Those of 8
bits keep codes, which a table turns into numbers, and code 0 is no zero there. What has another
shape (blocks, factors) tells nothing of single places.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def trained_parameters(*optimizers: Optimizer) -> set[int]:
    """Return the ids of the parameters that optimizers train.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> trained_parameters(torch.optim.SGD([weight])) == {id(weight)}
        True
    """
    return {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}


def is_per_weight(value: object, shape: torch.Size) -> bool:
    """Whether a state tensor holds one number a weight: of that shape, floating point, no codes.

    Example:
        >>> state = torch.zeros(2, 3)
        >>> is_per_weight(state, state.shape), is_per_weight(state.byte(), state.shape)
        (True, False)
    """
    return (
        isinstance(value, Tensor)
        and value.shape == shape
        and value.is_floating_point()
        and not _wrapped(value)
    )


@torch.no_grad()
def clear_quantized_state(state: Mapping[Any, Any], kept: Tensor) -> None:
    """Writes the code that means 0 wherever quantised state of a pruned weight stands.

    Args:
        state: Of one parameter.
        kept: A mask of its shape, 0 where pruned.

    Example:
        >>> state = {"state1": torch.tensor([7, 1], dtype=torch.uint8),
        ...          "qmap1": torch.tensor([-1.0, 0.0, 1.0])}
        >>> clear_quantized_state(state, torch.tensor([-1, 0])); state["state1"]
        tensor([7, 1], dtype=torch.uint8)
    """
    for _, codes, table in _coded(state):
        if codes.shape == kept.shape:
            codes.masked_fill_(kept == 0, table.abs().argmin().to(codes.dtype))


def warn_not_clearable(
    optimizer: Optimizer, state: Mapping[Any, Any], shape: torch.Size, told: set[int]
) -> None:
    """Says once of an optimizer that what it gathered at a place cannot be cleared there.

    Of torch's own ones there is none: the factors of Adafactor hold sizes, no direction.

    Args:
        optimizer: Whose state it is.
        state: Of one masked parameter.
        shape: Of the parameter.
        told: The ids of optimizers that this was said of.
    """
    if id(optimizer) in told or type(optimizer).__module__.startswith("torch.optim"):
        return
    lost = not_clearable(state, shape)
    if lost:
        told.add(id(optimizer))
        warnings.warn(
            f"{type(optimizer).__name__} keeps {', '.join(lost)} in another form than one number "
            "a weight, which cannot be cleared where weights are pruned or kept with them. Pruned "
            "weights stay exactly zero; one that comes back (regrow, unprune) may start with "
            "momentum from before it was pruned",
            stacklevel=2,
        )


def not_clearable(state: Mapping[Any, Any], shape: torch.Size) -> list[str]:
    """The names of state tensors that cannot be cleared at single places; scalars do not count."""
    codes = {key for key, values, _ in _coded(state) if values.shape == shape}
    beside = {key for number in _numbers(codes) for key in (f"qmap{number}", f"absmax{number}")}
    beside |= {f"{word}{number}" for number in _numbers(codes) for word in ("max", "new_max")}
    return [
        str(key)
        for key, value in state.items()
        if isinstance(value, Tensor)
        and value.numel() > 1
        and key not in codes | beside
        and not is_per_weight(value, shape)
    ]


def load_moments(optimizer: Optimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
    """Gives an optimizer its state to the bit, with the settings that it has now.

    `Optimizer.load_state_dict` alone casts every tensor to the parameter's type: a float32 average
    beside bfloat16 weights, or 8-bit codes, would not be what they were.

    Args:
        optimizer: With the parameters of the moment when the state was saved.
        state: The "state" of its `state_dict`; it is shared from now on.
    """
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(state), "param_groups": groups})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in groups for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        found = optimizer.state.get(parameter, {})
        for key, value in state.get(number, {}).items():
            now = found.get(key)
            if isinstance(value, Tensor) and isinstance(now, Tensor) and now.dtype != value.dtype:
                found[key] = value.to(now.device)


def _coded(state: Mapping[Any, Any]) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Quantised state with its table, as bitsandbytes and torchao keep it: (key, codes, table).

    Source: bitsandbytes 0.50 (`state1` of uint8 beside `qmap1`), torchao 0.18 (`OptimState8bit`).
    """
    for key, value in state.items():
        if isinstance(value, Tensor) and _wrapped(value):
            codes, table = getattr(value, "codes", None), getattr(value, "qmap", None)
        else:
            codes, table = value, state.get(f"qmap{str(key)[-1:]}")
        if isinstance(codes, Tensor) and isinstance(table, Tensor) and codes.dtype == torch.uint8:
            yield key, codes, table


def _numbers(keys: Iterable[Any]) -> set[str]:
    return {str(key)[-1:] for key in keys}


def _wrapped(value: Tensor) -> bool:
    """Whether a tensor stands for others that it holds; a sharded one is its own shard."""
    return hasattr(value, "__tensor_flatten__") and type(value).__name__ != "DTensor"
