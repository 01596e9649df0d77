# SPDX-License-Identifier: MIT
"""A forward pass that waits before calls of modules, so that other code runs in between."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from regrow.utils.batches import bound_forward

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


class PausedForward:
    """A forward pass without gradients, in a thread of its own that runs while others wait for it.

    Args:
        model: The model; its mode is left as it is.
        batch: A tensor, a tuple of arguments or a mapping of named ones.

    Example:
        >>> net = nn.Sequential(nn.ReLU(), nn.Linear(2, 1))
        >>> forward = PausedForward(net, torch.tensor([[-1.0, 1.0]]))
        >>> forward.run_to(net[1])
        ((tensor([[0., 1.]]),), {})
        >>> forward.end()
    """

    def __init__(self, model: nn.Module, batch: Any) -> None:
        self._forward = bound_forward(model, batch)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._call: Call | None = None
        self._error: BaseException | None = None
        self._cancelled = self._done = False

    def run_to(self, module: nn.Module) -> Call | None:
        """Go on to the next call of a module; return its arguments, or None if there is none."""
        self._call = None
        with module.register_forward_pre_hook(self._stop, with_kwargs=True):
            self._resume()
        if self._error is not None:
            raise self._error
        return self._call

    def end(self) -> None:
        """Leave out the rest of the pass."""
        self._call, self._cancelled = None, True
        if self._thread.ident is not None:
            self._resume()
            self._thread.join()

    def _resume(self) -> None:
        if self._done:
            return
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._stopped.acquire()

    def _run(self) -> None:
        try:
            with torch.no_grad():
                self._forward()
        except _Ended:
            pass
        except BaseException as error:
            self._error = error
        self._done = True
        self._stopped.release()

    def _stop(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.current_thread() is not self._thread:
            return
        self._call = args, kwargs
        self._stopped.release()
        self._go.acquire()
        if self._cancelled:
            raise _Ended


class _Ended(BaseException):
    """Ends a forward pass; `except Exception` of a model does not catch it."""
