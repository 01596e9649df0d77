# SPDX-License-Identifier: MIT
"""Copy, load and hash the teacher network of `Distill`."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from regrow.io.checkpoints import read_checkpoint
from regrow.utils.errors import ConfigError, StateError, join_limited
from regrow.utils.lightning_classes import pl
from regrow.utils.names import strip_compile_prefix

START = "start"
# What Lightning puts into a module that was compiled whole.
_COMPILED = (
    "_compiler_ctx",
    "forward",
    *(f"{s}_step" for s in ("training", "validation", "test", "predict")),
)


def make_teacher(given: nn.Module | str | Path | None, student: nn.Module) -> nn.Module:
    """A frozen network that shares nothing with its source.

    The source is a module, or the student: as it is ("start"), or with a checkpoint's weights. A
    network that has no dtype of the student's gets that of its first parameter.
    """
    if given is None:
        raise ConfigError(
            "Distill has no teacher: write teacher=MODULE, teacher='PATH.ckpt' (weights for a copy "
            f"of the student), or teacher={START!r} (the student as it is when the fit starts, so "
            "it must be trained already)"
        )
    source = given if isinstance(given, nn.Module) else student
    source = getattr(source, "_orig_mod", source)
    if not any(True for _ in source.parameters()):
        raise ConfigError(
            f"the teacher {type(source).__name__} has no parameters (layers made in "
            "configure_model or setup?): give a module that is whole"
        )
    teacher: nn.Module = copy.deepcopy(source)
    if "_compiler_ctx" in teacher.__dict__:  # compiled steps, which call the module they are of
        for name in _COMPILED:
            teacher.__dict__.pop(name, None)
    if isinstance(given, str | Path) and given != START:
        _load(teacher, Path(given))
    taught = _dtypes(student)
    if taught.keys().isdisjoint(_dtypes(teacher)):
        teacher = teacher.to(dtype=next(iter(taught), None))
    return teacher.eval().requires_grad_(False)


def _dtypes(network: nn.Module) -> dict[torch.dtype, None]:
    """The dtypes of floating-point parameters, that of the first one first."""
    return dict.fromkeys(p.dtype for p in network.parameters() if p.is_floating_point())


def digest(teacher: nn.Module) -> str:
    """A hash of a network's weights and buffers: names, types and bits.

    Example:
        >>> one = nn.Linear(2, 2)
        >>> digest(one) == digest(copy.deepcopy(one)), digest(one) == digest(nn.Linear(2, 2))
        (True, False)
    """
    found = hashlib.sha256()
    for name, tensor in sorted(teacher.state_dict().items()):
        found.update(f"{strip_compile_prefix(name)} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def check_teachers_agree(trainer: pl.Trainer, own: str) -> None:
    """Check that all ranks have the same teacher."""
    if trainer.world_size == 1:
        return
    number = torch.tensor(int(own[:15], 16), device=trainer.strategy.root_device)
    every = trainer.strategy.all_gather(number).flatten().tolist()
    odd = [rank for rank, value in enumerate(every) if value != every[0]]
    if odd:
        raise StateError(
            f"the teacher of rank {', '.join(map(str, odd))} is not that of rank 0: is it made at "
            "random? Load it from a checkpoint, or seed all ranks alike"
        )


def _load(teacher: nn.Module, path: Path) -> None:
    """Load weights by name, with or without the prefix of the submodule they were saved under."""
    if not path.is_file():
        raise ConfigError(
            f"teacher={str(path)!r} does not exist: write a checkpoint's path, or {START!r}"
        )
    checkpoint = read_checkpoint(path)
    saved = checkpoint.get("state_dict", checkpoint)
    weights = {strip_compile_prefix(str(n)): v for n, v in saved.items() if isinstance(v, Tensor)}
    own = {strip_compile_prefix(name): tensor for name, tensor in teacher.state_dict().items()}
    weights = _within(weights, own)
    problems = [f"{n} is missing" for n in own if n not in weights]
    problems += [
        f"{n} is {tuple(weights[n].shape)} instead of {tuple(tensor.shape)}"
        for n, tensor in own.items()
        if n in weights and weights[n].shape != tensor.shape
    ]
    if problems:
        raise ConfigError(
            f"the weights in {path} do not fit a copy of the student: "
            f"{join_limited(problems, 5, '; ')}. For another architecture write teacher=MODULE"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def _within(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights below the shortest prefix that all of these names share."""
    first = next(iter(own))
    prefixes = [n.removesuffix(first) for n in weights if n == first or n.endswith(f".{first}")]
    for prefix in sorted(prefixes, key=len):
        if all(f"{prefix}{name}" in weights for name in own):
            return {name: weights[f"{prefix}{name}"] for name in own}
    return dict(weights)
