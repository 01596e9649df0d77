# SPDX-License-Identifier: MIT
"""Record the arguments and output of one forward call of a submodule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn
from torch.utils.hooks import RemovableHandle

from regrow.utils.errors import ConfigError, StateError, suggest
from regrow.utils.modes import no_compile


class Call(NamedTuple):
    """One call of a module."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


class ForwardRecorder:
    """Records the calls of one submodule within `recording()`.

    The name "" is the module itself, whose calls as `self(x)` are recorded. It is the hook too,
    where a closure could not be copied and pickled with the module.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        named = dict(module.named_modules())
        if name not in named:
            raise ConfigError(f"the module has no submodule {name!r}: {suggest(name, named)}")
        self.name = name
        self._listens = False
        self._calls: list[Call] = []
        self._handle: RemovableHandle = named[name].register_forward_hook(self, with_kwargs=True)

    @no_compile
    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if self._listens:
            self._calls.append(Call(args, kwargs, output))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record calls; earlier ones are forgotten."""
        self._calls.clear()
        self._listens = True
        try:
            yield
        finally:
            self._listens = False

    def single_call(self, wrapped: bool = False) -> Call:
        """The single recorded call.

        If `wrapped`, the last call is that of a wrapper (DDP), which runs the training step inside.
        """
        calls = self._calls[:-1] if wrapped else self._calls[:]
        self._calls.clear()  # nothing outlives the step
        what = repr(self.name) if self.name else "the module's own forward"
        if not calls:
            raise StateError(
                f"training_step never called {what} (as self(x), not self.forward(x)): name the "
                "submodule that it calls"
            )
        if len(calls) > 1:
            raise StateError(
                f"training_step called {what} {len(calls)} times, so nothing tells which logits "
                "are meant: name a submodule that is called once"
            )
        return calls[0]

    def remove(self) -> None:
        self._handle.remove()
        self._calls.clear()
