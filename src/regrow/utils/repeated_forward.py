# SPDX-License-Identifier: MIT
"""Forward passes on the same batches, again and again, up to one module after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from regrow.utils.batches import bound_forward
from regrow.utils.errors import StateError
from regrow.utils.modes import no_attention_fastpath

MEMORY = 2**31  # bytes of stored outputs of a model
Digest = tuple[tuple[float, ...], ...]  # of the arguments of a call


@dataclass(frozen=True)
class _Output:
    value: Any
    size: int  # bytes
    seconds: float  # that it saves
    callers: tuple[nn.Module, ...]  # modules that were running, the outermost first


class _Reached(BaseException):
    """Ends a forward pass; `except Exception` of a model does not catch it."""


class RepeatedForward:
    """Run a model up to one module after the other, in the order in which they run.

    With `memory`, each pass stores the outputs of modules that return before the wanted one is
    called, and later passes on the batch return a copy instead of running the module. So a pass
    costs what runs between two wanted modules. Only weights of modules that have not returned yet
    may change between passes, and each batch may call a wanted module only once.

    A module that does not run has no side effects. A model that depends on one, such as an
    activation that a hook keeps, may fail or compute something else; `check` tells.

    Args:
        model: The model; calls of its modules, hooks included, are replaced within the context.
        memory: Bytes of outputs that are stored at most, of a batch those that save most time per
            byte; 0: every pass runs every module.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> with RepeatedForward(model, MEMORY) as passes:
        ...     x = torch.ones(3, 4)
        ...     first = passes.run_to(model[2], 0, x, lambda args, kwargs: args[0])
        ...     again = passes.run_to(model[2], 0, x, lambda args, kwargs: args[0])
        >>> torch.equal(first[0], again[0])
        True
    """

    def __init__(self, model: nn.Module, memory: int = 0) -> None:
        self.model = model
        self._memory = self._free = memory
        self._stored: dict[int, dict[nn.Module, _Output]] = {}  # by batch
        self._now: dict[nn.Module, _Output] = {}  # of the batch of this pass
        self._called: set[nn.Module] = set()  # in this pass
        self._running: list[nn.Module] = []
        self._saved = 0.0  # seconds of the modules that did not run
        self._wanted: nn.Module | None = None
        self._reached = False  # the wanted module was called
        self._steps: dict[nn.Module, list[nn.Module]] = {}  # of each plain nn.Sequential
        self._digests: dict[tuple[nn.Module, int], Digest] = {}
        self._undo: list[Callable[[], object]] = []

    def __enter__(self) -> RepeatedForward:
        if self._memory:
            self._steps = {module: _steps_of(module) for module in self.model.modules()}
            for module in self.model.modules():
                self._replace_call(module)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore_calls()
        self._digests.clear()

    def run_to(
        self,
        module: nn.Module,
        index: int,
        batch: Any,
        read: Callable[[tuple[Any, ...], dict[str, Any]], Tensor],
    ) -> list[Tensor]:
        """Run the model on a batch; with `memory`, up to the call of a module.

        Args:
            module: The module.
            index: The number of the batch.
            batch: The batch: an argument, a tuple of arguments or a mapping.
            read: Returns a tensor from the arguments of a call.

        Returns:
            A copy of what `read` returned, for each call.

        Raises:
            StateError: With `memory`, if the module is not called, or got other arguments before.
        """
        found: list[Tensor] = []

        def hook(_: nn.Module, args: Any, kwargs: Any, __: Any) -> None:
            found.append(read(args, kwargs).detach().clone())
            if self._memory:
                digest = _digest(args, kwargs)
                if self._digests.setdefault((module, index), digest) != digest:
                    raise StateError("two passes on a batch differ")
                raise _Reached

        self._now, self._called, self._running = self._stored.setdefault(index, {}), set(), []
        self._wanted, self._reached = module, False
        handle = module.register_forward_hook(hook, with_kwargs=True)
        try:
            with no_attention_fastpath():  # it does not call the modules of an encoder layer
                bound_forward(self.model, batch)()
        except _Reached:
            pass
        finally:
            handle.remove()
        if self._memory and not found:
            raise StateError("a pass with stored outputs does not call the module")
        return found

    def check(self, batches: Iterable[Any]) -> None:
        """Run all modules on each batch, and compare the arguments of the wanted ones.

        Calls are as before from here on.

        Raises:
            StateError: If they are not those that passes with stored outputs gave.
        """
        self._restore_calls()
        wanted = {module for module, _ in self._digests}
        for index, batch in enumerate(batches):
            digests = digest_calls(self.model, wanted, batch)
            for module in wanted:
                if digests[module] != [self._digests.get((module, index))]:
                    raise StateError("a pass without stored outputs differs")

    def _replace_call(self, module: nn.Module) -> None:
        """Replace a call by the attribute that `nn.Module.compile` uses: deep copies lack it."""
        key = "_compiled_call_impl"
        compiled = vars(module).get(key)
        run = module._call_impl if compiled is None else compiled
        vars(module)[key] = lambda *args, **kwargs: self._call(module, run, args, kwargs)
        undo = partial(vars(module).pop, key)
        self._undo.append(undo if compiled is None else partial(vars(module).update, {key: run}))

    def _restore_calls(self) -> None:
        for undo in self._undo:
            undo()
        for state in (self._undo, self._stored, self._now):
            state.clear()
        self._free = self._memory

    def _call(
        self,
        module: nn.Module,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Return the stored output of the first call of a pass, or run the module."""
        if module is self._wanted:
            self._reached = True
        if self._reached:
            return run(*args, **kwargs)
        first = module not in self._called
        self._called.add(module)
        if first and module in self._now:
            return self._reuse(module)
        start = time.perf_counter() + self._saved
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        versions = [_version(x) for x in inputs]
        self._running.append(module)
        try:
            output = self._run(module, partial(run, *args, **kwargs))
        finally:
            self._running.pop()
            if versions != [_version(x) for x in inputs]:  # changed in place
                first, self._steps[module] = False, []
        if first and not self._reached and _can_be_stored(output, inputs):
            self._store(module, output, time.perf_counter() + self._saved - start)
        return output

    def _reuse(self, module: nn.Module) -> Any:
        stored = self._now[module]
        self._saved += stored.seconds
        return _copy(stored.value)

    def _run(self, module: nn.Module, run: Callable[[], Any]) -> Any:
        """Run a module; of a plain `nn.Sequential`, what follows the last stored output."""
        steps = self._steps[module]
        for at in range(len(steps) - 1, -1, -1):
            stored = self._now.get(steps[at])
            if stored and steps[at] not in self._called and stored.callers[-1:] == (module,):
                self._called.add(steps[at])
                x = self._reuse(steps[at])
                for step in steps[at + 1 :]:
                    x = step(x)
                return x
        return run()

    def _store(self, module: nn.Module, output: Any, seconds: float) -> None:
        """Store an output, in place of those that it makes superfluous, or that save less time."""
        callers = tuple(self._running)
        steps = self._steps[callers[-1]] if callers else []
        before = steps[: steps.index(module)] if module in steps else []
        covered = {module, *before}
        gone = [
            other
            for other, stored in self._now.items()
            if covered & {other, *stored.callers[len(callers) :]}
            and stored.callers[: len(callers)] == callers
        ]
        seconds += sum(self._now[other].seconds for other in gone if other in before)
        size = sum(x.numel() * x.element_size() for x in tree_leaves(output) if _is_plain(x))
        rates = {m: x.seconds / x.size for m, x in self._now.items() if m not in gone and x.size}
        room = self._free + sum(self._now[other].size for other in gone)
        for other in sorted(rates, key=rates.__getitem__):
            if room < size and rates[other] * size < seconds:
                gone.append(other)
                room += self._now[other].size
        if size <= room:
            for other in gone:
                self._free += self._now.pop(other).size
            self._now[module] = _Output(_copy(output), size, seconds, callers)
            self._free -= size


def digest_calls(
    model: nn.Module, modules: Iterable[nn.Module], batch: Any
) -> dict[nn.Module, list[Digest]]:
    """Run a model on a batch, and return a digest of the arguments of each call of modules."""
    found: dict[nn.Module, list[Digest]] = {module: [] for module in modules}

    def hook(module: nn.Module, args: Any, kwargs: Any, _: Any) -> None:
        found[module].append(_digest(args, kwargs))

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in found]
    try:
        with no_attention_fastpath():
            bound_forward(model, batch)()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _digest(args: Any, kwargs: Any) -> Digest:
    """Return the shape, the sum, the norm and the sum of every third value of each tensor."""
    found = []
    for x in tree_leaves((args, kwargs)):
        if isinstance(x, Tensor):
            values = (torch.view_as_real(x) if x.is_complex() else x).detach().reshape(-1)
            values = values if values.is_floating_point() else values.double()
            f64 = torch.float64
            sums = values.sum(dtype=f64), values[::3].sum(dtype=f64)
            norm = torch.linalg.vector_norm(values, dtype=f64)
            found.append((*map(float, x.shape), *torch.stack([*sums, norm]).tolist()))
    return tuple(found)


def _steps_of(module: nn.Module) -> list[nn.Module]:
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


def _can_be_stored(output: Any, inputs: Sequence[Tensor]) -> bool:
    """Return whether an output has plain tensors of its own, and no other objects."""
    leaves = tree_leaves(output)
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    if not tensors or not all(isinstance(x, Tensor | int | float | str | None) for x in leaves):
        return False
    if not all(map(_is_plain, [*tensors, *inputs])):
        return False
    own = [x.untyped_storage().data_ptr() for x in tensors]
    given = {x.untyped_storage().data_ptr() for x in inputs}
    return len(set(own)) == len(own) and not given & set(own)


def _is_plain(x: Any) -> bool:
    """Return whether a value is a dense tensor without a gradient to come."""
    plain = type(x) in (Tensor, nn.Parameter) and x.layout is torch.strided and not x.is_nested
    return plain and not x.is_inference() and (isinstance(x, nn.Parameter) or not x.requires_grad)


def _copy(output: Any) -> Any:
    return tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, output)
