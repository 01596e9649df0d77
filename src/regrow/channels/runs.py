# SPDX-License-Identifier: MIT
"""Runs of a model that leave no trace, and what is compared of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from regrow.macs import batch_size, evaluating


@contextmanager
def running(model: nn.Module, training: bool) -> Iterator[None]:
    """Without gradients, uncompiled; generators and buffers are put back."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    plainly = torch.compiler.set_stance("force_eager")  # each run would compile for itself
    with plainly, torch.random.fork_rng(devices=devices), torch.no_grad(), evaluating(model):
        torch.manual_seed(0)
        if training:
            model.train()
        try:
            yield
        finally:
            for name, buffer in model.named_buffers():
                if buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])


def noise_like(example_input: Any) -> Any:
    """Random numbers of the example's shapes: zeros would hide what a channel does."""
    generator = torch.Generator().manual_seed(0)

    def noise(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_floating_point():
            return torch.randn(x.shape, generator=generator).to(x.dtype)
        return x

    return tree_map(noise, example_input)


def repeated(example_input: Any) -> Any:
    """A batch one example longer."""
    size = batch_size(example_input)

    def longer(x: Any) -> Any:
        if isinstance(x, Tensor) and x.dim() and len(x) == size:
            return torch.cat([x, x[:1]])
        return x

    return tree_map(longer, example_input)


def output_tensors(output: Any) -> list[Tensor]:
    """All tensors of an output, those of plain objects included."""
    values = output if isinstance(output, tuple | list | Mapping) else [output]
    leaves = tree_leaves(values)
    if any(not isinstance(leaf, Tensor) for leaf in leaves):
        held = [vars(leaf) for leaf in leaves if hasattr(leaf, "__dict__")]
        leaves = [*leaves, *tree_leaves(held)]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def floats(output: Any) -> list[Tensor]:
    """Those of them that hold real numbers."""
    return [tensor for tensor in output_tensors(output) if tensor.is_floating_point()]


def relative(found: Tensor, reference: Tensor) -> float:
    """The largest difference, over the largest number."""
    if not reference.numel():
        return 0.0
    scale = float(reference.abs().max())
    return float((found - reference).abs().max()) / (scale or 1.0)
