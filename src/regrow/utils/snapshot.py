# SPDX-License-Identifier: MIT
"""CPU copy of parameters, buffers, optimizer state and schedulers, and its restoration."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from regrow.utils.errors import StateError
from regrow.utils.names import buffers, parameters
from regrow.utils.optimizers import load_moments
from regrow.utils.random import make_generator

Scheduler = LRScheduler | ReduceLROnPlateau


class SnapshotStateDict(TypedDict):
    """State of a `TrainingSnapshot`: copies in host memory."""

    parameters: dict[str, Tensor]  # by name
    buffers: dict[str, Tensor]  # by name
    moments: list[dict[int, dict[str, Any]]]  # "state" of each optimizer's state_dict
    rates: list[list[dict[str, Any]]]  # settings of each optimizer's parameter groups
    schedulers: list[dict[str, Any]]  # state_dict of each scheduler


class TrainingSnapshot:
    """A copy, in host memory, of the given parts of a training.

    It shares no tensor with its source or with what it is restored to, so it can be restored
    repeatedly. Of `moments` the optimizers' state is copied, of `rates` the settings of their
    parameter groups, such as the learning rate.
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        *,
        moments: Iterable[Optimizer] = (),
        rates: Iterable[Optimizer] = (),
        schedulers: Iterable[Scheduler] = (),
    ) -> None:
        self._state: SnapshotStateDict = {
            "parameters": {} if module is None else copy_to_cpu(parameters(module)),
            "buffers": {} if module is None else copy_to_cpu(buffers(module)),
            "moments": [copy_to_cpu(optimizer.state_dict()["state"]) for optimizer in moments],
            "rates": [[copy_to_cpu(_settings(g)) for g in o.param_groups] for o in rates],
            "schedulers": [copy_to_cpu(scheduler.state_dict()) for scheduler in schedulers],
        }

    def restore(
        self,
        module: nn.Module | None = None,
        *,
        moments: Iterable[Optimizer] = (),
        rates: Iterable[Optimizer] = (),
        schedulers: Iterable[Scheduler] = (),
    ) -> None:
        """Write the copies back in place; Parameter objects stay the same."""
        if module is not None:
            _write(self._state["parameters"], parameters(module), "parameters")
            _write(self._state["buffers"], buffers(module), "buffers")
        for optimizer, state in self._pairs("moments", moments):
            # a copy, because the optimizer updates these tensors in place
            load_moments(optimizer, copy_to_cpu(state))
        for scheduler, state in self._pairs("schedulers", schedulers):
            scheduler.load_state_dict(copy_to_cpu(state))
        for optimizer, groups in self._pairs("rates", rates):
            # not strict: groups added since (layers unfrozen later) keep their settings
            for group, settings in zip(optimizer.param_groups, groups, strict=False):
                for key, value in settings.items():
                    if isinstance(group.get(key), Tensor):
                        group[key].copy_(value)
                    else:
                        group[key] = copy_to_cpu(value)

    def permuted(self, seed: int) -> TrainingSnapshot:
        """Return a snapshot with the values of each parameter in random order, by seed and name.

        If the values of a tensor are independent draws from one distribution, as those of
        initializers are, this is another draw from it; constant tensors do not change.
        """
        other = TrainingSnapshot()
        other._state = {**self._state, "parameters": {}}
        for name, value in self._state["parameters"].items():
            generator = make_generator(seed, 0, f"{name} again")
            order = torch.randperm(value.numel(), generator=generator)
            other._state["parameters"][name] = value.flatten()[order].view_as(value)
        return other

    def resize(self, change: Callable[[str, Tensor], Tensor], names: list[list[str]]) -> None:
        """Change the copies along with the module, as when channels are cut out.

        `names` are those of the parameters of each optimizer, in its order.
        """
        for tensors in (self._state["parameters"], self._state["buffers"]):
            tensors.update({name: change(name, value) for name, value in tensors.items()})
        for parameter_names, state in zip(names, self._state["moments"], strict=False):
            for index, entries in state.items():
                for key, value in entries.items():
                    if isinstance(value, Tensor):
                        entries[key] = change(parameter_names[index], value)

    def state_dict(self) -> SnapshotStateDict:
        return self._state.copy()

    @classmethod
    def loaded(cls, state: Mapping[str, Any] | None) -> TrainingSnapshot | None:
        """Make a snapshot from the result of `state_dict`; None from None."""
        if state is None:
            return None
        snapshot = cls()
        snapshot._state = copy_to_cpu(state)
        return snapshot

    def _pairs(self, what: str, given: Iterable[Any]) -> list[tuple[Any, Any]]:
        objects, states = list(given), cast("dict[str, Any]", self._state)[what]
        if objects and len(objects) != len(states):
            raise StateError(
                f"the snapshot holds {len(states)} {what}, got {len(objects)}: pass the optimizers "
                "and schedulers that it was made of"
            )
        return list(zip(objects, states, strict=True)) if objects else []


def copy_to_cpu(value: Any) -> Any:
    """Copy nested containers, with their tensors copied to host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if type(value) in (dict, OrderedDict):
        return {key: copy_to_cpu(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(copy_to_cpu, value))
    return copy.deepcopy(value)  # other mappings keep their type: the Counter of MultiStepLR


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


@torch.no_grad()
def _write(copies: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    copied = {name: tensor.shape for name, tensor in copies.items()}
    changed = [n for n in sorted({*shapes, *copied}) if shapes.get(n) != copied.get(n)]
    if changed:
        raise StateError(
            f"the module's {what} are not those of the snapshot: {', '.join(changed[:5])} "
            "were added, removed or reshaped since"
        )
    for name, tensor in tensors.items():
        tensor.copy_(copies[name])
