# SPDX-License-Identifier: MIT
"""CPU copy of parameters, buffers, optimizer state, schedulers; restore."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from regrow.utils.errors import StateError
from regrow.utils.names import strip_compile_prefix
from regrow.utils.optimizers import load_moments
from regrow.utils.random import make_generator

Scheduler = LRScheduler | ReduceLROnPlateau


class TrainingSnapshot:
    """A true copy, in host memory, of the parts of a training that are given.

    Nothing in it is shared with what it was copied from or is written back to, so the second
    return is as right as the first.

    Args:
        module: Its parameters and buffers are remembered, running statistics included.
        moments: The optimizers whose state is remembered.
        rates: The optimizers whose settings are remembered: learning rate, and whatever else a
            schedule may move.
        schedulers: Those that stand at this step of their schedules.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> start, memory = layer.weight.clone(), TrainingSnapshot(layer)
        >>> _ = layer.weight.detach().zero_()
        >>> memory.restore(layer)
        >>> bool((layer.weight == start).all())
        True
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        *,
        moments: Iterable[Optimizer] = (),
        rates: Iterable[Optimizer] = (),
        schedulers: Iterable[Scheduler] = (),
    ) -> None:
        self._state: dict[str, Any] = {
            "parameters": {} if module is None else _copied(_parameters(module)),
            "buffers": {} if module is None else _copied(_buffers(module)),
            "moments": [_copied(optimizer.state_dict()["state"]) for optimizer in moments],
            "rates": [[_copied(_settings(g)) for g in o.param_groups] for o in rates],
            "schedulers": [_copied(scheduler.state_dict()) for scheduler in schedulers],
        }

    def restore(
        self,
        module: nn.Module | None = None,
        *,
        moments: Iterable[Optimizer] = (),
        rates: Iterable[Optimizer] = (),
        schedulers: Iterable[Scheduler] = (),
    ) -> None:
        """Writes back in place what it is given; Parameter objects stay what they are.

        Raises:
            StateError: If that is not of the shape, or not of the number, that was remembered.
        """
        if module is not None:
            _write(self._state["parameters"], _parameters(module), "parameters")
            _write(self._state["buffers"], _buffers(module), "buffers")
        for optimizer, state in self._pairs("moments", moments):
            # a copy: the optimizer would go on writing into the remembered tensors
            load_moments(optimizer, _copied(state))
        for scheduler, state in self._pairs("schedulers", schedulers):
            scheduler.load_state_dict(_copied(state))
        for optimizer, groups in self._pairs("rates", rates):
            # not strict: groups that came since, as of layers unfrozen later, keep what they have
            for group, settings in zip(optimizer.param_groups, groups, strict=False):
                for key, value in settings.items():
                    if isinstance(group.get(key), Tensor):
                        group[key].copy_(value)
                    else:
                        group[key] = _copied(value)

    def permuted(self, seed: int) -> TrainingSnapshot:
        """The same with the values of each parameter in random order.

        Where a tensor's values were drawn independently from one distribution, as initialisers do,
        this is another draw from it, whichever it was; constant ones stay as they are.

        Args:
            seed: The order depends on it and on the parameter's name alone.
        """
        other = TrainingSnapshot()
        other._state = self._state | {
            "parameters": {
                name: value.flatten()[
                    torch.randperm(
                        value.numel(), generator=make_generator(seed, 0, f"{name} again")
                    )
                ].view_as(value)
                for name, value in self._state["parameters"].items()
            }
        }
        return other

    def resize(self, change: Callable[[str, Tensor], Tensor], names: list[list[str]]) -> None:
        """Changes what is remembered along with the module, as when channels were cut out.

        Args:
            change: `(name, tensor) -> tensor`.
            names: Of the parameters of each optimizer, in its order.
        """
        for kind in ("parameters", "buffers"):
            held = self._state[kind]
            self._state[kind] = {name: change(name, value) for name, value in held.items()}
        for own, state in zip(names, self._state["moments"], strict=False):
            for index, entries in state.items():
                for key, value in entries.items():
                    if isinstance(value, Tensor):
                        entries[key] = change(own[index], value)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtin types only."""
        return dict(self._state)

    @classmethod
    def loaded(cls, state: Mapping[str, Any] | None) -> TrainingSnapshot | None:
        """What `state_dict` gave, as a memory again; None of none."""
        if state is None:
            return None
        memory = cls()
        memory.load_state_dict(state)
        return memory

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes a copy of what `state_dict` gave."""
        self._state = {key: _copied(state[key]) for key in self._state}

    def _pairs(self, what: str, given: Iterable[Any]) -> list[tuple[Any, Any]]:
        found, held = list(given), self._state[what]
        if found and len(found) != len(held):
            raise StateError(
                f"{len(held)} {what} were remembered, {len(found)} are there: give back the "
                "optimizers and schedulers of the moment that is remembered"
            )
        return list(zip(found, held, strict=True)) if found else []


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return {
        strip_compile_prefix(name): parameter.detach()
        for name, parameter in module.named_parameters()
    }


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return {strip_compile_prefix(name): buffer for name, buffer in module.named_buffers()}


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


@torch.no_grad()
def _write(held: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    changed = [
        name
        for name in sorted({*held, *tensors})
        if name not in held or name not in tensors or held[name].shape != tensors[name].shape
    ]
    if changed:
        raise StateError(
            f"the module's {what} are not those that were remembered: {', '.join(changed[:5])} "
            "came, went or changed shape since"
        )
    for name, tensor in tensors.items():
        tensor.copy_(held[name])


def _copied(value: Any) -> Any:
    """Containers rebuilt, tensors copied to host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    return copy.deepcopy(value)  # a Counter of milestones stays one
