# SPDX-License-Identifier: MIT
"""Per-weight optimizer state: find, clear, load; the parameters an optimizer trains.

Most optimizers keep tensors of the parameter's shape, where 0 means nothing accumulated. 8-bit
optimizers keep codes, which a table maps to numbers, and code 0 is not the number 0. State of
another shape (blocks, factors) cannot be attributed to single weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.optim import Optimizer


def trained_parameters(*optimizers: Optimizer) -> set[int]:
    """Return the ids of the parameters that optimizers train."""
    return {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}


def is_foreign(optimizer: object) -> bool:
    """Check whether an optimizer is of another package than torch."""
    return not type(optimizer).__module__.startswith("torch.optim")


def as_list(optimizer: Optimizer | Iterable[Optimizer]) -> list[Optimizer]:
    """Return one optimizer, of torch or not, or several as a list."""
    if hasattr(optimizer, "param_groups"):
        return [cast("Optimizer", optimizer)]
    return list(optimizer)


def find_optimizers(*given: Any) -> list[Optimizer]:
    """Return optimizers and those they hold, such as the base optimizer of SAM or Lookahead.

    Whatever has `param_groups` and `step` counts as an optimizer. Attributes are searched, and
    lists, tuples and dicts among them.
    """
    found: dict[int, Optimizer] = {}
    queue = list(given)
    while queue:
        value = queue.pop(0)
        if id(value) in found or not (hasattr(value, "param_groups") and hasattr(value, "step")):
            continue
        found[id(value)] = value
        for held in vars(value).values():
            queue += held.values() if isinstance(held, dict) else [held]
            queue += held if isinstance(held, (list, tuple)) else []
    return list(found.values())


class Removable(Protocol):
    """What a registered hook returns."""

    def remove(self) -> None:
        """Remove the hook."""


class StepHandle:
    """Removes hooks from an optimizer whose `step` was wrapped."""

    def __init__(self, optimizer: Any, wrapped: Callable[..., Any]) -> None:
        self.optimizer, self.wrapped, self.step = optimizer, wrapped, optimizer.step
        optimizer.step = wrapped

    def remove(self) -> None:
        """Restore `step`, unless others have wrapped it since."""
        if self.optimizer.step is self.wrapped:
            self.optimizer.step = self.step


def add_step_hooks(
    optimizer: Optimizer,
    before: Callable[..., Any] | None = None,
    after: Callable[..., Any] | None = None,
) -> list[Removable]:
    """Call functions around each step, as hooks of `torch.optim`, for any optimizer.

    One that keeps no such hooks has its `step` wrapped. `before` gets `(optimizer, args, kwargs)`,
    with the optimizer itself first in `args`, and returns the changed `args` and `kwargs`.
    """
    calls_hooks = getattr(type(optimizer).step, "hooked", False)  # set by Optimizer.__init__
    if calls_hooks and hasattr(optimizer, "_optimizer_step_post_hooks"):
        handles: list[Removable] = []
        handles += [] if before is None else [optimizer.register_step_pre_hook(before)]
        handles += [] if after is None else [optimizer.register_step_post_hook(after)]
        return handles
    step = optimizer.step

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            (_, *args), kwargs = before(optimizer, (optimizer, *args), kwargs)
        result = step(*args, **kwargs)
        if after is not None:
            after(optimizer, args, kwargs)
        return result

    return [StepHandle(optimizer, wrapped)]


def is_per_weight(value: object, shape: torch.Size) -> bool:
    """Check whether state has one number per weight: that shape, floating point, no codes."""
    return (
        isinstance(value, Tensor)
        and value.shape == shape
        and value.is_floating_point()
        and not _is_wrapper(value)
    )


@torch.no_grad()
def clear_quantized_state(state: Mapping[Any, Any], kept: Tensor) -> None:
    """Write the code that means 0 into the quantized state of pruned weights (`kept` is 0)."""
    for _, codes, table in _quantized(state):
        if codes.shape == kept.shape:
            codes.masked_fill_(kept == 0, table.abs().argmin().to(codes.dtype))


def warn_not_clearable(
    optimizer: Optimizer, state: Mapping[Any, Any], shape: torch.Size, warned: set[int]
) -> None:
    """Warn once per optimizer about state that cannot be cleared for single weights.

    torch's own optimizers have none: the factors of Adafactor hold sizes, not directions. `warned`
    collects the ids of optimizers.
    """
    if id(optimizer) in warned or not is_foreign(optimizer):
        return
    names = not_clearable(state, shape)
    if names:
        warned.add(id(optimizer))
        warnings.warn(
            f"{type(optimizer).__name__} does not store {', '.join(names)} as one number per "
            "weight, so this state cannot be zeroed or kept for single weights. Pruned weights "
            "stay exactly zero; one that returns (regrow, unprune) may start with momentum from "
            "before it was pruned",
            stacklevel=2,
        )


def not_clearable(state: Mapping[Any, Any], shape: torch.Size) -> list[str]:
    """Return the names of state tensors that cannot be cleared per weight; scalars are ignored."""
    codes = {key for key, values, _ in _quantized(state) if values.shape == shape}
    numbers = {str(key)[-1:] for key in codes}
    tables = {f"{word}{n}" for n in numbers for word in ("qmap", "absmax", "max", "new_max")}
    return [
        str(key)
        for key, value in state.items()
        if isinstance(value, Tensor)
        and value.numel() > 1
        and key not in codes | tables
        and not is_per_weight(value, shape)
    ]


def load_moments(optimizer: Optimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
    """Load the "state" of a `state_dict` without changing dtypes or the present settings.

    `Optimizer.load_state_dict` alone casts every tensor to the parameter's dtype, which changes a
    float32 average beside bfloat16 weights, and 8-bit codes. The optimizer shares the tensors.
    """
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(state), "param_groups": groups})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in groups for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        loaded = optimizer.state.get(parameter, {})
        for key, value in state.get(number, {}).items():
            cast = loaded.get(key)
            if isinstance(value, Tensor) and isinstance(cast, Tensor) and cast.dtype != value.dtype:
                loaded[key] = value.to(cast.device)


def _quantized(state: Mapping[Any, Any]) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Quantized state of bitsandbytes and torchao: (key, codes, table).

    Source: bitsandbytes 0.50 (`state1` of uint8 beside `qmap1`), torchao 0.18 (`OptimState8bit`).
    """
    for key, value in state.items():
        if isinstance(value, Tensor) and _is_wrapper(value):
            codes, table = getattr(value, "codes", None), getattr(value, "qmap", None)
        else:
            codes, table = value, state.get(f"qmap{str(key)[-1:]}")
        if isinstance(codes, Tensor) and isinstance(table, Tensor) and codes.dtype == torch.uint8:
            yield key, codes, table


def _is_wrapper(value: Tensor) -> bool:
    """Whether a tensor subclass wraps other tensors; a DTensor counts as its own shard."""
    return hasattr(value, "__tensor_flatten__") and type(value).__name__ != "DTensor"
