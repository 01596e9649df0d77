# SPDX-License-Identifier: MIT
"""Forward passes on the same batches, again and again, in which finished modules are not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from regrow.utils.batches import bound_forward
from regrow.utils.modes import no_attention_fastpath

MEMORY = 2**31  # bytes of stored outputs of a model


@dataclass(frozen=True)
class _Output:
    value: Any
    size: int  # bytes
    callers: tuple[nn.Module, ...]  # modules that were running, the outermost first


class _Reached(BaseException):
    """Ends a forward pass; `except Exception` of a model does not catch it."""


class RepeatedForward:
    """Run a model up to one module after the other, in the order in which they run.

    Each pass stores the outputs of modules that return before the wanted module is called, by
    batch; later passes return a copy instead of running the module. So a pass costs what runs
    between two wanted modules. Weights may change if `forget` is told; weights of modules that are
    yet to run always may. An output is not stored if the module changes an input in place or
    returns a part of one, or if the outputs would take more than `memory` bytes.

    A module that is not run has no side effects. Where a model depends on one, such as an
    activation that a module keeps in an attribute, stored outputs may be wrong: see `repeats`.

    Args:
        model: The model; calls of its modules, hooks included, are replaced within the context.
        memory: Bytes of outputs that are stored at most; 0: nothing is.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> with RepeatedForward(model) as passes:
        ...     x = torch.ones(3, 4)
        ...     first = passes.run_to(model[2], 0, x, lambda args, kwargs: args[0], 1)
        ...     again = passes.run_to(model[2], 0, x, lambda args, kwargs: args[0], 1)
        >>> torch.equal(first[0], again[0])
        True
    """

    def __init__(self, model: nn.Module, memory: int = MEMORY) -> None:
        self.model = model
        self._free = memory
        self._stored: dict[int, dict[nn.Module, _Output]] = {}
        self._now: dict[nn.Module, _Output] = {}  # of the batch of this pass
        self._called = Counter[nn.Module]()
        self._running: list[nn.Module] = []
        self._until: nn.Module | None = None
        self._storing = self._comparing = False
        self._same = True  # as stored
        self._steps: dict[nn.Module, list[nn.Module]] = {}  # of each plain nn.Sequential
        self._undo: list[Callable[[], object]] = []

    def __enter__(self) -> RepeatedForward:
        self._steps = {module: _steps(module) for module in self.model.modules()}
        for module in self.model.modules():
            self._replace_call(module)
        return self

    def __exit__(self, *_: object) -> None:
        for undo in self._undo:
            undo()
        self._undo.clear()
        self._stored.clear()

    def run_to(
        self,
        module: nn.Module,
        index: int,
        batch: Any,
        read: Callable[[tuple[Any, ...], dict[str, Any]], Tensor],
        most: int,
    ) -> list[Tensor]:
        """Run the model on a batch until a module was called so often.

        Args:
            module: The module.
            index: The number of the batch.
            batch: The batch: an argument, a tuple of arguments or a mapping.
            read: Returns a tensor from the arguments of a call.
            most: The number of calls.

        Returns:
            A copy of what `read` returned, for each call.
        """
        calls: list[Tensor] = []

        def hook(_: nn.Module, args: Any, kwargs: Any, __: Any) -> None:
            calls.append(read(args, kwargs).detach().clone())
            if len(calls) == most:
                raise _Reached

        self._until, self._storing = module, True
        handle = module.register_forward_hook(hook, with_kwargs=True)
        try:
            self._run_on(index, batch)
        except _Reached:
            pass
        finally:
            handle.remove()
            self._storing = False
        return calls

    def count_calls(self, index: int, batch: Any) -> Counter[nn.Module]:
        """Run every module, and count the calls of each."""
        self._comparing, self._same = True, True
        try:
            self._run_on(index, batch)
        finally:
            self._comparing = False
        return self._called

    @property
    def repeats(self) -> bool:
        """Whether the last `count_calls` had the outputs that were stored."""
        return self._same

    def _run_on(self, index: int, batch: Any) -> None:
        self._now, self._called, self._running = self._stored.setdefault(index, {}), Counter(), []
        with no_attention_fastpath():  # it does not call the modules of an encoder layer
            bound_forward(self.model, batch)()

    def forget(self, *changed: Tensor) -> None:
        """Drop stored outputs if a module that gave one has one of these parameters."""
        gone = {tensor.untyped_storage().data_ptr() for tensor in changed}
        modules = {module for stored in self._stored.values() for module in stored}
        if any(p.untyped_storage().data_ptr() in gone for m in modules for p in m.parameters()):
            for stored in self._stored.values():
                self._free += sum(output.size for output in stored.values())
                stored.clear()

    def _replace_call(self, module: nn.Module) -> None:
        """Use the attribute of `nn.Module.compile`, which copies of a module do not have."""
        key = "_compiled_call_impl"
        before = vars(module).get(key)
        run = module._call_impl if before is None else before
        vars(module)[key] = lambda *args, **kwargs: self._call(module, run, args, kwargs)
        undo = partial(vars(module).pop, key)
        self._undo.append(undo if before is None else partial(vars(module).update, {key: before}))

    def _call(
        self,
        module: nn.Module,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Return the stored output of the first call of a pass, or run the module."""
        if module is self._until:
            self._storing = False
        self._called[module] += 1
        first = self._called[module] == 1
        stored = self._now.get(module) if first else None
        if stored is not None and not self._comparing:
            return _copy(stored.value)
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        versions = [_version(x) for x in inputs]
        self._running.append(module)
        try:
            value = self._run(module, run, args, kwargs)
        finally:
            self._running.pop()
        unchanged = versions == [_version(x) for x in inputs]
        if stored is not None:
            self._same &= _are_close(stored.value, value)
        elif first and self._storing and unchanged and _can_be_stored(value, inputs):
            self._store(module, value)
        return value

    def _run(
        self,
        module: nn.Module,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a module; a plain `nn.Sequential` from behind its last child with a stored output."""
        children = [] if self._comparing else self._steps[module]
        for at in range(len(children) - 1, -1, -1):
            child = children[at]
            stored = self._now.get(child)
            if stored is None or child in self._called or stored.callers[-1] is not module:
                continue
            self._called[child] += 1
            value = _copy(stored.value)
            for later in children[at + 1 :]:
                value = later(value)
            return value
        return run(*args, **kwargs)

    def _store(self, module: nn.Module, value: Any) -> None:
        """Store an output, in place of those that it makes superfluous."""
        size = sum(x.numel() * x.element_size() for x in tree_leaves(value) if _is_tensor(x))
        callers = tuple(self._running)
        steps = self._steps[callers[-1]] if callers else []
        before = steps[: steps.index(module)] if module in steps else []
        gone = [
            other
            for other, stored in self._now.items()
            if module in stored.callers or (other in before and stored.callers[-1:] == callers[-1:])
        ]
        if size <= self._free + sum(self._now[other].size for other in gone):
            for other in gone:
                self._free += self._now.pop(other).size
            self._now[module] = _Output(_copy(value), size, callers)
            self._free -= size


def _steps(module: nn.Module) -> list[nn.Module]:
    """Return the different modules that a plain `nn.Sequential` calls, one after the other."""
    own = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        children = list(module)
        if len(set(children)) == len(children) and not own:
            return children
    return []


def _version(x: Tensor) -> int:
    """Return a number that a change in place raises; -1: not known."""
    return -1 if x.is_inference() else x._version


def _can_be_stored(value: Any, inputs: list[Tensor]) -> bool:
    """Return whether an output consists of plain tensors that share no memory with the inputs."""
    if any(x.is_inference() for x in inputs):
        return False
    leaves = tree_leaves(value)
    if not all(_is_tensor(x) or isinstance(x, int | float | str | None) for x in leaves):
        return False
    tensors = [x for x in leaves if _is_tensor(x)]
    used = {x.untyped_storage().data_ptr() for x in inputs if _is_tensor(x)}
    return not any(x.untyped_storage().data_ptr() in used for x in tensors)


def _is_tensor(x: object) -> bool:
    return type(x) in (Tensor, nn.Parameter)


def _copy(value: Any) -> Any:
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, value)


def _are_close(stored: Any, value: Any) -> bool:
    """Return whether two outputs differ by rounding only."""
    before, now = tree_leaves(stored), tree_leaves(value)
    return len(before) == len(now) and all(
        _is_close(x, y) if isinstance(x, Tensor) else x == y
        for x, y in zip(before, now, strict=True)
    )


def _is_close(x: Tensor, y: Tensor) -> bool:
    if x.shape != y.shape:
        return False
    return float((x.double() - y.double()).norm()) <= 1e-4 * float(y.double().norm())
