# SPDX-License-Identifier: MIT
"""Notice layers that compute the weight they use, as weight standardisation does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from regrow.distributed.shard import is_dtensor
from regrow.masks.targets import Target
from regrow.utils.names import strip_compile_prefix

_LAYER_FUNCTIONS = {"linear"} | {f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)}


class _WeightsUsed(TorchFunctionMode):
    """Records the weight of every linear or convolution function that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _LAYER_FUNCTIONS:
            self.weights.append(kwargs["weight"] if "weight" in kwargs else args[1])
        return func(*args, **kwargs)


def watch_weight_use(module: nn.Module, targets: tuple[Target, ...]) -> list[RemovableHandle]:
    """Warn of layers whose next forward pass uses a weight that fills the parameter's zeros.

    Only layers of other packages are watched, each for one forward pass: those of torch use their
    parameters as they are. Where a layer computes its weight, the pass is repeated with every
    second weight zero, without gradients, and the warning follows if those are used as non-zero.
    Returns the hooks that have not run yet.
    """
    owners = {strip_compile_prefix(f"{name}.")[:-1]: m for name, m in module.named_modules()}
    handles: list[RemovableHandle] = []
    for target in targets:
        owner = owners.get(target.name.rpartition(".")[0])
        if owner is None or is_dtensor(target.parameter):
            continue
        if not type(owner).__module__.startswith("torch.nn.modules."):
            handles += _watch(owner, target)
    return handles


def _watch(owner: nn.Module, target: Target) -> list[RemovableHandle]:
    mode = _WeightsUsed()
    entered = False

    def before(*_: Any) -> None:
        nonlocal entered
        first.remove()
        if not torch.compiler.is_compiling():
            mode.__enter__()  # type: ignore[no-untyped-call]
            entered = True

    def after(_: nn.Module, args: Any, kwargs: Any, __: Any) -> None:
        last.remove()
        if not entered:
            return
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        used = mode.weights
        if used and not any(weight is target.parameter for weight in used):
            _check_zeros(owner, target, args, kwargs)

    first = owner.register_forward_pre_hook(before)
    last = owner.register_forward_hook(after, with_kwargs=True, always_call=True)
    return [first, last]


@torch.no_grad()
def _check_zeros(owner: nn.Module, target: Target, args: Any, kwargs: Any) -> None:
    """Repeat a forward pass with every second weight zero, and look at the weights it uses."""
    parameter = target.parameter
    values, buffers = parameter.detach().clone(), [b.clone() for b in owner.buffers()]
    removed = (torch.arange(parameter.numel(), device=parameter.device) % 2 == 0).view_as(parameter)
    mode = _WeightsUsed()
    try:
        parameter.data.masked_fill_(removed, 0)
        with torch.random.fork_rng([parameter.device] if parameter.is_cuda else []), mode:
            owner.forward(*args, **kwargs)
    finally:
        parameter.data.copy_(values)
        for buffer, before in zip(owner.buffers(), buffers, strict=True):
            buffer.copy_(before)
    comparable = [weight for weight in mode.weights if weight.shape == parameter.shape]
    if comparable and all(bool((weight[removed] == 0).all()) for weight in comparable):
        return
    rank_zero_warn(
        f"{type(owner).__name__} computes the weight that it uses from {target.name}, as weight "
        "standardisation does: weights that are zero in the parameter are not zero in the layer, "
        "so that its masks save nothing and the reported sparsity is not what the network uses. "
        f"Write exclude=['{target.name}'], or use a layer without this step"
    )
