# SPDX-License-Identifier: MIT
"""Freezer: trains only some positions of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from regrow.distributed.shard import is_dtensor
from regrow.masks.masks import Masks, PackedMasks
from regrow.pruning.enforcer import MaskEnforcer
from regrow.utils.errors import ConfigError, check_patterns, closest_names
from regrow.utils.names import matches_pattern, name_parts, named_parameters, parameters

TrainSpec = str | Iterable[str]
"""What trains: "all", "regrown", or patterns of parameters and modules."""

_WORDS = ("all", "regrown")


class Freezer:
    """Trains some positions of a model's parameters and freezes the others.

    Before a step the gradients of frozen positions are zeroed, so that clipping ignores them; after
    it their values are restored, whatever momentum or weight decay did. Nothing is stored between
    two steps, so other writes to the model are kept. Buffers (running statistics) are not frozen.
    Costs one copy of the frozen parameters a step; nothing while all train.
    """

    def __init__(self, model: nn.Module, enforcer: MaskEnforcer) -> None:
        self.model = model
        self.enforcer = enforcer
        self.free: Masks | None = None  # what trains, by parameter; None: all
        self._frozen: dict[str, Tensor | None] = {}  # None: all positions
        self._parameters: dict[str, nn.Parameter] = {}
        self._before: dict[str, Tensor] = {}

    def check(self, train: TrainSpec) -> str | tuple[str, ...]:
        """Check a setting of what trains, and return it with patterns as a tuple."""
        if train == "all":
            return train
        if any(map(is_dtensor, self._named().values())):
            raise ConfigError(
                f"train={train!r} freezes single positions of whole parameters, and these are "
                "sharded among ranks: write train='all'"
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
        """Set what trains from now on; `regrown` marks the positions that have returned."""
        train = self.check(train)
        if train == "all":
            self._apply(None)
            return
        named = self._named()
        free = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in named.items()}
        if train == "regrown":
            free |= regrown
        else:
            for name in (name for pattern in train for name in self._match(pattern)):
                free[name] = torch.ones_like(named[name], dtype=torch.bool)
        self._apply(Masks(free))

    @torch.no_grad()
    def before(self) -> None:
        """Zero the gradients of frozen positions and copy their values, once a step."""
        for name, frozen in self._frozen.items():
            parameter = self._parameters[name]
            if frozen is not None and frozen.device != parameter.device:
                frozen = self._frozen[name] = frozen.to(parameter.device)
            if parameter.grad is None:
                continue
            if frozen is None:
                parameter.grad.zero_()
            else:
                parameter.grad.masked_fill_(frozen, 0)
        if not self._before:  # a closure may run more than once a step
            self._before = {name: self._parameters[name].detach().clone() for name in self._frozen}

    @torch.no_grad()
    def after(self) -> None:
        """Restore the copied values."""
        for name, value in self._before.items():
            parameter, frozen = self._parameters[name], self._frozen[name]
            parameter.copy_(value if frozen is None else torch.where(frozen, value, parameter))
        self.drop()

    def drop(self) -> None:
        """Drop the copied values, because the step was skipped or the masks have changed."""
        self._before = {}

    def resize(self, change: Callable[[str, Tensor], Tensor]) -> None:
        """Change what trains along with parameters that lost channels."""
        if self.free is not None:
            self._apply(Masks({name: change(name, places) for name, places in self.free.items()}))

    def state_dict(self) -> PackedMasks | None:
        """Return the packed masks of what trains; None: all."""
        return None if self.free is None else self.free.pack()

    def load_state_dict(self, state: PackedMasks | None) -> None:
        """Restore the result of `state_dict`."""
        free = None if state is None else Masks.unpack(state)
        if free is not None:
            free.check(self._named())
        self._apply(free)

    def _apply(self, free: Masks | None) -> None:
        self.drop()
        self.free, self._frozen = free, {}
        self._parameters = {} if free is None else self._named()
        for name, places in (free or {}).items():
            if not places.all():
                self._frozen[name] = ~places if places.any() else None
        self.enforcer.before_step = [] if free is None else [self.before]
        self.enforcer.after_step = [] if free is None else [self.after]

    def _named(self) -> dict[str, nn.Parameter]:
        return parameters(self.model)

    def _match(self, pattern: str) -> list[str]:
        """Return the parameters whose name, or a part of its dotted path, a pattern matches."""
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
