# SPDX-License-Identifier: MIT
"""ChannelCut: what was cut; apply, grow back, state dict, load."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.channels.cut.surgery import KeptIndices, UndoLog, cut, set_data, slice_tensor
from regrow.io.checkpoints import KEY, read_checkpoint
from regrow.io.safetensors import SUFFIX, read_tensors
from regrow.utils.errors import StateError
from regrow.utils.names import (
    accept_compile_prefix,
    modules,
    parameters,
    strip_compile_prefix,
    tensors,
)

FORMAT = 1


@dataclass
class ChannelCut:
    """Which places of a model's tensors remain, and what its modules say of themselves.

    Attributes:
        kept: Bool vectors over the original places, by tensor and dimension; whole ones left out.
        attributes: New values by (module, attribute).
        shapes: Original shapes of the tensors that were cut.
        removed: How many channels went, by group.
        pinned: Groups that had to stay, with the reason.
        error: Largest difference from the masked model's output, relative to its largest.
        undo: Takes the cut back while this object lives; None for a plan from a checkpoint.
        before: Values of the attributes before the cut.
    """

    kept: KeptIndices = field(default_factory=dict)
    attributes: dict[tuple[str, str], Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    pinned: dict[str, str] = field(default_factory=dict)
    error: float = 0.0
    undo: UndoLog | None = field(default=None, repr=False)
    before: dict[tuple[str, str], Any] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtin types only."""
        return {
            "format": FORMAT,
            "kept": {n: {str(d): k.clone() for d, k in ds.items()} for n, ds in self.kept.items()},
            "attributes": [[path, name, value] for (path, name), value in self.attributes.items()],
            "before": [[path, name, value] for (path, name), value in self.before.items()],
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "removed": dict(self.removed),
            "pinned": dict(self.pinned),
            "error": self.error,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ChannelCut:
        """The plan that `state_dict` wrote.

        Raises:
            StateError: If it is of another format.
        """
        if state.get("format") != FORMAT:
            raise StateError(
                f"the channel plan has format {state.get('format')}, this version reads {FORMAT}"
            )
        return cls(
            {n: {int(d): keep.bool() for d, keep in ds.items()} for n, ds in state["kept"].items()},
            {(path, name): _hashed(value) for path, name, value in state["attributes"]},
            {name: tuple(shape) for name, shape in state["shapes"].items()},
            dict(state["removed"]),
            dict(state["pinned"]),
            float(state["error"]),
            before={(path, name): _hashed(value) for path, name, value in state["before"]},
        )

    def apply(self, model: nn.Module) -> UndoLog:
        """Cuts a model of the original shapes as this plan says, without tracing it.

        Raises:
            StateError: If the model is not of those shapes; it is left as it was.
        """
        found = {name: tuple(tensor.shape) for name, tensor in tensors(model).items()}
        other = [n for n, shape in self.shapes.items() if found.get(n) != shape]
        if other:
            raise StateError(
                f"the channel plan is of another model: {other[0]} has shape "
                f"{found.get(other[0])}, the plan cuts {self.shapes[other[0]]} "
                f"({len(other)} such); build the original, uncut model first"
            )
        undo = UndoLog()
        try:
            cut(model, self.kept, undo)
            for (path, name), value in self.attributes.items():
                undo.set(modules(model)[path], name, value)
        except BaseException:
            undo()
            raise
        return undo

    def check_cut_model(self, model: nn.Module) -> None:
        """Check that a model has the shapes that this cut leaves.

        Raises:
            StateError: Naming the first parameter whose shape differs.
        """
        found = {
            strip_compile_prefix(name): tuple(tensor.shape)
            for name, tensor in tensors(model).items()
        }
        for name, shape in self.shapes.items():
            cut = list(shape)
            for dim, keep in self.kept[name].items():
                cut[dim] = int(keep.count_nonzero())
            if found.get(name) != tuple(cut):
                raise StateError(
                    f"plan= is of another model: it leaves {name} the shape {tuple(cut)}, the "
                    f"model's is {found.get(name)}; pass the plan of the last cut, and the cut "
                    "model"
                )

    def matches(self, model: nn.Module) -> bool:
        """Whether a model has the shapes that this cut leaves, rather than those before it."""
        held = tensors(model)
        return all(
            name in held
            and all(held[name].shape[dim] == int(keep.sum()) for dim, keep in dims.items())
            for name, dims in self.kept.items()
        )

    def restore_shapes(self, model: nn.Module) -> None:
        """Gives a cut model its original shapes back; what was cut is zero."""
        with torch.no_grad():
            for name, tensor in tensors(model).items():
                if name in self.kept:
                    tensor.grad = None
                    set_data(tensor, self.scatter(name, tensor.data))
        for (path, name), value in self.before.items():
            setattr(modules(model)[path], name, value)

    def slice(self, name: str, tensor: Tensor) -> Tensor:
        """What is left of a tensor of a member's original shape; others as they are."""
        if tuple(tensor.shape) != self.shapes.get(name):
            return tensor
        return slice_tensor(tensor, self.kept[name])

    def scatter(self, name: str, values: Tensor) -> Tensor:
        """Values of a cut tensor's shape at their original places, among zeros."""
        whole = values.new_zeros(self.shapes[name])
        whole[self.kept_mask(name).to(values.device)] = values.reshape(-1)
        return whole

    def kept_mask(self, name: str) -> Tensor:
        """Which places of a tensor's original shape are left, as a bool tensor of that shape."""
        shape = self.shapes[name]
        whole = torch.ones(shape, dtype=torch.bool)
        for dim, keep in self.kept[name].items():
            whole &= keep.reshape([-1 if d == dim else 1 for d in range(len(shape))])
        return whole

    def compose(self, later: ChannelCut) -> ChannelCut:
        """This cut followed by another, as one plan from the original shapes."""
        kept = {name: dict(dims) for name, dims in self.kept.items()}
        for name, dims in later.kept.items():
            mine = kept.setdefault(name, {})
            for dim, keep in dims.items():
                mine[dim] = _after(mine[dim], keep) if dim in mine else keep
        removed = dict(self.removed)
        for name, count in later.removed.items():
            removed[name] = removed.get(name, 0) + count
        return ChannelCut(
            kept,
            self.attributes | later.attributes,
            later.shapes | self.shapes,
            removed,
            self.pinned | later.pinned,
            later.error,
            before=later.before | self.before,
        )


def make_channel_cut(model: nn.Module, kept: KeptIndices, undo: UndoLog, **more: Any) -> ChannelCut:
    """The plan of a cut that has been made."""
    paths = {id(module): path for path, module in modules(model).items()}
    attributes = {
        (paths[id(module)], name): _hashed(getattr(module, name))
        for module, name, _ in undo.attributes
    }
    names = {id(tensor): name for name, tensor in tensors(model).items()}
    shapes = {names[id(tensor)]: tuple(before.shape) for tensor, before, _ in undo.data}
    before = {
        (paths[id(module)], name): _hashed(value)
        for module, name, value in reversed(undo.attributes)
    }
    return ChannelCut(kept, attributes, shapes, undo=undo, before=before, **more)


def slice_optimizer_state(
    optimizers: Iterable[Optimizer], model: nn.Module, plan: ChannelCut
) -> None:
    """Slices optimizers' state along with a cut that has just been made, in place.

    State tensors of a parameter's original shape lose the same places; others (step counts) stay.

    Args:
        optimizers: Optimizers of the model.
        model: The cut model.
        plan: The last cut.
    """
    for name, parameter in parameters(model).items():
        if name not in plan.kept:
            continue
        for optimizer in optimizers:
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and tuple(value.shape) == plan.shapes[name]:
                    state[key] = slice_tensor(value, plan.kept[name])


def load(
    make: Callable[..., nn.Module] | nn.Module,
    checkpoint: str | Path | Mapping[str, Any],
    **given: Any,
) -> nn.Module:
    """The small model of a checkpoint, without a pickled module.

    Args:
        make: The original model's class or a function that builds it, or such a model itself.
        checkpoint: A file (`.ckpt`, `.pt`, or `.safetensors` from `regrow.export`), or what it
            holds: `state_dict` and the plan.
        given: Arguments for `make`; hyper-parameters of the checkpoint are used beside them.

    Returns:
        The cut model with the checkpoint's weights, in the mode in which it was built.

    Raises:
        StateError: If plan or weights do not fit the model.
    """
    if not isinstance(checkpoint, Mapping):
        if Path(checkpoint).suffix == SUFFIX:
            checkpoint = read_tensors(checkpoint)
        else:
            checkpoint = read_checkpoint(checkpoint)
        assert isinstance(checkpoint, Mapping)
    saved = checkpoint.get("hyper_parameters") or {}
    model = make if isinstance(make, nn.Module) else make(**{**saved, **given})
    state = checkpoint.get(KEY)
    undo = ChannelCut.from_state(state).apply(model) if state is not None else UndoLog()
    handle = accept_compile_prefix(model)
    try:
        model.load_state_dict(checkpoint.get("state_dict", {}))
    except RuntimeError as error:
        undo()
        raise StateError(f"the checkpoint's weights are of another model: {error}") from error
    finally:
        handle.remove()
    return model


def _after(first: Tensor, second: Tensor) -> Tensor:
    kept = first.clone()
    kept[first] = second
    return kept


def _hashed(value: Any) -> Any:
    return tuple(value) if isinstance(value, torch.Size) else value


def restore_optimizer_shapes(
    optimizers: Iterable[Optimizer], model: nn.Module, plan: ChannelCut
) -> None:
    """Optimizers' state at the original places, zero where something was cut."""
    for name, parameter in parameters(model).items():
        if name not in plan.kept:
            continue
        cut = torch.Size([int(k.sum()) for k in _sizes(plan, name)])
        for optimizer in optimizers:
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == cut and value.ndim:
                    state[key] = plan.scatter(name, value)


def reset_mismatched_state(
    optimizers: Iterable[Optimizer], model: nn.Module, plan: ChannelCut
) -> None:
    """Drops state that has not the shape of its parameter, so that no cut can be carried over.

    Factors of moments (Adafactor) and the flat history of LBFGS begin anew.
    """
    cut = [parameter for name, parameter in parameters(model).items() if name in plan.kept]
    for optimizer in optimizers:
        if hasattr(optimizer, "_numel_cache"):  # LBFGS counts its parameters once
            optimizer._numel_cache = None
            optimizer.state.clear()
        for parameter in cut:
            held = optimizer.state.get(parameter, {}).values()
            if any(
                isinstance(v, Tensor) and v.numel() > 1 and v.shape != parameter.shape for v in held
            ):
                del optimizer.state[parameter]


def _sizes(plan: ChannelCut, name: str) -> list[Tensor]:
    dims = plan.kept[name]
    return [dims.get(d, torch.ones(size)) for d, size in enumerate(plan.shapes[name])]


def comparable(cut: Mapping[str, Any]) -> dict[str, Any]:
    """A cut as values that can be compared."""
    return {
        name: {dim: keep.tolist() for dim, keep in dims.items()}
        for name, dims in cut["plan"]["kept"].items()
    }
