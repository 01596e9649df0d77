# SPDX-License-Identifier: MIT
"""Find the configuration of a cut network, for models that are built from a `config`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, TypeAlias

import torch
from torch import nn

from regrow.channels.cut.channel_cut import ChannelCut
from regrow.utils.names import modules, tensors

# (tensor name, dimension) or (module path, attribute) -> size
Measures: TypeAlias = dict[tuple[str, int | str], int]
MOST_FIELDS = 6  # of which all combinations are tried


def configured_models(model: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost modules that can be built from their `config`, by path."""
    found: dict[str, nn.Module] = {}
    for path, module in modules(model).items():
        inside = any(not outer or path.startswith(f"{outer}.") for outer in found)
        if not inside and hasattr(getattr(module, "config", None), "to_dict"):
            found[path] = module
    return found


def cut_config(model: nn.Module, plan: ChannelCut, path: str = "") -> Any | None:
    """Return the configuration with which the class of a cut model builds it.

    Each whole-numbered field is doubled on trial, on the meta device: a size that is linear in it
    tells the value that the cut model needs. Among the fields whose sizes agree, the combination
    with the right shapes and sizes in attributes is taken. `path` is that of the model in the one
    that was cut. None if fields cannot say the sizes, as where layers that share a field differ.
    """
    config: Any = model.config
    prefix = f"{path}." if path else ""
    before, after = _built_sizes(model, config), _measured(model)
    if not before:
        return None
    needed = {key: size for key, size in after.items() if isinstance(key[1], int)}
    for owner, name in plan.attributes:
        key = (owner[len(prefix) :] if owner != path else "", name)
        if f"{owner}.".startswith(prefix) and key in after:
            needed[key] = after[key]
    solved = dict(_solutions(model, before, needed))
    best: tuple[int, Any] | None = None
    for count in range(len(solved) + 1 if len(solved) <= MOST_FIELDS else 0):
        for names in combinations(solved, count):
            tried = _with_fields(config, {name: solved[name] for name in names})
            sizes = _built_sizes(model, tried)
            if any(sizes.get(key) != size for key, size in needed.items()):
                continue
            wrong = sum(sizes.get(key) != size for key, size in after.items())
            if best is None or wrong < best[0]:
                best = wrong, tried
    return None if best is None else best[1]


def _solutions(
    model: nn.Module, before: Measures, needed: Mapping[Any, int]
) -> Iterator[tuple[str, int]]:
    """Yield fields that must change, each with the value on which all sizes agree."""
    config: Any = model.config
    for name, value in config.to_dict().items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            continue
        doubled = _built_sizes(model, _with_fields(config, {name: 2 * value}))
        values = set[float]()
        for key, size in needed.items():
            slope = doubled.get(key, before[key]) - before[key] if key in before else 0
            if slope:
                values.add(value * (1 + (size - before[key]) / slope))
        if len(values) == 1 and (new := values.pop()) != value and new >= 1 and new == int(new):
            yield name, int(new)


def _built_sizes(model: nn.Module, config: Any) -> Measures:
    try:
        with torch.device("meta"):
            return _measured(type(model)(config))
    except Exception:  # the class refuses such a value, each in its own way
        return {}


def _with_fields(config: Any, fields: Mapping[str, int]) -> Any:
    changed = copy.deepcopy(config)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _measured(model: nn.Module) -> Measures:
    """Return the sizes of all tensors, and whole numbers among the attributes of all modules."""
    found: Measures = {}
    for name, tensor in tensors(model).items():
        found |= {(name, dim): size for dim, size in enumerate(tensor.shape)}
    for path, module in modules(model).items():
        for name, value in vars(module).items():
            if isinstance(value, int) and not isinstance(value, bool):
                found[path, name] = value
    return found
