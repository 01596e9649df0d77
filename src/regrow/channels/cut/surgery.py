# SPDX-License-Identifier: MIT
"""Slices parameters and buffers in place, undoable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regrow.channels.graph.groups import Group
from regrow.utils.modes import clear_compiled
from regrow.utils.names import modules, tensors

RemovedChannels = Mapping[str, Tensor]  # channels that go, by the group's name


KeptIndices = dict[str, dict[int, Tensor]]  # places that stay, by tensor and dimension


@dataclass
class UndoLog:
    """What a cut replaced.

    Attributes:
        data: (tensor, its values before, its gradient before).
        attributes: (module, attribute, value before).
        model: What was cut; told to forget what it derived from its parameters.
    """

    data: list[tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=list)
    attributes: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    model: nn.Module | None = None

    def __call__(self) -> None:
        """Puts everything back, last change first."""
        try:
            self._restore()
        except BaseException:  # interrupted: the rest, before anybody sees the model
            self._restore()
            raise
        if self.model is not None:
            clear_compiled(self.model)

    def _restore(self) -> None:
        while self.attributes:
            module, name, value = self.attributes[-1]
            setattr(module, name, value)
            self.attributes.pop()
        while self.data:
            tensor, before, gradient = self.data[-1]
            tensor.grad = None
            set_data(tensor, before)
            tensor.grad = gradient
            self.data.pop()

    def set(self, module: nn.Module, name: str, value: Any) -> None:
        """Sets an attribute that the undo puts back."""
        before = getattr(module, name)
        if before != value:
            self.attributes.append((module, name, before))
            setattr(module, name, value)


def set_data(tensor: Tensor, values: Tensor) -> None:
    """Gives a tensor other values, of another shape too.

    A parameter's gradient accumulator remembers the shape and may be held by an old graph; it is
    made anew only where the type changes, so for a moment it does.
    """
    if tensor.shape != values.shape:
        other = torch.float32 if tensor.dtype != torch.float32 else torch.float64
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = values


def kept_indices(groups: Sequence[Group], removed: RemovedChannels) -> KeptIndices:
    """The places that stay, as bool vectors by tensor and dimension; untouched ones left out."""
    found: KeptIndices = {}
    for group in groups:
        channels = removed.get(group.name)
        if channels is None or not len(channels):
            continue
        for name, dim in group.members:
            gone = group.places(name, dim, channels)
            dims = found.setdefault(name, {})
            dims[dim] = dims[dim] & ~gone if dim in dims else ~gone
    return found


def slice_tensor(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """The kept places of a tensor, in new memory of the same format.

    Example:
        >>> slice_tensor(torch.arange(6).view(2, 3), {1: torch.tensor([True, False, True])})
        tensor([[0, 2],
                [3, 5]])
    """
    made = tensor
    for dim, keep in dims.items():
        made = made.index_select(dim, keep.nonzero().flatten().to(tensor.device))
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return made.contiguous(memory_format=torch.channels_last)
    return made.contiguous()


def masked(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """A copy with zeros at the places that a cut would remove."""
    made = tensor.clone()
    for dim, keep in dims.items():
        made.index_fill_(dim, (~keep).nonzero().flatten().to(tensor.device), 0)
    return made


def cut(
    model: nn.Module,
    kept: KeptIndices,
    undo: UndoLog,
    change: Callable[[Tensor, Mapping[int, Tensor]], Tensor] = slice_tensor,
) -> None:
    """Slices parameters and buffers in place; same objects, gradients dropped.

    Args:
        model: The model.
        kept: The places that stay.
        undo: Takes what is replaced; calling it restores the model, also after a failure here.
        change: `sliced`, or `masked` for zeros of the old shape.
    """
    undo.model = model
    with torch.no_grad():
        for name, tensor in tensors(model).items():
            if name not in kept:
                continue
            made = change(tensor.data, kept[name])
            undo.data.append((tensor, tensor.data, tensor.grad))
            tensor.grad = None
            set_data(tensor, made)
    clear_compiled(model)


def tell_modules(model: nn.Module, kept: KeptIndices, undo: UndoLog) -> None:
    """Layers of `torch.nn`, and those derived from them, learn the sizes of their tensors."""
    for path, module in modules(model).items():
        own = {name for name, _ in _own(module, path)}
        if not own & set(kept):
            continue
        for attribute, value in own_sizes(module).items():
            undo.set(module, attribute, value)


def _own(module: nn.Module, path: str) -> list[tuple[str, Tensor]]:
    prefix = f"{path}." if path else ""
    held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [(prefix + name, tensor) for name, tensor in held]


def own_sizes(module: nn.Module) -> dict[str, Any]:
    """What a layer should say of itself, by the shapes of its tensors."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd):
        return _convolution(module)
    if not isinstance(weight, Tensor):
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            return {"num_features": len(module.running_mean)}
        return {}
    if isinstance(module, nn.Linear):
        return {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {"num_features": len(weight)}
    if isinstance(module, nn.GroupNorm):
        single = module.num_groups == module.num_channels
        groups = len(weight) if single else module.num_groups
        return {"num_channels": len(weight), "num_groups": groups}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": tuple(weight.shape)}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": len(weight)}
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": weight.shape[1]}
    return {}


def _convolution(module: nn.modules.conv._ConvNd) -> dict[str, int]:
    weight, groups = module.weight, module.groups
    before = module.in_channels // groups
    if groups > 1 and groups >= before:  # whole groups went
        if module.transposed:
            groups = weight.shape[0] // before
        else:
            groups = weight.shape[0] // (module.out_channels // groups)
    if module.transposed:
        return {
            "groups": groups,
            "in_channels": weight.shape[0],
            "out_channels": weight.shape[1] * groups,
        }
    return {
        "groups": groups,
        "in_channels": weight.shape[1] * groups,
        "out_channels": weight.shape[0],
    }
