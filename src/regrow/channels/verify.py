# SPDX-License-Identifier: MIT
"""A cut is tried before it is kept.

It runs, its outputs have their shapes, and it computes what the masked network computed. Groups
that break it are found by bisection and pinned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from regrow.channels.coupling import Group
from regrow.channels.repair import changes, patch
from regrow.channels.surgery import Removed, Undo, cut, keeps, masked, tell_modules
from regrow.channels.trace import Trace
from regrow.macs import batch_size, bound_forward, evaluating

ROUNDINGS = 1000  # how many units of rounding, at the outputs' scale, count as equal


class Broken(Exception):
    """A cut network does not run, or computes something else."""


@dataclass(frozen=True)
class Verified:
    """A cut that holds.

    Attributes:
        undo: Takes it back.
        patched: Attributes of the model's own modules that were changed.
        pinned: Groups that had to stay, with what broke.
        error: Largest difference from the masked network, relative to its largest output.
    """

    undo: Undo
    patched: list[str]
    pinned: dict[str, str]
    error: float


class Bench:
    """Runs a model before and after cuts, on batches of two sizes, in eval and training mode.

    Args:
        model: The model.
        traced: Its labels.
        groups: Its groups.
        example_input: A batch; only its shapes and its whole numbers are used.
    """

    def __init__(
        self, model: nn.Module, traced: Trace, groups: Sequence[Group], example_input: Any
    ) -> None:
        self.model, self.traced, self.groups = model, traced, groups
        self.inputs = [_noise(example_input), _noise(_repeated(example_input))]
        self.shapes = [
            [self._shapes(x, training) for training in (False, True)] for x in self.inputs
        ]

    def search(self, removed: Removed) -> Verified:
        """Cuts as much of what is asked as holds; the model is left cut.

        Whatever is raised, the model is as it was before.
        """
        exact = {g.name: not g.inexact for g in self.groups}
        asked = [name for name, channels in removed.items() if len(channels)]
        # first what can be compared to the masked network, then what can only be run
        good: list[str] = []
        pinned: dict[str, str] = {}
        for kind in (True, False):
            names = [name for name in asked if exact[name] is kind]
            good = self._grow(good, names, removed, pinned)
        undo, patched, error = self._cut({name: removed[name] for name in good})
        return Verified(undo, patched, pinned, error)

    def _grow(
        self, good: list[str], names: list[str], removed: Removed, pinned: dict[str, str]
    ) -> list[str]:
        """The groups that hold beside those that are known to."""
        if not names:
            return good
        together = {name: removed[name] for name in [*good, *names]}
        try:
            undo, _, _ = self._cut(together)
        except Broken as broken:
            if len(names) == 1:
                pinned[names[0]] = str(broken)
                return good
            half = len(names) // 2
            good = self._grow(good, names[:half], removed, pinned)
            return self._grow(good, names[half:], removed, pinned)
        undo()
        return [*good, *names]

    def _cut(self, removed: Removed) -> tuple[Undo, list[str], float]:
        """Cuts and checks, with the model's own attributes as they are and with new ones.

        Raises:
            Broken: If neither holds; the model is as it was.
        """
        kept = keeps(self.groups, removed)
        exact = not any(g.inexact for g in self.groups if g.name in removed)
        reference = self._masked(kept)
        reasons = []
        sizes = changes(self.traced, kept)
        # what cannot be compared must not keep an old size by accident
        order = (False, True) if exact else (True, False)
        for patching in order if sizes else (False,):
            undo = Undo()
            try:
                cut(self.model, kept, undo)
                tell_modules(self.model, kept, undo)
                patched = patch(self.model, sizes, undo) if patching else []
                error = self._check(reference, exact)
                return undo, patched, error
            except Broken as broken:
                undo()
                reasons.append(str(broken))
            except BaseException:
                undo()
                raise
        raise Broken(reasons[0])

    def _masked(self, kept: Any) -> list[Tensor]:
        undo = Undo()
        try:
            cut(self.model, kept, undo, masked)
            return _floats(self._run(self.inputs[0], training=False))
        finally:
            undo()

    def _check(self, reference: list[Tensor], exact: bool) -> float:
        for number, given in enumerate(self.inputs):
            for training in (False, True):
                shapes = self._shapes(given, training)
                if shapes != self.shapes[number][training]:
                    raise Broken(f"its outputs would have other shapes: {shapes}")
        found = _floats(self._run(self.inputs[0], training=False))
        error = max((_relative(a, b) for a, b in zip(found, reference, strict=True)), default=0.0)
        precision = min((torch.finfo(t.dtype).eps for t in reference), default=0.0)
        if exact and not error <= ROUNDINGS * max(precision, 1e-12):
            raise Broken(f"it would compute something else: relative error {error:.2g}")
        return error

    def _run(self, given: Any, training: bool) -> Any:
        with _running(self.model, training):
            try:
                return bound_forward(self.model, given)()
            except Exception as error:
                words = str(error).splitlines() or [""]
                raise Broken(f"{type(error).__name__}: {words[0][:200]}") from error

    def _shapes(self, given: Any, training: bool) -> list[tuple[int, ...]]:
        return [tuple(t.shape) for t in _tensors(self._run(given, training))]


@contextmanager
def _running(model: nn.Module, training: bool) -> Iterator[None]:
    """Without gradients; generators and buffers are put back."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(devices=[]), torch.no_grad(), evaluating(model):
        torch.manual_seed(0)
        if training:
            model.train()
        try:
            yield
        finally:
            for name, buffer in model.named_buffers():
                if buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])


def _noise(example_input: Any) -> Any:
    """Random numbers of the example's shapes: zeros would hide what a channel does."""
    generator = torch.Generator().manual_seed(0)

    def noise(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_floating_point():
            return torch.randn(x.shape, generator=generator).to(x.dtype)
        return x

    return tree_map(noise, example_input)


def _repeated(example_input: Any) -> Any:
    """A batch one example longer."""
    size = batch_size(example_input)

    def longer(x: Any) -> Any:
        if isinstance(x, Tensor) and x.dim() and len(x) == size:
            return torch.cat([x, x[:1]])
        return x

    return tree_map(longer, example_input)


def _tensors(output: Any) -> list[Tensor]:
    values = output if isinstance(output, tuple | list | Mapping) else [output]
    leaves = tree_leaves(values)
    if any(not isinstance(leaf, Tensor) for leaf in leaves):
        held = [vars(leaf) for leaf in leaves if hasattr(leaf, "__dict__")]
        leaves = [*leaves, *tree_leaves(held)]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _floats(output: Any) -> list[Tensor]:
    return [tensor for tensor in _tensors(output) if tensor.is_floating_point()]


def _relative(found: Tensor, reference: Tensor) -> float:
    if not reference.numel():
        return 0.0
    scale = float(reference.abs().max())
    return float((found - reference).abs().max()) / (scale or 1.0)
