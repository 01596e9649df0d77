# SPDX-License-Identifier: MIT
"""Freezer: trains only some positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regrow.distributed.shard import is_dtensor
from regrow.masks.masks import Masks
from regrow.pruning.enforcer import MaskEnforcer
from regrow.utils.errors import ConfigError, check_patterns, closest_names
from regrow.utils.names import matches_pattern, name_parts, named_parameters, parameters

TrainSpec = str | Iterable[str]


_WORDS = ("all", "regrown")


class Freezer:
    """Trains some positions of a model's parameters and freezes the others.

    Before a step the gradients of held places are zeroed, so that clipping counts what trains
    alone; after it their values are put back, whatever momentum or weight decay made of them.
    Nothing is kept between two steps, so what others write into the model then stays. Buffers
    (running statistics) are not parameters and keep changing. Costs one copy of the frozen
    parameters a step; nothing while all train.

    Args:
        model: The model; a compiled one is seen through.
        enforcer: Whose steps it shares.

    Attributes:
        free: What trains, a bool mask a parameter; None: all.

    Example:
        >>> from regrow import Pruner
        >>> pruner = Pruner(nn.Linear(10, 10))
        >>> _ = pruner.prune_to(0.9)
        >>> _ = pruner.regrow(count=5, train="regrown")
        >>> pruner.freezer.free.pruned, pruner.freezer.free.total  # the bias is held too
        (105, 110)
    """

    def __init__(self, model: nn.Module, enforcer: MaskEnforcer) -> None:
        self.model = model
        self.enforcer = enforcer
        self.free: Masks | None = None
        self._held: dict[str, Tensor | None] = {}  # None: wholly
        self._parameters: dict[str, nn.Parameter] = {}
        self._before: dict[str, Tensor] = {}

    def check(self, train: TrainSpec) -> str | tuple[str, ...]:
        """What trains, in the words that `set` takes.

        Args:
            train: "all", "regrown", or patterns of parameters and modules.

        Raises:
            ConfigError: If a pattern matches no parameter, with the nearest names.
        """
        if train == "all":
            return train
        if any(map(is_dtensor, self._named().values())):
            raise ConfigError(
                f"train={train!r} holds single places of whole parameters, and these are sharded "
                "among ranks: write train='all'"
            )
        if isinstance(train, str) and train in _WORDS:
            return train
        patterns = check_patterns("train", train) or ()
        for pattern in patterns:
            self._match(pattern)
        if not patterns:
            raise ConfigError(f"train must be 'all', 'regrown' or layer patterns, got {train!r}")
        return patterns

    def set(self, train: TrainSpec, regrown: Mapping[str, Tensor]) -> None:
        """Says what trains from now on.

        Args:
            train: "all" (nothing is held), "regrown", or patterns.
            regrown: The places that came back, by name; True = came back.
        """
        train = self.check(train)
        if train == "all":
            self._take(None)
            return
        if train == "regrown":
            chosen = dict(regrown)
        else:
            named = self._named()
            chosen = {
                name: torch.ones_like(named[name], dtype=torch.bool)
                for pattern in train
                for name in self._match(pattern)
            }
        nothing = {n: torch.zeros_like(p, dtype=torch.bool) for n, p in self._named().items()}
        self._take(Masks(nothing | chosen))

    @torch.no_grad()
    def before(self) -> None:
        """Zeroes gradients of held places and notes their values, once a step."""
        for name, held in self._held.items():
            parameter = self._parameters[name]
            if held is not None and held.device != parameter.device:
                held = self._held[name] = held.to(parameter.device)
            if parameter.grad is None:
                continue
            if held is None:
                parameter.grad.zero_()
            else:
                parameter.grad.masked_fill_(held, 0)
        if not self._before:  # a closure may be called more than once a step
            self._before = {name: self._parameters[name].detach().clone() for name in self._held}

    @torch.no_grad()
    def after(self) -> None:
        """Puts the noted values back."""
        for name, value in self._before.items():
            parameter, held = self._parameters[name], self._held[name]
            parameter.copy_(value if held is None else torch.where(held, value, parameter))
        self.drop()

    def drop(self) -> None:
        """Drops the noted values: the step was skipped, or the masks have changed."""
        self._before = {}

    def resize(self, change: Callable[[str, Tensor], Tensor]) -> None:
        """Changes what trains along with parameters that lost channels."""
        if self.free is not None:
            self._take(Masks({name: change(name, places) for name, places in self.free.items()}))

    def state_dict(self) -> dict[str, Any] | None:
        """The packed masks of what trains; None: all."""
        return None if self.free is None else self.free.pack()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Takes what `state_dict` gave.

        Raises:
            StateError: If it is of other parameters, naming them.
        """
        free = None if state is None else Masks.unpack(state)
        if free is not None:
            free.check(self._named())
        self._take(free)

    def _take(self, free: Masks | None) -> None:
        self.drop()
        self.free, self._held = free, {}
        self._parameters = {} if free is None else self._named()
        for name, places in (free or {}).items():
            if not places.all():
                self._held[name] = ~places if places.any() else None
        self.enforcer.before_step = [] if free is None else [self.before]
        self.enforcer.after_step = [] if free is None else [self.after]

    def _named(self) -> dict[str, nn.Parameter]:
        return parameters(self.model)

    def _match(self, pattern: str) -> list[str]:
        """The parameters whose name, or a part of its dotted path, a pattern means."""
        names = {id(parameter): name for name, parameter in self._named().items()}
        aliases = named_parameters(self.model)
        hits = [names[id(p)] for alias, p in aliases.items() if matches_pattern(alias, pattern)]
        if not hits:
            known = {*_WORDS}.union(*map(name_parts, aliases))
            close = closest_names(pattern, sorted(known)) or [*names.values()][:5]
            raise ConfigError(
                f"train={pattern!r} is neither 'all' nor 'regrown' and matches no parameter: "
                f"nearest are {', '.join(close)}"
            )
        return hits
