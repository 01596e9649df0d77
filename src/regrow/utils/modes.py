# SPDX-License-Identifier: MIT
"""Context managers: eval mode, math attention, no torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar, cast

import torch
from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every module is as it was."""
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in flags.items():
            module.training = training


def clear_compiled(model: nn.Module) -> None:
    """Makes modules drop what they derived from parameters and keep while they evaluate.

    Such as a table of attention biases: it is dropped on the way to training.
    """
    flags = {module: module.training for module in model.modules()}
    try:
        model.train()
    finally:
        for module, training in flags.items():
            module.training = training


P = ParamSpec("P")


R = TypeVar("R")


def no_compile(hook: Callable[P, R]) -> Callable[P, R]:
    """Runs a hook as plain Python, even where it is called within a compiled optimizer step.

    Lightning runs forward, backward and the hooks between them inside `optimizer.step`. What an
    event does differs from event to event, so a compiled step would be compiled anew for each.

    Example:
        >>> no_compile(len)("abc")
        3
    """
    return cast(Callable[P, R], torch.compiler.disable(hook))  # type: ignore[no-untyped-call]


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Without gradients, uncompiled; generators and buffers are put back."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    plainly = torch.compiler.set_stance("force_eager")  # each run would compile for itself
    with plainly, torch.random.fork_rng(devices=devices), torch.no_grad(), eval_mode(model):
        torch.manual_seed(0)
        if training:
            model.train()
        try:
            yield
        finally:
            for name, buffer in model.named_buffers():
                if buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])
