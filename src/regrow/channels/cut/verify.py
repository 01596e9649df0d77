# SPDX-License-Identifier: MIT
"""TrialCut: run the cut model, compare with the masked one.

It runs, its outputs have their shapes, and it computes what the masked network computed. Groups
that break it are pinned: those that the raising module has seen, else those that halving finds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regrow.channels.cut.attributes import set_sizes, size_changes
from regrow.channels.cut.diagnose import blame_groups, kind, links, raising
from regrow.channels.cut.surgery import (
    RemovedChannels,
    UndoLog,
    cut,
    kept_indices,
    masked,
    tell_modules,
)
from regrow.channels.graph.groups import Group
from regrow.channels.graph.trace import Trace
from regrow.utils.batches import batch_size, bound_forward, noise_like, resize_batch
from regrow.utils.modes import in_mode
from regrow.utils.names import modules


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


Sizes = dict[str, dict[int, int]]  # new sizes by module and old size


ROUNDINGS = 1000  # how many units of rounding, at the outputs' scale, count as equal


class CutFailed(Exception):
    """A cut network does not run, or computes something else.

    Attributes:
        paths: The modules in whose forward it was raised, innermost first.
    """

    def __init__(self, reason: str, paths: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.paths = paths


@dataclass(frozen=True)
class Verified:
    """A cut that holds.

    Attributes:
        undo: Takes it back.
        patched: Attributes of the model's own modules that were changed.
        pinned: Groups that had to stay, with what broke.
        error: Largest difference from the masked network, relative to its largest output.
    """

    undo: UndoLog
    patched: list[str]
    pinned: dict[str, str]
    error: float


class TrialCut:
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
        longer = resize_batch(example_input, batch_size(example_input) + 1)
        inputs = [noise_like(example_input), noise_like(longer)]
        # what the model cannot do before a cut, it need not do afterwards
        self.shapes = {
            (number, training): shapes
            for number in (0, 1)
            for training in (False, True)
            if (shapes := self._tried(inputs[number], training)) is not None
        }
        self.inputs = inputs
        self._raised = set[type[nn.Module]]()
        self._known: dict[frozenset[str], tuple[Sizes, float]] = {}

    def find_valid(
        self, removed: RemovedChannels, linked: Sequence[Sequence[str]] = ()
    ) -> Verified:
        """Cuts as much of what is asked as holds; the model is left cut.

        Whatever is raised, the model is as it was before.

        Args:
            removed: The channels that are to go.
            linked: Sets of groups that hold only together.
        """
        exact = {g.name: not g.approximate_reasons for g in self.groups}
        for names in linked:
            exact |= dict.fromkeys(names, all(exact[name] for name in names))
        asked = [name for name, channels in removed.items() if len(channels)]
        # first what can be compared to the masked network, then what can only be run
        good: list[str] = []
        pinned: dict[str, str] = {}
        self._known.clear()
        for wanted in (True, False):
            names = [name for name in asked if exact[name] is wanted]
            if names:
                good = self._blame_modules(good, names, removed, pinned)
        undo, patched, error = self._cut({name: removed[name] for name in good})
        return Verified(undo, patched, pinned, error)

    def links(
        self, names: Iterable[str], tried: Collection[tuple[str, ...]] = ()
    ) -> list[tuple[str, ...]]:
        """Sets of groups that broke the network, which may hold if they keep the same fraction."""
        code = [p for p, m in modules(self.model).items() if type(m) in self._raised]
        return links(self.traced, self.groups, names, code, tried)

    def _code(self, paths: Iterable[str]) -> set[type[nn.Module]]:
        """The kind of the innermost module that has code of its own."""
        known = modules(self.model)
        kinds = (type(known[path]) for path in paths)
        return {*islice((k for k in kinds if not k.__module__.startswith("torch.nn.")), 1)}

    def _blame_modules(
        self, good: list[str], names: list[str], removed: RemovedChannels, pinned: dict[str, str]
    ) -> list[str]:
        """The groups that hold beside those that are known to; an error's module names others."""
        batches: list[list[str]] = []
        while names:
            together = {name: removed[name] for name in [*good, *names]}
            try:
                self._cut(together)[0]()
                break
            except CutFailed as broken:
                self._raised |= self._code(broken.paths)
                cut = {name: removed[name] for name in names}
                found = blame_groups(broken.paths, self.traced, self.groups, cut)
                if not found:
                    good = self._bisect(good, names, removed, pinned)
                    names = []
                    break
                pinned |= dict.fromkeys(found, str(broken))
                batches.append(found)
                names = [name for name in names if name not in found]
        good = [*good, *names]
        for batch in batches[:-1]:  # a later one may have been the only one to blame
            try:
                self._cut({name: removed[name] for name in [*good, *batch]})[0]()
            except CutFailed:
                continue
            good = [*good, *batch]
            for name in batch:
                del pinned[name]
        return good

    def _bisect(
        self, good: list[str], names: list[str], removed: RemovedChannels, pinned: dict[str, str]
    ) -> list[str]:
        """The same where nothing says who is to blame; one stands for all of its kind."""
        kinds = {kind(g) for g in self.groups if g.name in pinned}
        alike = {g.name for g in self.groups if kind(g) in kinds}
        for name in [name for name in names if name in alike]:
            pinned[name] = "one of its kind breaks the network"
        names = [name for name in names if name not in alike]
        if not names:
            return good
        together = {name: removed[name] for name in [*good, *names]}
        try:
            self._cut(together)[0]()
        except CutFailed as broken:
            if len(names) == 1:
                pinned[names[0]] = str(broken)
                return good
            half = len(names) // 2
            good = self._bisect(good, names[:half], removed, pinned)
            return self._bisect(good, names[half:], removed, pinned)
        return [*good, *names]

    def _cut(self, removed: RemovedChannels) -> tuple[UndoLog, list[str], float]:
        """Cuts and checks, with the model's own attributes as they are and with new ones.

        Raises:
            Broken: If neither holds; the model is as it was.
        """
        kept = kept_indices(self.groups, removed)
        if frozenset(removed) in self._known:  # checked before
            undo, (sizes, error) = UndoLog(), self._known[frozenset(removed)]
            return undo, self._make(kept, sizes, undo), error
        exact = not any(g.approximate_reasons for g in self.groups if g.name in removed)
        reference: list[Tensor] | None = None
        sizes = size_changes(self.traced, kept)
        # what cannot be compared must not keep an old size by accident
        starts = ({}, sizes) if exact else (sizes, {})
        reason: CutFailed | None = None
        for start in starts if sizes else ({},):
            undo = UndoLog()
            try:
                found, told = self._run_with_patches(kept, sizes, start, undo)
                if reference is None:  # only now: most that break do so before
                    undo()
                    reference = self._masked(kept)
                    self._make(kept, told, undo)
                error = self._error(found, reference, exact)
            except CutFailed as broken:
                undo()
                reason = broken if reason is None or not start else reason
            except BaseException:
                undo()
                raise
            else:
                self._known[frozenset(removed)] = (told, error)
                undo()
                return undo, self._make(kept, told, undo), error
        assert reason is not None
        raise reason

    def _run_with_patches(
        self, kept: Any, sizes: Sizes, start: Sizes, undo: UndoLog
    ) -> tuple[Any, Sizes]:
        """Runs the cut model; a module whose forward raises gets its new sizes, and its like."""
        told = dict(start)
        while True:
            try:
                self._make(kept, told, undo)
                return self._outputs(), told
            except CutFailed as broken:
                undo()
                paths = [path for path in broken.paths if path in sizes and path not in told]
                if not paths:
                    raise
                kinds = {path: type(module) for path, module in modules(self.model).items()}
                like = kinds.get(paths[0])
                told |= {path: new for path, new in sizes.items() if kinds.get(path) is like}

    def _make(self, kept: Any, sizes: Sizes, undo: UndoLog) -> list[str]:
        try:
            cut(self.model, kept, undo)
            tell_modules(self.model, kept, undo)
            return set_sizes(self.model, sizes, undo) if sizes else []
        except BaseException:
            undo()
            raise

    def _masked(self, kept: Any) -> list[Tensor]:
        undo = UndoLog()
        try:
            cut(self.model, kept, undo, masked)
            return floats(self._run(self.inputs[0], training=False))
        finally:
            undo()

    def _outputs(self) -> list[Tensor]:
        """What comes out in eval mode, once all shapes are right."""
        kept: list[Tensor] = []
        for (number, training), expected in self.shapes.items():
            found = output_tensors(self._run(self.inputs[number], training))
            shapes = [tuple(t.shape) for t in found]
            if shapes != expected:
                raise CutFailed(f"its outputs would have other shapes: {shapes}")
            if number == 0 and not training:
                kept = [t for t in found if t.is_floating_point()]
        return kept

    def _error(self, found: list[Tensor], reference: list[Tensor], exact: bool) -> float:
        error = max((relative(a, b) for a, b in zip(found, reference, strict=True)), default=0.0)
        precision = min((torch.finfo(t.dtype).eps for t in reference), default=0.0)
        if exact and not error <= ROUNDINGS * max(precision, 1e-12):
            raise CutFailed(f"it would compute something else: relative error {error:.2g}")
        return error

    def _run(self, given: Any, training: bool) -> Any:
        with in_mode(self.model, training):
            try:
                return bound_forward(self.model, given)()
            except Exception as error:
                words = str(error).splitlines() or [""]
                reason = f"{type(error).__name__}: {words[0][:200]}"
                raise CutFailed(reason, raising(error, self.model)) from None

    def _tried(self, given: Any, training: bool) -> list[tuple[int, ...]] | None:
        try:
            return self._shapes(given, training)
        except CutFailed:
            return None

    def _shapes(self, given: Any, training: bool) -> list[tuple[int, ...]]:
        return [tuple(t.shape) for t in output_tensors(self._run(given, training))]
