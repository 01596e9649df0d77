# SPDX-License-Identifier: MIT
"""MaskEnforcer and SoftMaskEnforcer: zero pruned weights, gradients and optimizer state.

The working mask is an integer of the weight's width, 0 where pruned and 1 where kept. The product
with the bits of a value, at memory speed, makes any value exactly +0.0: -0.0, NaN and Inf too. One
call multiplies all tensors of a dtype, which on an accelerator is a few kernels for any number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.distributed.shard import is_dtensor, local_tensor
from regrow.pruning.transaction import Transaction
from regrow.utils.bits import integer_type
from regrow.utils.errors import StateError
from regrow.utils.logging import warn
from regrow.utils.modes import no_compile
from regrow.utils.optimizers import (
    Removable,
    add_step_hooks,
    clear_quantized_state,
    find_optimizers,
    is_foreign,
    is_per_weight,
    trained_parameters,
    warn_not_clearable,
)

# Integer views and their masks by dtype: torch multiplies a list of one dtype by few kernels.
_Groups = dict[torch.dtype, tuple[list[Tensor], list[Tensor]]]

# From a zero gradient these make state that is not zero: eps, or the least step size.
_REFILLING = (torch.optim.Adamax, torch.optim.Rprop)


class MaskEnforcer:
    """Stores the working masks of some parameters and applies them; of a DTensor this rank's rows.

    Attributes:
        parameters: The parameters by name; they are changed in place, never replaced.
        transaction: Prevents training after a partly failed mask update.
        before_step: Functions to call before an optimizer step.
        after_step: Functions to call after it, before weights are masked.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self._sharded = any(map(is_dtensor, self.parameters.values()))
        self.transaction = Transaction()
        self._working: dict[str, Tensor] = {}
        self.masked = False  # whether any weight is pruned
        self.before_step: list[Callable[[], None]] = []
        self.after_step: list[Callable[[], None]] = []
        self._warned: set[int] = set()  # optimizers whose state cannot be masked
        self._views: dict[str, Tensor] = {}  # integer views of parameters, slow to make
        self._turn = 0  # of `is_sample_live`
        self._arrays: dict[str, tuple[Tensor, Tensor, Any, Any]] = {}  # what it reads, as NumPy's

    def set_mask(self, name: str, mask: Tensor) -> None:
        """Set the mask of a parameter: a bool tensor of its shape on this rank."""
        self.transaction.mark_started()
        parameter, working = self.data(name), self._working.get(name)
        if int(mask.count_nonzero()) == mask.numel():
            self._working.pop(name, None)
        elif working is not None and _fits(working, parameter):  # faster than new memory
            working.copy_(mask)
        else:
            self._working[name] = working_mask(mask, parameter)
        self.masked = bool(self._working)

    def reset(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Drop all masks, and use parameters that have other shapes now."""
        self.parameters = dict(parameters)
        self._sharded = any(map(is_dtensor, self.parameters.values()))
        for tensors in (self._working, self._views, self._arrays):
            tensors.clear()
        self.masked = False

    def data(self, name: str) -> Tensor:
        """Return a parameter's values, to read and write; this rank's rows if it is sharded."""
        return local_tensor(self.parameters[name].detach())

    def kept(self, name: str) -> Tensor | None:
        """Return the working mask (non-zero = kept); None where nothing is pruned."""
        return self._fitting(name) if name in self._working else None

    def mask(self, name: str) -> Tensor:
        """Make a bool mask."""
        working = self.kept(name)
        if working is None:
            return torch.ones_like(self.data(name), dtype=torch.bool)
        return working != 0

    def weights(self) -> None:
        """Set every pruned weight to exactly +0.0."""
        groups: _Groups = {}
        for name, mask in self._working.items():
            parameter: Tensor = self.parameters[name]
            view = self._views.get(name)
            if self._sharded:
                parameter = local_tensor(parameter.data)
            if view is None or view.data_ptr() != parameter.data_ptr():
                mask = self._fitting(name)
                view = self._views[name] = parameter.detach().view(mask.dtype)
            views, masks = groups.setdefault(mask.dtype, ([], []))
            views.append(view)
            masks.append(mask)
        for views, masks in groups.values():
            torch._foreach_mul_(views, masks)

    def find_live(self) -> list[str]:
        """Return the names of parameters with a pruned weight that is not zero."""
        return [
            name
            for name in self._working
            if bool(((self.data(name) != 0) & (self._fitting(name) == 0)).any())
        ]

    def is_sample_live(self) -> bool:
        """Check 16 weights of a row of one masked parameter, others at each call, for live ones.

        Elements are read one by one from NumPy arrays: kernels would take about 100 microseconds
        amid a training step. On an accelerator, where reading a value waits for all work queued
        before, only every 64th call looks.
        """
        self._turn += 1
        if self._sharded or not self._working:
            return False
        names = list(self._working)
        every = 1 if self.parameters[names[0]].is_cpu else 64
        if self._turn % every:
            return False
        look = self._turn // every
        name, turn = names[look % len(names)], look // len(names)
        parameter, mask, view = self.parameters[name], self._working[name], self._views.get(name)
        if view is None or view.data_ptr() != parameter.data_ptr():
            return True  # never masked yet, or its storage was replaced
        if every > 1:
            row = turn % len(mask)
            return bool((view[row] != 0).gt(mask[row]).any())
        arrays = self._arrays.get(name)
        if arrays is None or arrays[0] is not view or arrays[1] is not mask:
            arrays = self._arrays[name] = view, mask, view.numpy(), mask.numpy()
        _, _, values, kept = arrays
        rows, width = len(kept), kept.size // len(kept)
        step, first = max(1, width // 16), turn % rows * width
        for place in range(first + turn // rows % step, first + width, step):
            if values.item(place) and not kept.item(place):
                return True
        return False

    def gradients(self) -> None:
        """Set every gradient of a pruned weight to exactly +0.0, NaN and Inf too."""
        pairs = []
        for name, mask in self._working.items():
            grad = self.parameters[name].grad
            if grad is not None:
                if grad.layout is torch.strided and 0 in grad.stride():  # its elements share memory
                    grad = self.parameters[name].grad = grad.contiguous()
                if self._sharded:
                    grad = local_tensor(grad)
                if grad.get_device() != mask.get_device():
                    mask = self._fitting(name)
                pairs.append((grad, mask))
        _mask_tensors(pairs)

    def prepare(self) -> None:
        """Prepare an optimizer step: mask gradients."""
        if self.transaction.failed is not None:
            self.transaction.check()
        self.gradients()
        for act in self.before_step:
            act()

    @torch.no_grad()
    def state(self, optimizers: Iterable[Optimizer]) -> None:
        """Zero optimizer state at pruned positions, because momentum would move the weights.

        This covers tensors with one number per weight, 8-bit codes included, and the flat vectors
        over all parameters of LBFGS. For other state there is a warning, once.
        """
        working = {id(parameter): mask for parameter, mask in self._pairs()}
        pairs = []
        for optimizer in optimizers:
            for parameter, state in optimizer.state.items():
                mask = working.get(id(parameter))
                if mask is None:
                    continue
                local = {
                    k: local_tensor(v) if isinstance(v, Tensor) else v for k, v in state.items()
                }
                values = _tensors(local.values())
                pairs += [(value, mask) for value in values if is_per_weight(value, mask.shape)]
                clear_quantized_state(local, mask)
                warn_not_clearable(optimizer, local, mask.shape, self._warned)
            for group in optimizer.param_groups:
                _mask_flat_state(optimizer, group["params"], working)
        _mask_tensors(pairs)

    def install(self, given: Iterable[Optimizer]) -> Handle:
        """Mask gradients before and weights after each step of optimizers and of those they hold.

        An optimizer that holds another (SAM) may read gradients before any step, so they are then
        masked as soon as they are accumulated.
        """
        given = list(given)
        optimizers = find_optimizers(*given)
        trained = trained_parameters(*optimizers)
        if self.parameters and trained.isdisjoint(map(id, self.parameters.values())):
            warn("the optimizer trains no masked parameter: pass the one that trains this model")
        handles: list[Removable] = [self.hook(each, gradients=True) for each in optimizers]
        return Handle(handles + (self._accumulation_hooks() if optimizers != given else []))

    def hook(self, optimizer: Optimizer, *, gradients: bool = False) -> Handle:
        """Mask the weights after each step of an optimizer.

        With `gradients` mask those before each step too, and those of the step's closure.
        """
        # third-party optimizers may do the same as those in `_REFILLING`
        refills = is_foreign(optimizer) or isinstance(optimizer, _REFILLING)

        def after(*_: Any) -> None:
            if self.transaction.failed is not None:
                self.transaction.check()
            for act in self.after_step:
                act()
            self.weights()
            if refills:
                self.state([optimizer])

        # else a compiled step would be recompiled whenever masks change
        before = no_compile(self._before_step) if gradients else None
        return Handle(add_step_hooks(optimizer, before, no_compile(after)))

    def _accumulation_hooks(self) -> list[Removable]:
        """Mask each gradient as soon as a backward pass has accumulated it."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}

        def mask(parameter: Tensor) -> None:
            name = names[id(parameter)]
            if name in self._working and parameter.grad is not None:
                _mask_tensors([(local_tensor(parameter.grad), self._fitting(name))])

        return [
            parameter.register_post_accumulate_grad_hook(mask)  # type: ignore[no-untyped-call]
            for parameter in self.parameters.values()
            if parameter.requires_grad
        ]

    def _before_step(self, _: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any]:
        def masked(given: Any) -> Any:
            def closure() -> Any:
                loss = given()
                self.prepare()
                return loss

            return closure if callable(given) else given

        itself, *rest = args
        if not any(map(callable, [*rest, *kwargs.values()])):
            self.prepare()  # else within the closure, after hooks that need dense gradients
        return (itself, *map(masked, rest)), {key: masked(value) for key, value in kwargs.items()}

    def _pairs(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for name in self._working:
            yield self.parameters[name], self._fitting(name)

    def _fitting(self, name: str) -> Tensor:
        """Return the working mask of a parameter, remade if that was moved or cast."""
        mask, parameter = self._working[name], self.data(name)
        if mask.device != parameter.device or mask.itemsize != parameter.itemsize:
            mask = self._working[name] = working_mask(mask != 0, parameter)
        return mask


class Handle(ExitStack):
    """Removes hooks; also a context manager."""

    def __init__(self, handles: Iterable[Removable]) -> None:
        super().__init__()
        for handle in handles:
            self.callback(handle.remove)

    def remove(self) -> None:
        """Remove the hooks; weights do not change."""
        self.close()


def working_mask(mask: Tensor, parameter: Tensor) -> Tensor:
    """Make the integer mask with a parameter's width, strides and device: 1 = kept, 0 = pruned."""
    working = torch.empty_like(parameter, dtype=integer_type(parameter.dtype), requires_grad=False)
    return working.copy_(mask)


def _fits(working: Tensor, parameter: Tensor) -> bool:
    return (
        working.device == parameter.device
        and working.itemsize == parameter.itemsize
        and working.stride() == parameter.stride()
    )


def _mask_tensors(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set pruned elements to +0.0, given tensors with their working masks."""
    groups: _Groups = {}
    for tensor, mask in pairs:
        if tensor.layout is not torch.strided:
            raise StateError(
                f"a sparse gradient of shape {tuple(tensor.shape)} cannot be masked: "
                "build the embedding with sparse=False, or exclude it"
            )
        if tensor.itemsize == mask.itemsize:
            views, masks = groups.setdefault(mask.dtype, ([], []))
            views.append(tensor.view(mask.dtype))
            masks.append(mask)
        else:
            tensor.detach().masked_fill_(mask == 0, 0)
    for views, masks in groups.values():
        torch._foreach_mul_(views, masks)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list):
            yield from _tensors(value)


def _mask_flat_state(
    optimizer: Optimizer, parameters: list[nn.Parameter], working: Mapping[int, Tensor]
) -> None:
    """Mask state vectors as long as all parameters of a group together (LBFGS)."""
    total = sum(parameter.numel() for parameter in parameters)
    state = optimizer.state.get(parameters[0], {}) if parameters else {}
    if len(parameters) == 1 and parameters[0].dim() == 1:
        return  # of the parameter's shape, masked already
    for value in _tensors(state.values()):
        if value.dim() != 1 or value.numel() != total or not value.is_floating_point():
            continue
        start = 0
        for parameter in parameters:
            part = value[start : start + parameter.numel()]
            if id(parameter) in working:
                part.masked_fill_(working[id(parameter)].reshape(-1) == 0, 0)
            start += parameter.numel()


class SoftMaskEnforcer(MaskEnforcer):
    """Masks parameters whose dense values keep training; stores a copy of each masked weight.

    In an optimizer step the parameters contain the dense values, so that any optimizer updates them
    with the gradients of the masked network; outside it they are masked. Pruned weights may return
    at the next event, with the value they have learned.

    Source: Guo et al. 2016 (dynamic network surgery); Lin et al. 2020 (dynamic pruning with
    feedback).

    Example:
        >>> weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> soft = SoftMaskEnforcer({"w": weight})
        >>> soft.set_mask("w", torch.tensor([True, False])); soft.weights(); weight.tolist()
        [1.0, 0.0]
        >>> soft.prepare(); weight.tolist()  # before a step
        [1.0, 2.0]
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(parameters)
        self._dense: dict[str, Tensor] = {}
        self._inside = False  # whether the parameters contain the dense values

    def reset(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Drop all masks and dense values; the parameters keep the values that they have."""
        super().reset(parameters)
        self._dense.clear()
        self._inside = False

    @torch.no_grad()
    def set_mask(self, name: str, mask: Tensor) -> None:
        """Set a mask; weights that it no longer prunes get their dense value at once."""
        parameter = self.data(name)
        if not self._inside and name in self._dense:
            parameter.copy_(self._latest(name))
        super().set_mask(name, mask)
        if self.kept(name) is None:
            self._dense.pop(name, None)
        else:
            self._dense[name] = parameter.detach().clone()

    @torch.no_grad()
    def insert(self) -> None:
        """Write the dense values into the parameters."""
        if not self._inside:
            for name in self._dense:
                self.data(name).copy_(self._latest(name))
            self._inside = True

    @torch.no_grad()
    def weights(self) -> None:
        """Store the updated dense values, and set every pruned weight to exactly +0.0."""
        if self._inside:
            for name, dense in self._dense.items():
                dense.copy_(self.data(name))
            self._inside = False
        super().weights()

    def gradients(self) -> None:
        """Do nothing: dense values learn from the gradients of pruned weights."""

    def state(self, optimizers: Iterable[Optimizer]) -> None:
        """Do nothing: moments belong to the dense values."""

    def prepare(self) -> None:
        """Prepare an optimizer step: write the dense values."""
        super().prepare()
        self.insert()

    def flush_dense(self) -> None:
        """Move the dense values out if no step followed, as when a scaler skips it."""
        if self._inside:
            self.weights()

    def dense(self, name: str) -> Tensor:
        """Return one parameter's dense values, which must not be changed."""
        return self._latest(name) if name in self._dense else self.data(name)

    def dense_values(self) -> dict[str, Tensor]:
        """Return the dense values at pruned positions, compact, on the CPU."""
        return {name: self._latest(name)[~self.mask(name)].cpu() for name in self._dense}

    @torch.no_grad()
    def load_dense_values(self, values: Mapping[str, Tensor]) -> None:
        """Restore the result of `dense_values`, under the masks saved with it."""
        for name, dense in self._dense.items():
            dense.copy_(self.data(name))
            dense[~self.mask(name)] = values[name].to(dense.device, dense.dtype)

    def _latest(self, name: str) -> Tensor:
        """Return the dense values, with those of the parameter where it is kept."""
        parameter, dense = self.data(name), self._dense[name]
        if self._inside:
            return parameter
        if dense.device != parameter.device or dense.dtype != parameter.dtype:
            dense = self._dense[name] = dense.to(parameter)
        return torch.where(self.mask(name), parameter, dense)
