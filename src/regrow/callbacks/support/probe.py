# SPDX-License-Identifier: MIT
"""Compute losses and gradients on a copy of the module, so that the fit is unaffected."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import IterableDataset

from regrow.utils.errors import ConfigError, StateError, suggest
from regrow.utils.lightning_classes import lightning_classes, pl
from regrow.utils.names import strip_compile_prefix
from regrow.utils.random import make_generator

_HALVES = (torch.float16, torch.bfloat16)


def probe_copy(
    trainer: pl.Trainer, module: pl.LightningModule, single: bool = True
) -> pl.LightningModule:
    """A copy of a module in a fit that logs nothing; half precision becomes single, if wanted."""
    try:
        twin = copy.deepcopy(module, {id(trainer): trainer})
    except Exception as error:
        raise StateError(
            f"weights are scored on a copy of {type(module).__name__}, which cannot be copied: "
            f"{error}; remove attributes that copy.deepcopy does not support, or write "
            "method='random'"
        ) from error
    if (compiled := twin._compiler_ctx) is not None:
        for name in ("forward", "training_step"):
            setattr(twin, name, compiled[f"original_{name}"])
        twin._compiler_ctx = None
    twin.trainer = trainer
    for part in twin.modules():
        if isinstance(part, lightning_classes("LightningModule")):
            part.__dict__["log"] = _silent
    if single and any(p.dtype in _HALVES for p in twin.parameters()):
        twin = twin.float()
    return twin


def training_loss(module: nn.Module, numbered: tuple[int, Any]) -> Tensor:
    """The loss of a module's own `training_step` for a (number, batch)."""
    number, batch = numbered
    step: Any = module.training_step
    named = pl.utilities.signature_utils.is_param_in_hook_signature(step, "batch_idx", min_args=2)
    batch = tree_map(_widened, batch)
    given = step(batch, number) if named else step(batch)
    loss = given.get("loss") if isinstance(given, Mapping) else given
    if not isinstance(loss, Tensor):
        raise StateError(
            f"weights are scored by the loss that training_step returns, it returned {given!r}"
        )
    return loss


@contextmanager
def scaled_logits(module: nn.Module, logits: str | None, temperature: float) -> Iterator[None]:
    """Divide the output of the submodule `logits` by a temperature within the context.

    None is the module itself.
    """
    named: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        named.setdefault(strip_compile_prefix(name), part)  # of a compiled one, what is called
    if (logits or "") not in named:
        raise ConfigError(f"logits={logits!r} is no submodule: {suggest(str(logits), named)}")
    calls = 0

    def divide(_: nn.Module, __: Any, output: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if not isinstance(output, Tensor):
            raise StateError(
                f"{logits or 'the module'} returned {type(output).__name__} instead of a tensor of "
                "logits: name the submodule that computes them, logits='NAME'"
            )
        return output / temperature

    handle = named[logits or ""].register_forward_hook(divide)
    try:
        yield
    finally:
        handle.remove()
    if not calls:
        raise ConfigError(
            f"training_step did not call {logits or 'the module itself, as self(x)'}, so there are "
            "no logits to divide: write logits='NAME' of the submodule that computes them, or "
            "leave temperature out"
        )


def peek_batches(trainer: pl.Trainer, batch: Any, count: int) -> list[tuple[int, Any]]:
    """The present training batch and the next ones, numbered, on their device.

    They come from a copy of the train loader, so the loader, its samplers and their generators keep
    their positions. A loader that shuffles by the global generator returns other batches than those
    that training will see.
    """
    if count == 1:
        return [(0, batch)]
    twin = _loader_twin(trainer, f"batches={count}", "write batches=1")
    found = [batch, *(_transferred(trainer, ahead) for ahead in islice(twin, 1, count))]
    if len(found) < count:
        raise ConfigError(
            f"batches={count} is more than the train loader has ({len(found)}): write less"
        )
    return list(enumerate(found))


def read_training_batches(trainer: pl.Trainer, seed: tuple[int, int]) -> Iterator[Any]:
    """Yield training batches, on their device, from a copy of the train loader at its start.

    The copy's generators and the global ones are seeded, so that the batches depend neither on the
    position in the epoch nor on a resume; the loader and all generators keep their state.
    """
    twin = _loader_twin(trainer, "refit=True", "leave refit out")
    number = make_generator(*seed, "refit").initial_seed()
    for owner in (twin, *(getattr(twin, name, None) for name in ("sampler", "batch_sampler"))):
        if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
            generator.manual_seed(number)
    batches: Iterator[Any] | None = None
    while True:
        with pl.utilities.seed.isolate_rng():
            for draw in (torch.manual_seed, np.random.seed, random.seed):
                draw(number % 2**32)
            batches = batches or iter(twin)
            ahead = next(batches, None)
        if ahead is None:
            return
        number += 1
        yield _transferred(trainer, ahead)


def example_for(module: pl.LightningModule, batch: Any) -> Any:
    """The input of `forward`: the module's `example_input_array`, or the inputs of a batch."""
    if module.example_input_array is not None:
        return module.example_input_array
    inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(inputs, Tensor):
        raise ConfigError(
            "method='synflow' runs forward() on ones of the input's shape, and a batch here is no "
            f"tensor or (inputs, ...) but {type(batch).__name__}: set example_input_array in the "
            "module"
        )
    return inputs


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALVES else value


def _silent(*_: Any, **__: Any) -> None:
    """Replaces `LightningModule.log`."""


def _loader_twin(trainer: pl.Trainer, what: str, instead: str) -> Any:
    """A copy of the train loader at its start that shares the data."""
    loader: Any = trainer.train_dataloader
    if not hasattr(loader, "__iter__") or isinstance(loader, Mapping | list | tuple):
        raise ConfigError(
            f"{what} reads ahead, which goes with one train loader, got {type(loader).__name__}: "
            f"{instead}"
        )
    memo: dict[int, Any] = {}
    data = getattr(loader, "dataset", None)
    if data is not None and not isinstance(data, IterableDataset):  # these may have a position
        memo[id(data)] = data
    for name, value in vars(loader).items():
        if isinstance(value, Tensor):
            memo[id(value)] = value
        if name == "_iterator" and value is not None:
            memo[id(value)] = None
    try:
        return copy.deepcopy(loader, memo)
    except Exception as error:
        raise StateError(
            f"{what} reads ahead from a copy of the train loader, and "
            f"{type(loader).__name__} cannot be copied: {error}; {instead}"
        ) from error


def _transferred(trainer: pl.Trainer, batch: Any) -> Any:
    """A batch as Lightning passes it to training."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
