# SPDX-License-Identifier: MIT
"""Cut a model on trial: run it, and compare its outputs with those of the masked model.

Groups that make it fail are not cut. They are found by the module that raises, or by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from regrow.channels.cut.attributes import set_sizes, size_changes
from regrow.channels.cut.diagnose import blame_groups, find_linkable, raising_modules, structure_key
from regrow.channels.cut.surgery import (
    RemovedChannels,
    UndoLog,
    cut,
    kept_indices,
    mask_tensor,
    tell_modules,
)
from regrow.channels.graph.groups import Group
from regrow.channels.graph.preserve import preserve_state
from regrow.channels.graph.trace import Trace
from regrow.utils.batches import batch_size, bound_forward, noise_like, resize_batch
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.modes import in_mode, no_attention_fastpath
from regrow.utils.names import modules

Sizes = dict[str, dict[int, int]]  # new sizes by module and old size

TOLERANCE = 1e-6  # of outputs in float64, at the scale of each row and column
ROUNDINGS = 1000  # else, in units of rounding at the scale of the outputs
LOW_PRECISION = 16  # the same of float16 and bfloat16


def output_tensors(output: Any) -> list[Tensor]:
    """Return all tensors of an output, including attributes of plain objects."""
    leaves = tree_leaves(output if isinstance(output, tuple | list | Mapping) else [output])
    if any(not isinstance(leaf, Tensor) for leaf in leaves):
        attributes = [vars(leaf) for leaf in leaves if hasattr(leaf, "__dict__")]
        leaves = [*leaves, *tree_leaves(attributes)]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def relative_error(found: Tensor, reference: Tensor, *, by_slice: bool = False) -> float:
    """Compute max |found - reference| / max |reference|; infinite for different shapes.

    Elements that are not finite count as equal if both are. With `by_slice` the maximum is that of
    each element's row, column and so on, whichever is least, because boxes in pixels may stand
    beside scores.
    """
    if found.shape != reference.shape or not torch.equal(found.isnan(), reference.isnan()):
        return math.inf
    gap = torch.where(found == reference, 0.0, (found - reference).abs()).nan_to_num(0.0, math.inf)
    if not reference.numel():
        return 0.0
    size = torch.where(reference.isfinite(), reference.abs(), 0.0)
    largest = size.max()
    scale = largest.expand_as(size)
    if by_slice:
        for dim in range(1, size.ndim):
            others = [d for d in range(size.ndim) if d != dim]
            scale = torch.minimum(scale, size.amax(others, keepdim=True))
        scale = scale.clamp_min(float(largest) * 1e-6)
    return float((gap / torch.where(scale > 0, scale, 1.0)).max())


def run_in_double(model: nn.Module, inputs: Any) -> Any:
    """Run a model with copies of its tensors, and with inputs, in float64."""

    def double(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    given = tree_map(double, inputs)
    args = given if isinstance(given, tuple) else () if isinstance(given, Mapping) else (given,)
    kwargs = dict(given) if isinstance(given, Mapping) else {}
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return torch.func.functional_call(model, tree_map(double, own), args, kwargs)


class CutFailed(Exception):
    """The cut network does not run, or its outputs differ."""

    def __init__(self, reason: str, paths: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.paths = paths  # modules in whose forward it was raised, innermost first


@dataclass(frozen=True)
class Verified:
    """A cut whose network runs and computes what the masked one did."""

    undo: UndoLog
    failed: dict[str, str]  # groups that could not be cut, with the error
    error: float  # largest difference from the masked network, relative to its largest output


class TrialCut:
    """Runs a model before and after cuts, on batches of two sizes, in eval and training mode.

    Of the example only shapes and integers are used; floats are replaced by noise, unless the model
    fails on that. Outputs are compared in float64 if the model runs in it: rounding would hide
    errors, and may change what a detector chooses. Where all outputs are integers or zero, results
    of layers are compared; of a network that was recorded (`Trace.heads`) those of the last layers,
    from which it chooses boxes.

    Raises:
        ConfigError: If the model does not run on the example.
    """

    def __init__(
        self, model: nn.Module, traced: Trace, groups: Sequence[Group], example_input: Any
    ) -> None:
        self.model, self.traced, self.groups = model, traced, groups
        self.double, self.layers = bool(traced.heads), False
        longer = resize_batch(example_input, batch_size(example_input) + 1)
        self.inputs = inputs = self._valid_inputs([example_input, longer])
        # modes in which the uncut model fails are not tested
        self.shapes = {
            (number, training): shapes
            for number in (0, 1)
            for training in (False, True)
            if (shapes := self._shapes(inputs[number], training)) is not None
        }
        self._raised = set[type[nn.Module]]()
        self._known: dict[frozenset[str], tuple[Sizes, float]] = {}

    def _valid_inputs(self, given: list[Any]) -> list[Any]:
        """Return noise, or the given values if the model needs them; see how it is compared."""
        for inputs in ([*map(noise_like, given)], given):
            for self.double in (True, False):
                self.layers = False
                try:
                    outputs = self._compared(self._run(inputs[0], training=False, compared=True))
                except CutFailed as error:
                    reason = error
                    continue
                if any(bool(values.isnan().any()) for values in outputs):
                    reason = CutFailed("its outputs are NaN")
                    continue
                self.layers = not self.traced.heads and not any(map(torch.any, outputs))
                return inputs
        raise ConfigError(
            f"the model does not run on the example input ({reason}): pass one that it accepts"
        )

    def find_valid(
        self, removed: RemovedChannels, linked: Sequence[Sequence[str]] = ()
    ) -> Verified:
        """Cut as many of the given groups as can be; `linked` ones are cut only together."""
        exact = {g.name: not g.approximate_reasons for g in self.groups}
        for names in linked:
            exact |= dict.fromkeys(names, all(exact[name] for name in names))
        asked = [name for name, channels in removed.items() if len(channels)]
        # first groups whose outputs can be compared to the masked network, then the others
        good: list[str] = []
        failed: dict[str, str] = {}
        self._known.clear()
        for wanted in (True, False):
            names = [name for name in asked if exact[name] is wanted]
            if names:
                good = self._blame_modules(good, names, removed, failed)
        undo, error = self._cut({name: removed[name] for name in good}) if good else (UndoLog(), 0)
        return Verified(undo, failed, error)

    def links(
        self, names: Iterable[str], tried: Collection[tuple[str, ...]] = ()
    ) -> list[tuple[str, ...]]:
        """Return sets of failed groups that may be cut if they keep the same fraction."""
        code = [p for p, m in modules(self.model).items() if type(m) in self._raised]
        return find_linkable(self.traced, self.groups, names, code, tried)

    def _innermost_own_type(self, paths: Iterable[str]) -> set[type[nn.Module]]:
        """Return the type of the innermost module that is not of `torch.nn`, if any."""
        by_path = modules(self.model)
        types = [type(by_path[path]) for path in paths]
        return {*[t for t in types if not t.__module__.startswith("torch.nn.")][:1]}

    def _blame_modules(
        self, good: list[str], names: list[str], removed: RemovedChannels, failed: dict[str, str]
    ) -> list[str]:
        """Return `good` and those of `names` that can be cut too, by the modules that raise."""
        batches: list[list[str]] = []
        while names:
            together = {name: removed[name] for name in [*good, *names]}
            try:
                self._cut(together)[0]()
                break
            except CutFailed as broken:
                self._raised |= self._innermost_own_type(broken.paths)
                cut = {name: removed[name] for name in names}
                found = blame_groups(broken.paths, self.traced, self.groups, cut)
                if not found:
                    good = self._bisect(good, names, removed, failed)
                    names = []
                    break
                failed |= dict.fromkeys(found, str(broken))
                batches.append(found)
                names = [name for name in names if name not in found]
        good = [*good, *names]
        # a later batch may have been the only cause, and one kind of groups that of its batch
        kinds = [kind for batch in batches for kind in self._kinds(batch)]
        for batch in [*batches[:-1], *kinds]:
            names = [name for name in batch if name in failed]
            try:
                if names:
                    self._cut({name: removed[name] for name in [*good, *names]})[0]()
            except CutFailed:
                continue
            good = [*good, *names]
            for name in names:
                del failed[name]
        return good

    def _kinds(self, names: Collection[str]) -> list[list[str]]:
        """Return equal groups of repeated blocks together; none if all are of one kind."""
        kinds: dict[object, list[str]] = {}
        for group in self.groups:
            if group.name in names:
                kinds.setdefault(structure_key(group), []).append(group.name)
        return [*kinds.values()] if len(kinds) > 1 else []

    def _bisect(
        self, good: list[str], names: list[str], removed: RemovedChannels, failed: dict[str, str]
    ) -> list[str]:
        """Return the same by bisection; a group that failed decides for all equal ones."""
        keys = {structure_key(g) for g in self.groups if g.name in failed}
        alike = {g.name for g in self.groups if structure_key(g) in keys}
        for name in [name for name in names if name in alike]:
            failed[name] = "an equal group in another block made the cut network fail"
        names = [name for name in names if name not in alike]
        if not names:
            return good
        together = {name: removed[name] for name in [*good, *names]}
        try:
            self._cut(together)[0]()
        except CutFailed as broken:
            if len(names) == 1:
                failed[names[0]] = str(broken)
                return good
            half = len(names) // 2
            good = self._bisect(good, names[:half], removed, failed)
            return self._bisect(good, names[half:], removed, failed)
        return [*good, *names]

    def _cut(self, removed: RemovedChannels) -> tuple[UndoLog, float]:
        """Cut and verify, first with old attributes and then with new ones, or in reverse."""
        kept = kept_indices(self.groups, removed)
        if frozenset(removed) in self._known:  # checked before
            undo, (sizes, error) = UndoLog(), self._known[frozenset(removed)]
            self._make(kept, sizes, undo)
            return undo, error
        exact = not any(g.approximate_reasons for g in self.groups if g.name in removed)
        reference: list[Tensor] | None = None
        sizes = size_changes(self.traced, kept)
        # without comparison, a wrong old size may go unnoticed: try the new ones first
        starts = ({}, sizes) if exact else (sizes, {})
        reason: CutFailed | None = None
        for start in starts if sizes else ({},):
            undo = UndoLog()
            try:
                with undo.on_error():
                    found, patches = self._run_with_patches(kept, sizes, start, undo)
                    if reference is None:  # computed late: most failures come before
                        undo()
                        reference = self._masked(kept_indices(self.groups, removed, masked=True))
                        self._make(kept, patches, undo)
                    error = self._error(found, reference, exact)
            except CutFailed as broken:
                reason = broken if reason is None or not start else reason
            else:
                self._known[frozenset(removed)] = (patches, error)
                undo()
                self._make(kept, patches, undo)
                return undo, error
        assert reason is not None
        raise reason

    def _run_with_patches(
        self, kept: Any, sizes: Sizes, start: Sizes, undo: UndoLog
    ) -> tuple[Any, Sizes]:
        """Run the cut model; set the sizes of modules that raise, and of others of their type."""
        patches = dict(start)
        while True:
            try:
                self._make(kept, patches, undo)
                return self._outputs(), patches
            except CutFailed as broken:
                undo()
                paths = [path for path in broken.paths if path in sizes and path not in patches]
                if not paths:
                    raise
                types = {path: type(module) for path, module in modules(self.model).items()}
                same = types.get(paths[0])
                patches |= {path: new for path, new in sizes.items() if types.get(path) is same}

    def _make(self, kept: Any, sizes: Sizes, undo: UndoLog) -> None:
        try:
            with undo.on_error():
                cut(self.model, kept, undo)
                tell_modules(self.model, kept, undo)
                set_sizes(self.model, sizes, undo)
        except StateError as error:  # a layer cannot have the new sizes
            raise CutFailed(str(error)) from None

    def _masked(self, kept: Any) -> list[Tensor]:
        undo = UndoLog()
        try:
            cut(self.model, kept, undo, mask_tensor)
            return self._compared(self._run(self.inputs[0], training=False, compared=True))
        finally:
            undo()

    def _outputs(self) -> list[Tensor]:
        """Return the outputs in eval mode, after a check of all shapes."""
        for (number, training), expected in self.shapes.items():
            shapes = self._fixed_shapes(self._run(self.inputs[number], training))
            if shapes != expected:
                raise CutFailed(f"the shapes of its outputs would change: {shapes}")
        return self._compared(self._run(self.inputs[0], training=False, compared=True))

    def _error(self, found: list[Tensor], reference: list[Tensor], exact: bool) -> float:
        every = exact and not self.layers  # of layers that are cut, the shapes differ
        pairs = [
            (a, b) for a, b in zip(found, reference, strict=True) if every or a.shape == b.shape
        ]
        error = max((relative_error(a, b) for a, b in pairs), default=0.0)
        eps = min((torch.finfo(values.dtype).eps for values in reference), default=0.0)
        if self.double and eps < 1e-12:
            tolerance = TOLERANCE
            checked = max((relative_error(a, b, by_slice=True) for a, b in pairs), default=0.0)
        else:
            roundings = ROUNDINGS if eps < 1e-5 else LOW_PRECISION
            tolerance, checked = roundings * max(eps, 1e-12), error
        if exact and not checked <= tolerance:
            raise CutFailed(f"its outputs would change: relative error {checked:.2g}")
        return error

    def _run(self, inputs: Any, training: bool, *, compared: bool = False) -> Any:
        # the fused operation of a transformer layer would hide which of its parts raises
        with in_mode(self.model, training), preserve_state(self.model), no_attention_fastpath():
            try:
                return self._forward(inputs, compared)
            except Exception as error:
                lines = str(error).splitlines() or [""]
                reason = f"{type(error).__name__}: {lines[0][:200]}"
                raise CutFailed(reason, raising_modules(error, self.model)) from None

    def _shapes(self, inputs: Any, training: bool) -> list[tuple[int, ...]] | None:
        try:
            return self._fixed_shapes(self._run(inputs, training))
        except CutFailed:
            return None

    def _fixed_shapes(self, found: Any) -> list[tuple[int, ...]]:
        """Return shapes that a cut must not change: the number of boxes may."""
        start = 1 if self.traced.heads else 0
        return [tuple(tensor.shape[start:]) for tensor in output_tensors(found)]

    def _compared(self, found: Any) -> list[Tensor]:
        """Return what must be equal: equal scores may be chosen in another order."""
        compared = output_tensors(found[0] if self.traced.heads or self.layers else found)
        real = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in compared]
        return [tensor for tensor in real if tensor.is_floating_point()]

    def _forward(self, inputs: Any, compared: bool) -> Any:
        """Run the model; with `compared` or recorded layers return their results too."""
        recorded = self.traced.heads
        by_path = modules(self.model)
        if self.layers and compared:
            recorded = tuple(path for path, m in by_path.items() if not any(m.children()))
        made: list[Any] = []
        with ExitStack() as hooked:
            for path in recorded:
                hook = by_path[path].register_forward_hook(lambda *given: made.append(given[-1]))
                hooked.enter_context(hook)
            double = self.double and (compared or self.traced.heads)
            if double:
                outputs = run_in_double(self.model, inputs)
            else:
                outputs = bound_forward(self.model, inputs)()
        return (made, outputs) if recorded else outputs
