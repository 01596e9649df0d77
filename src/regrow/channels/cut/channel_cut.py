# SPDX-License-Identifier: MIT
"""ChannelCut: a record of removed channels that can be applied, reversed, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.channels.cut.surgery import (
    KeptIndices,
    UndoLog,
    cut,
    kept_mask,
    set_data,
    slice_tensor,
    tell_modules,
)
from regrow.io.checkpoints import KEY, read_checkpoint
from regrow.io.safetensors import SUFFIX, read_tensors
from regrow.profiling.latency import Speedup
from regrow.utils.batches import accepted_arguments
from regrow.utils.errors import StateError
from regrow.utils.names import accept_compile_prefix, modules, parameters, tensors

FORMAT = 1


class ChannelCutState(TypedDict):
    """What `ChannelCut.state_dict` returns: its attributes as tensors and builtin types.

    Dimensions are strings; attributes are triples (module, attribute, value).
    """

    format: int
    kept: dict[str, dict[str, Tensor]]
    attributes: list[tuple[str, str, Any]]
    before: list[tuple[str, str, Any]]
    shapes: dict[str, list[int]]
    removed: dict[str, int]
    not_prunable: dict[str, str]
    approximate: dict[str, list[str]]
    error: float


class StoredCut(TypedDict):
    """One cut in a state dict, with the values that it removed, by parameter and by buffer."""

    plan: ChannelCutState
    removed_weights: dict[str, Tensor]  # empty if values are not kept
    statistics: dict[str, Tensor]  # of buffers, and of weights that are cut without being masked


@dataclass
class ChannelCut:
    """A record of removed channels: what remains of each tensor, and sizes in module attributes.

    Attributes:
        kept: Bool vectors over original positions, by tensor and dimension; whole ones left out.
        attributes: New values by (module, attribute).
        shapes: Original shapes of the tensors that were cut.
        removed: Number of removed channels, by group.
        not_prunable: Groups that could not be cut, with the reason.
        speedup: Against the original model, for a cut to a measured latency; not stored.
        approximate: Groups whose cut changed what the masked network computes, with the reasons.
        error: Largest difference from the masked model's output, relative to its largest.
        undo: Undoes the cut; None if loaded from a checkpoint.
        before: Values of the attributes before the cut.
    """

    kept: KeptIndices = field(default_factory=dict, repr=False)  # tensors, as large as the network
    attributes: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    removed: dict[str, int] = field(default_factory=dict)
    not_prunable: dict[str, str] = field(default_factory=dict)
    error: float = 0.0
    undo: UndoLog | None = field(default=None, repr=False)
    before: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)
    approximate: dict[str, tuple[str, ...]] = field(default_factory=dict)
    speedup: Speedup | None = None

    def state_dict(self) -> ChannelCutState:
        """Return the record as tensors and builtin types, for `from_state`."""
        return {
            "format": FORMAT,
            "kept": {n: {str(d): k.clone() for d, k in ds.items()} for n, ds in self.kept.items()},
            "attributes": [(*place, value) for place, value in self.attributes.items()],
            "before": [(*place, value) for place, value in self.before.items()],
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "removed": dict(self.removed),
            "not_prunable": dict(self.not_prunable),
            "approximate": {name: [*reasons] for name, reasons in self.approximate.items()},
            "error": self.error,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ChannelCut:
        """Restore a record from its `state_dict`."""
        if state.get("format") != FORMAT:
            raise StateError(
                f"the channel plan has format {state.get('format')}, this version reads {FORMAT}"
            )
        return cls(
            {n: {int(d): keep.bool() for d, keep in ds.items()} for n, ds in state["kept"].items()},
            {(path, name): _plain(value) for path, name, value in state["attributes"]},
            {name: tuple(shape) for name, shape in state["shapes"].items()},
            dict(state["removed"]),
            dict(state["not_prunable"]),
            float(state["error"]),
            before={(path, name): _plain(value) for path, name, value in state["before"]},
            approximate={n: tuple(reasons) for n, reasons in state.get("approximate", {}).items()},
        )

    def apply(self, model: nn.Module) -> UndoLog:
        """Cut a model of the original shapes, without tracing it; `StateError` for other shapes."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors(model).items()}
        other = [name for name, shape in self.shapes.items() if shapes.get(name) != shape]
        if other:
            raise StateError(
                f"the channel plan is of another model: {other[0]} has shape "
                f"{shapes.get(other[0])}, the plan cuts {self.shapes[other[0]]} "
                f"({len(other)} such tensors); build the original, uncut model first; after "
                "several cuts, save first.compose(second)"
            )
        undo = UndoLog()
        with undo.on_error():
            cut(model, self.kept, undo)
            tell_modules(model, self.kept, undo)
            for (path, name), value in self.attributes.items():
                undo.set(modules(model)[path], name, value)
        return undo

    def check_cut_model(self, model: nn.Module) -> None:
        """Raise `StateError` if a model has other shapes than this cut leaves."""
        shapes = {name: tensor.shape for name, tensor in tensors(model).items()}
        for name in self.shapes:
            cut = self.cut_shape(name)
            if shapes.get(name) != cut:
                raise StateError(
                    f"plan= is of another model: it leaves {name} the shape {tuple(cut)}, the "
                    f"model's is {tuple(shapes.get(name, ()))}; pass the cut model with its plan, "
                    "after several cuts plan=first.compose(second)"
                )

    def matches(self, model: nn.Module) -> bool:
        """Return whether a model has the shapes that this cut leaves, not those before it."""
        by_name = tensors(model)
        return all(
            name in by_name and by_name[name].shape == self.cut_shape(name) for name in self.kept
        )

    def cut_shape(self, name: str) -> torch.Size:
        """Return the shape of a tensor after the cut."""
        kept = self.kept[name]
        sizes = enumerate(self.shapes[name])
        return torch.Size([int(kept[dim].sum()) if dim in kept else size for dim, size in sizes])

    def restore_shapes(self, model: nn.Module) -> None:
        """Restore the original shapes of a cut model; cut positions are zero."""
        with torch.no_grad():
            for name, tensor in tensors(model).items():
                if name in self.kept:
                    tensor.grad = None
                    set_data(tensor, self.scatter(name, tensor.data))
        log = UndoLog()
        tell_modules(model, self.kept, log)
        for (path, name), value in self.before.items():
            log.set(modules(model)[path], name, value)

    def slice(self, name: str, tensor: Tensor) -> Tensor:
        """Slice a tensor of the original shape; return tensors of other shapes as they are."""
        if tuple(tensor.shape) != self.shapes.get(name):
            return tensor
        return slice_tensor(tensor, self.kept[name])

    def scatter(self, name: str, values: Tensor) -> Tensor:
        """Put values of a cut tensor at their original positions; all others are zero."""
        whole = values.new_zeros(self.shapes[name])
        whole[kept_mask(whole.shape, self.kept[name], whole.device)] = values.reshape(-1)
        return whole

    def kept_mask(self, name: str) -> Tensor:
        """Return a bool mask, of a tensor's original shape, of what remains."""
        return kept_mask(self.shapes[name], self.kept[name])

    def compose(self, later: ChannelCut) -> ChannelCut:
        """Return one record for this cut followed by another."""
        kept = {name: dict(dims) for name, dims in self.kept.items()}
        for name, dims in later.kept.items():
            both = kept.setdefault(name, {})
            for dim, keep in dims.items():
                both[dim] = both[dim].masked_scatter(both[dim], keep) if dim in both else keep
        removed = dict(self.removed)
        for name, count in later.removed.items():
            removed[name] = removed.get(name, 0) + count
        return ChannelCut(
            kept,
            self.attributes | later.attributes,
            later.shapes | self.shapes,
            removed,
            self.not_prunable | later.not_prunable,
            later.error,
            before=later.before | self.before,
            approximate=self.approximate | later.approximate,
        )


def make_channel_cut(model: nn.Module, kept: KeptIndices, undo: UndoLog, **more: Any) -> ChannelCut:
    """Make the record of a cut from its undo log; classes follow from shapes (`tell_modules`)."""
    paths = {id(module): path for path, module in modules(model).items()}
    names = {id(tensor): name for name, tensor in tensors(model).items()}
    shapes = {names[id(tensor)]: tuple(before.shape) for tensor, before, *_ in undo.data}
    attributes, before = dict[tuple[str, str], Any](), dict[tuple[str, str], Any]()
    for module, name, value in reversed(undo.attributes):  # the first change comes last
        for key, old, new in _differences(name, value, getattr(module, name)):
            before[paths[id(module)], key] = _plain(old)
            attributes[paths[id(module)], key] = _plain(new)
    return ChannelCut(kept, attributes, shapes, undo=undo, before=before, **more)


def _differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield what differs between two values of an attribute, by field where it is an object."""
    if not hasattr(old, "__dict__"):
        yield name, old, new
    elif not isinstance(old, type):
        for field, value in vars(old).items():
            if getattr(new, field) != value:
                yield f"{name}.{field}", value, getattr(new, field)


def slice_optimizer_state(
    optimizers: Iterable[Optimizer], model: nn.Module, plan: ChannelCut
) -> None:
    """Slice the state of optimizers in place, after the model was cut by `plan`.

    State tensors of a parameter's original shape are sliced, and step counts stay. What cannot be
    sliced is reset: factored moments (Adafactor), the history of LBFGS.
    """
    optimizers = list(optimizers)
    for name, state in _states(optimizers, model, plan):
        for key, value in state.items():
            if isinstance(value, Tensor):
                state[key] = plan.slice(name, value)
    _reset_mismatched(optimizers, model, plan)


def load(
    make: Callable[..., nn.Module] | nn.Module,
    checkpoint: str | Path | Mapping[str, Any],
    **given: Any,
) -> nn.Module:
    """Load the model of a checkpoint or an exported file, whole or cut, without a pickled module.

    Args:
        make: The original model's class or a function that builds it, or such a model itself.
        checkpoint: A file (`.ckpt`, `.pt`, or `.safetensors` from `regrow.export`), or its
            content: `state_dict` and the record of the cut.
        given: Arguments of `make`, in addition to hyper-parameters of the checkpoint.

    Returns:
        The cut model with the checkpoint's weights, in the mode in which it was built.

    Raises:
        StateError: If the record or the weights do not fit the model.

    Example:
        >>> import tempfile, regrow
        >>> def make(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> model, path = make(), Path(tempfile.mkdtemp(), "small.safetensors")
        >>> cut = regrow.channels.prune(model, torch.ones(1, 4), 0.5)
        >>> _ = regrow.export(model, path, plan=cut)
        >>> load(make, path)[0].out_features
        4
    """
    if not isinstance(checkpoint, Mapping):
        read = read_tensors if Path(checkpoint).suffix == SUFFIX else read_checkpoint
        checkpoint = read(checkpoint)
    model = make if isinstance(make, nn.Module) else _build(make, checkpoint, given)
    state = checkpoint.get(KEY)
    undo = ChannelCut.from_state(state).apply(model) if state is not None else UndoLog()
    try:
        with accept_compile_prefix(model):
            _give_memory(model)
            model.load_state_dict(checkpoint.get("state_dict", {}))
    except RuntimeError as error:
        undo()
        raise StateError(f"the checkpoint's weights are of another model: {error}") from error
    return model


def _build(
    make: Callable[..., nn.Module], checkpoint: Mapping[str, Any], given: Mapping[str, Any]
) -> nn.Module:
    """Call a class with the hyper-parameters of a checkpoint; a function with those it takes."""
    saved = checkpoint.get("hyper_parameters") or {}
    if not isinstance(make, type):
        saved = accepted_arguments(make, saved)
    return make(**{**saved, **given})


def _give_memory(model: nn.Module) -> None:
    """Replace tensors on the meta device, shared ones by the same, by empty ones on the CPU."""
    made = dict[int, Tensor]()
    saved = model.state_dict(keep_vars=True)
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        if not tensor.is_meta:
            continue
        if name not in saved:
            raise StateError(
                f"{name} is on the meta device, and no checkpoint has it: build the model on "
                "another device"
            )
        if id(tensor) not in made:
            empty = torch.empty_like(tensor, device="cpu")
            parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if parameter else empty
        path, _, own = name.rpartition(".")
        setattr(model.get_submodule(path), own, made[id(tensor)])


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, torch.Size) else value


def _states(
    optimizers: Sequence[Optimizer], model: nn.Module, plan: ChannelCut
) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield the optimizer states of the parameters that were cut, with their names."""
    for name, parameter in parameters(model).items():
        if name in plan.kept:
            for optimizer in optimizers:
                yield name, optimizer.state.get(parameter, {})


def restore_optimizer_shapes(
    optimizers: Sequence[Optimizer], model: nn.Module, plan: ChannelCut
) -> None:
    """Restore the original shapes of optimizer state; cut positions are zero."""
    for name, state in _states(optimizers, model, plan):
        for key, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape == plan.cut_shape(name):
                state[key] = plan.scatter(name, value)
    _reset_mismatched(optimizers, model, plan)


def _reset_mismatched(optimizers: Sequence[Optimizer], model: nn.Module, plan: ChannelCut) -> None:
    cut = [parameter for name, parameter in parameters(model).items() if name in plan.kept]
    for optimizer in optimizers:
        if hasattr(optimizer, "_numel_cache"):  # LBFGS counts its parameters once
            optimizer._numel_cache = None
            optimizer.state.clear()
        for parameter in cut:
            values = optimizer.state.get(parameter, {}).values()
            arrays = [v for v in values if isinstance(v, Tensor) and v.numel() > 1]
            if any(value.shape != parameter.shape for value in arrays):
                del optimizer.state[parameter]


def comparable(cut: StoredCut) -> dict[str, Any]:
    """Return the kept positions of a saved cut as lists, which can be compared."""
    return {
        name: {dim: keep.tolist() for dim, keep in dims.items()}
        for name, dims in cut["plan"]["kept"].items()
    }
