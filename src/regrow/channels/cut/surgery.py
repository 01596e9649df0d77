# SPDX-License-Identifier: MIT
"""Slice parameters and buffers in place, and undo it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from regrow.channels.cut.pruned_attention import attention_sizes, transformer_sizes
from regrow.channels.graph.groups import Group
from regrow.utils.errors import StateError
from regrow.utils.modes import clear_compiled, eval_mode
from regrow.utils.names import modules, strip_compile_prefix, tensors

RemovedChannels = Mapping[str, Tensor]  # channels to remove, by name of the group
KeptIndices = dict[str, dict[int, Tensor]]  # bool vectors of what stays, by tensor and dimension


@dataclass
class UndoLog:
    """What a cut replaced; calling it restores the model.

    `data` are (tensor, values before, gradient before, shape after the cut), `attributes` (module,
    name, value before).
    """

    data: list[tuple[Tensor, Tensor, Tensor | None, torch.Size]] = field(default_factory=list)
    attributes: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    model: nn.Module | None = None

    def __call__(self) -> None:
        """Restore everything, last change first."""
        for tensor, before, _, shape in self.data:
            if tensor.shape not in (shape, before.shape):
                raise StateError(
                    f"a later cut has changed a tensor from {tuple(shape)} to "
                    f"{tuple(tensor.shape)}: undo the later cut first"
                )
        try:
            self._restore()
        except BaseException:  # interrupted: restore the rest before raising
            self._restore()
            raise
        if self.model is not None:
            clear_compiled(self.model)

    @contextmanager
    def on_error(self) -> Iterator[None]:
        """Restore everything if the block raises."""
        try:
            yield
        except BaseException:
            self()
            raise

    def _restore(self) -> None:
        while self.attributes:
            module, name, value = self.attributes[-1]
            setattr(module, name, value)
            self.attributes.pop()
        while self.data:
            tensor, before, gradient, _ = self.data[-1]
            tensor.grad = None
            set_data(tensor, before.to(tensor))  # the model may have been moved or cast since
            tensor.grad = None if gradient is None else gradient.to(tensor)
            self.data.pop()

    def keep(self, tensor: Tensor) -> None:
        """Let the undo restore a tensor's present values, unless it does so already."""
        if all(tensor is not known for known, *_ in self.data):
            self.data.append((tensor, tensor.data, tensor.grad, tensor.shape))
            tensor.data = tensor.data.clone()

    def before(self, tensor: Tensor) -> Tensor:
        """Return the values of a tensor before the cut."""
        return next((values for cut, values, *_ in self.data if cut is tensor), tensor.detach())

    def set(self, module: nn.Module, name: str, value: Any) -> None:
        """Set an attribute; for "config.num_heads" and such the module gets its own `config`."""
        name, _, field = name.partition(".")
        before = getattr(module, name)
        if field:
            own = copy.copy(before)
            setattr(own, field, value)
            value = own
        if before != value:
            self.attributes.append((module, name, before))
            setattr(module, name, value)


def set_data(tensor: Tensor, values: Tensor) -> None:
    """Replace the values of a tensor, also by values of another shape.

    The gradient accumulator of a parameter stores the shape, and an old graph may keep it alive;
    it is recreated only when the type changes, so the type changes for a moment.
    """
    if tensor.shape != values.shape:
        other = torch.float32 if tensor.dtype != torch.float32 else torch.float64
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = values


def kept_indices(
    groups: Sequence[Group], removed: RemovedChannels, masked: bool = False
) -> KeptIndices:
    """Return which positions stay, for each tensor and dimension that is cut, or that is masked."""
    found: KeptIndices = {}
    for group in groups:
        channels = removed.get(group.name)
        if channels is None or not len(channels):
            continue
        for name, dim in group.members:
            if masked and (name, dim) in group.unmasked:
                continue
            keep = ~group.places(name, dim, channels)
            dims = found.setdefault(name, {})
            dims[dim] = dims[dim] & keep if dim in dims else keep
    return found


def kept_mask(shape: Sequence[int], dims: Mapping[int, Tensor], device: Any = "cpu") -> Tensor:
    """Return a bool mask of the positions of a tensor that stay."""
    mask = torch.ones(tuple(shape), dtype=torch.bool, device=device)
    for dim, keep in dims.items():
        mask &= keep.to(device).reshape([-1 if d == dim else 1 for d in range(len(shape))])
    return mask


def slice_tensor(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """Copy the kept positions of a tensor, in the same memory format."""
    result = tensor
    for dim, keep in dims.items():
        result = result.index_select(dim, keep.nonzero().flatten().to(tensor.device))
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return result.contiguous(memory_format=torch.channels_last)
    return result.contiguous()


def mask_tensor(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """Copy a tensor with zeros at the positions that a cut would remove."""
    result = tensor.clone()
    for dim, keep in dims.items():
        result.index_fill_(dim, (~keep).nonzero().flatten().to(tensor.device), 0)
    return result


def cut(
    model: nn.Module,
    kept: KeptIndices,
    undo: UndoLog,
    change: Callable[[Tensor, Mapping[int, Tensor]], Tensor] = slice_tensor,
) -> None:
    """Slice parameters and buffers in place, or set zeros (`mask_tensor`); drop gradients."""
    undo.model = model
    with torch.no_grad():
        for name, tensor in tensors(model).items():
            if name not in kept:
                continue
            values = change(tensor.data, kept[name])
            undo.data.append((tensor, tensor.data, tensor.grad, values.shape))
            tensor.grad = None
            set_data(tensor, values)
    clear_compiled(model)


def tell_modules(model: nn.Module, kept: KeptIndices, undo: UndoLog) -> None:
    """Set attributes that tensors imply, such as `in_features`, in all modules that hold them."""
    sliced = {id(tensor) for name, tensor in tensors(model).items() if name in kept}
    every: list[tuple[str, Tensor]] = [*model.named_parameters(remove_duplicate=False)]
    every += model.named_buffers(remove_duplicate=False)
    parts = [strip_compile_prefix(name).split(".") for name, t in every if id(t) in sliced]
    changed = {".".join(part[:end]) for part in parts for end in range(len(part))}
    for path, module in modules(model).items():
        if path in changed:
            for attribute, value in sizes_from_tensors(module).items():
                undo.set(module, attribute, value)
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()  # cuDNN needs the weights in one block of memory


def sizes_from_tensors(module: nn.Module) -> dict[str, Any]:
    """Return the size attributes that the tensors of a `torch.nn` layer imply."""
    if isinstance(module, nn.RNNBase):
        return _recurrent(module)
    if isinstance(module, nn.RNNCellBase):
        return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}
    if isinstance(module, nn.MultiheadAttention):
        return attention_sizes(module)
    if isinstance(module, nn.Transformer | nn.TransformerEncoder):
        return transformer_sizes(module)
    weight = _weight(module)
    convolves = {"in_channels", "out_channels", "groups"} <= vars(module).keys()
    if convolves and weight is not None and weight.ndim > 2:  # also a deformable one
        return _convolution(module, weight)
    if isinstance(module, nn.modules.batchnorm._NormBase):
        weight = module.running_mean if weight is None else weight
    if weight is None:
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
    if isinstance(module, nn.Bilinear):
        names = ("out_features", "in1_features", "in2_features")
        return dict(zip(names, weight.shape, strict=True))
    return {}


def _weight(module: nn.Module) -> Tensor | None:
    """Return a layer's weight; a parametrization that learns, as spectral norm, does not then."""
    if not is_parametrized(module, "weight"):
        weight = getattr(module, "weight", None)
    else:
        with eval_mode(module), torch.no_grad():
            weight = module.weight
    return weight if isinstance(weight, Tensor) else None


def _recurrent(module: Any) -> dict[str, int]:
    rows, width = module.weight_hh_l0.shape
    size = rows // {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    projected = width if module.proj_size else 0
    if projected >= size:
        raise StateError(
            f"an LSTM of {size} units cannot have proj_size={projected}: it must be smaller"
        )
    inputs = module.weight_ih_l0.shape[1]
    return {"input_size": inputs, "hidden_size": size, "proj_size": projected}


def _convolution(module: Any, weight: Tensor) -> dict[str, int]:
    groups, transposed = module.groups, getattr(module, "transposed", False)
    before = module.in_channels // groups
    if groups > 1 and groups >= before:  # whole groups were cut
        groups = weight.shape[0] // (before if transposed else module.out_channels // groups)
    inputs, outputs = weight.shape[1] * groups, weight.shape[0]
    if transposed:
        inputs, outputs = weight.shape[0], weight.shape[1] * groups
    return {"groups": groups, "in_channels": inputs, "out_channels": outputs}
