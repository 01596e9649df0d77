# SPDX-License-Identifier: MIT
"""Restore what a forward pass changes in the modules of a model."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

# modules whose hooks compute weights, and the hidden states that a model of `transformers` reads
_COMPUTING = ("torch.nn.utils.", "transformers.utils.output_capturing")
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Restore items of containers in modules, and Python's and NumPy's generators, afterwards.

    Values of buffers that are changed in place are restored by `regrow.utils.modes.in_mode`.
    """
    containers: dict[int, tuple[Any, Any]] = {}
    for module in model.modules():
        _copy_containers(vars(module), containers)
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        for container, items in containers.values():
            container.clear()
            (container.extend if isinstance(container, list | deque) else container.update)(items)
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """Skip forward hooks, except those that compute weights or collect outputs (`_COMPUTING`)."""
    saved = [(getattr(m, name), dict(getattr(m, name))) for m in model.modules() for name in HOOKS]
    for hooks, entries in saved:
        for number, hook in entries.items():
            owner = getattr(hook, "__module__", None) or type(hook).__module__
            if not owner.startswith(_COMPUTING):
                del hooks[number]
    try:
        yield
    finally:
        for hooks, entries in saved:
            hooks.clear()
            hooks.update(entries)


@contextmanager
def no_mask_detection() -> Iterator[None]:
    """Trace `nn.Transformer` without its check, which depends on data, if a mask is causal."""
    transformer: Any = nn.modules.transformer
    detect = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect


def _copy_containers(value: Any, found: dict[int, tuple[Any, Any]]) -> None:
    """Copy the items of nested lists, dictionaries and sets, by the container's id."""
    if id(value) in found or not isinstance(value, list | dict | set | deque):
        return
    found[id(value)] = (value, value.copy())
    for item in value.values() if isinstance(value, dict) else value:
        _copy_containers(item, found)
