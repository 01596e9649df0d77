# SPDX-License-Identifier: MIT
"""Channels as places in tensors: their masks, and the values with which they come back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.channels.coupling import Group
from regrow.channels.named import parameters
from regrow.channels.plan import Plan
from regrow.channels.surgery import Keeps
from regrow.criteria import seeded
from regrow.initializers import Initializer, Return
from regrow.targets import Target

STATISTICS = ("running_mean", "running_var")


def mask_of(name: str, tensor: Tensor, kept: Keeps) -> Tensor | None:
    """The mask of a tensor: what all its dimensions keep; None where all is kept."""
    dims = kept.get(name)
    if dims is None:
        return None
    mask = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
    for dim, keep in dims.items():
        places = [-1 if d == dim else 1 for d in range(tensor.ndim)]
        mask &= keep.to(mask.device).reshape(places)
    return mask


def pruned_now(name: str, tensor: Tensor, kept: Keeps, before: Keeps) -> Tensor | None:
    """Where a tensor is pruned now and was not before; None where it has no channel that went."""
    mask, old = mask_of(name, tensor, kept), mask_of(name, tensor, before)
    return mask if mask is None else ~mask if old is None else old & ~mask


def fresh(back: Return, initializer: Initializer, columns: Tensor | None) -> Tensor:
    """New rows, scale 1 and shift 0 for norms, zero for what reads a returning channel."""
    if back.weight.ndim < 2:
        return torch.full_like(back.weight, float(not back.name.endswith("bias")))
    values = initializer(back).clone()
    if columns is not None and back.input_dim is not None:
        values.index_fill_(back.input_dim, columns.nonzero().flatten().to(values.device), 0)
    return values


def norms(group: Group, held: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm of what the vault holds of each channel."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for (name, dim), channels in group.members.items():
        values = held.get(name)
        if values is None or values.ndim < 2:
            continue
        rest = [d for d in range(values.ndim) if d != dim]
        places = values.double().square().sum(rest).cpu()
        total.index_add_(0, channels[channels >= 0], places[channels >= 0])
    return total.sqrt()


def grow_state(optimizers: Iterable[Optimizer], model: nn.Module, plan: Plan) -> None:
    """Optimizers' state at the original places, zero where something was cut."""
    for name, parameter in parameters(model).items():
        if name not in plan.kept:
            continue
        cut = torch.Size([int(k.sum()) for k in _sizes(plan, name)])
        for optimizer in optimizers:
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == cut and value.ndim:
                    state[key] = plan.spread(name, value)


def restart(optimizers: Iterable[Optimizer], model: nn.Module, plan: Plan) -> None:
    """Drops state that has not the shape of its parameter, so that no cut can be carried over.

    Factors of moments (Adafactor) and the flat history of LBFGS begin anew.
    """
    cut = [parameter for name, parameter in parameters(model).items() if name in plan.kept]
    for optimizer in optimizers:
        if hasattr(optimizer, "_numel_cache"):  # LBFGS counts its parameters once
            optimizer._numel_cache = None
            optimizer.state.clear()
        for parameter in cut:
            held = optimizer.state.get(parameter, {}).values()
            if any(
                isinstance(v, Tensor) and v.numel() > 1 and v.shape != parameter.shape for v in held
            ):
                del optimizer.state[parameter]


def _sizes(plan: Plan, name: str) -> list[Tensor]:
    dims = plan.kept[name]
    return [dims.get(d, torch.ones(size)) for d, size in enumerate(plan.shapes[name])]


def words(cut: Mapping[str, Any]) -> dict[str, Any]:
    """A cut as values that can be compared."""
    return {
        name: {dim: keep.tolist() for dim, keep in dims.items()}
        for name, dims in cut["plan"]["kept"].items()
    }


def read_columns(
    targets: Sequence[Target], groups: Sequence[Group], back: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Where weights read returning channels: bool vectors along their input dimension."""
    inputs = {target.name: target.input_dim for target in targets}
    found: dict[str, Tensor] = {}
    for group in groups:
        for name, dim in group.members:
            if name in inputs and dim == inputs[name] and len(back.get(group.name, ())):
                places = group.places(name, dim, back[group.name])
                found[name] = found[name] | places if name in found else places
    return found


def return_buffer(name: str, buffer: Tensor, places: Tensor, held: Tensor | None) -> None:
    """A buffer of returning channels: what is held of it, else mean 0 and variance 1 of a norm."""
    if held is not None:
        buffer[places] = held.to(buffer.device, buffer.dtype)[places]
    elif name.endswith(STATISTICS):
        buffer[places] = float(name.endswith("running_var"))


def rank_channels(
    groups: Sequence[Group],
    pool: Mapping[str, Tensor],
    seed: tuple[int, int],
    held: Mapping[str, Tensor] | None,
) -> dict[tuple[str, int], float]:
    """A number for each masked channel: the norm of what is held of it, or by lot."""
    ranks: dict[tuple[str, int], float] = {}
    for group in groups:
        if group.name not in pool:
            continue
        generator = seeded(*seed, group.name)
        values = torch.rand(group.size, generator=generator, dtype=torch.float64)
        values = values if held is None else norms(group, held)
        ranks |= {(group.name, int(c)): float(values[c]) for c in pool[group.name]}
    return ranks
