# SPDX-License-Identifier: MIT
"""Context managers: train and eval mode, math attention, no torch.compile, no collection."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import ParamSpec, TypeVar, cast

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def module_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Switch to train or eval mode, and restore the mode of every module afterwards."""
    flags = {module: module.training for module in model.modules()}
    try:
        model.train(training)
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def eval_mode(model: nn.Module) -> AbstractContextManager[None]:
    """Switch to eval mode, and restore the mode of every module afterwards."""
    return module_mode(model, training=False)


def clear_compiled(model: nn.Module) -> None:
    """Drop what modules derived from their parameters and cache in eval mode.

    Such a cache, a table of attention biases for one, is dropped on the switch to train mode.
    Weights that a hook of `torch.nn.utils` (weight norm, spectral norm) computes are renewed.
    """
    with module_mode(model, training=True):
        pass
    with eval_mode(model), torch.no_grad():
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if type(hook).__module__.startswith("torch.nn.utils."):
                    hook(module, ())


@contextmanager
def no_attention_fastpath() -> Iterator[None]:
    """Run `nn.MultiheadAttention` as separate operations instead of one fused operation."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Put garbage collection off: a pass over all objects of a large program takes a while."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def no_compile(hook: Callable[P, R]) -> Callable[P, R]:
    """Decorate a hook to run as plain Python, even inside a compiled optimizer step.

    Lightning runs forward, backward and the hooks between them inside `optimizer.step`. Events
    differ, so a compiled step would be recompiled for each.
    """
    return cast(Callable[P, R], torch.compiler.disable(hook))  # type: ignore[no-untyped-call]


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Run without gradients and compilation; restore modes, buffers and random generators."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with (
        torch.compiler.set_stance("force_eager"),
        torch.random.fork_rng(devices=devices),
        torch.no_grad(),
        module_mode(model, training),
    ):
        torch.manual_seed(0)
        try:
            yield
        finally:
            for name, buffer in model.named_buffers():
                before = buffers.get(name)  # None: it was made meanwhile
                if before is not None and buffer.shape == before.shape:
                    buffer.copy_(before)
