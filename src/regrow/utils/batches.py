# SPDX-License-Identifier: MIT
"""Example inputs: batch size, resizing, bound forward; differences of outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from regrow.utils.errors import ConfigError


@runtime_checkable
class TrainingData(Protocol):
    """A LightningDataModule, as far as batches are taken from it."""

    def prepare_data(self) -> None: ...
    def setup(self, stage: str) -> None: ...
    def train_dataloader(self) -> Any: ...
    def val_dataloader(self) -> Any: ...


Batches = Iterable[Any] | TrainingData
_CONSTANT = 1e3  # times the median magnitude: equal outputs above it are constants


def bound_forward(model: nn.Module, example_input: Any) -> Callable[[], Any]:
    """Return a function that runs the model on the example, moved to the model's device."""
    device = device_of(model)
    moved = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, example_input)
    return lambda: call(model, moved)


def call(model: nn.Module, given: Any) -> Any:
    """Call a model with one argument, a tuple of arguments or a mapping of named ones."""
    if isinstance(given, Mapping):
        return model(**given)
    return model(*given) if isinstance(given, tuple) else model(given)


def accepted_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that are parameters of a function; all if it takes any.

    Example:
        >>> accepted_arguments(lambda x, y=0: x, {"x": 1, "label": 2})
        {'x': 1}
    """
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(given)
    return {name: value for name, value in given.items() if name in parameters}


def forward_arguments(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a batch that are arguments of the model's forward: no labels.

    Raises:
        ConfigError: If there are none.
    """
    forward = getattr(model, "_orig_mod", model).forward
    if accepted := accepted_arguments(forward, batch):
        return accepted
    parameters = inspect.signature(forward).parameters
    raise ConfigError(
        f"{type(model).__name__} takes {', '.join(parameters) or 'nothing'}, a batch has "
        f"{', '.join(map(str, batch))}: give dicts of these arguments, or tuples (inputs, labels)"
    )


def batches_of(data: Batches, examples: int = 128, *, validate: bool = False) -> Iterable[Any]:
    """Return the batches of a loader, of a tensor, or of a LightningDataModule.

    Of a data module those for training, or with `validate` those for validation.

    Example:
        >>> [len(batch) for batch in batches_of(torch.zeros(5, 2), examples=3)]
        [3, 2]
    """
    if isinstance(data, Tensor):
        return torch.split(data, examples)
    if not isinstance(data, TrainingData):
        return data
    data.prepare_data()
    data.setup("fit")
    return cast(Iterable[Any], data.val_dataloader() if validate else data.train_dataloader())


def batch_size(example_input: Any) -> int:
    """Return the length of the first tensor, whose first dimension counts examples.

    A list of images `(c, h, w)`, or of dictionaries, holds one example each. In a mapping, whose
    order has no meaning, it is the most common length, of several the least above 1.
    """
    mapping = isinstance(example_input, Mapping)
    leaves = tree_leaves(dict(example_input) if mapping else example_input, is_leaf=is_example_list)
    lengths = [
        len(leaf)
        for leaf in leaves
        if (isinstance(leaf, list) or (isinstance(leaf, Tensor) and leaf.dim())) and len(leaf)
    ]
    if lengths and mapping:
        return min(lengths, key=lambda length: (-lengths.count(length), length == 1, length))
    if lengths:
        return lengths[0]
    raise ConfigError(
        f"the example input must hold a batch of examples, got {type(example_input).__name__}: "
        "write a tensor whose first dimension counts examples"
    )


def is_example_list(value: Any) -> bool:
    """Return whether a value is a list with one image or one dictionary for each example."""
    return isinstance(value, list) and all(
        isinstance(item, Mapping) or (isinstance(item, Tensor) and item.ndim == 3) for item in value
    )


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter; the CPU for a model without parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def resize_batch(example_input: Any, count: int) -> Any:
    """Repeat or drop examples until the batch has `count` of them."""
    size = batch_size(example_input)

    def resize(x: Any) -> Any:
        if isinstance(x, list):
            return [x[i % size] for i in range(count)] if len(x) == size else x
        if isinstance(x, Tensor) and x.dim() and len(x) == size:
            return x[torch.arange(count, device=x.device) % size]
        return x

    return tree_map(resize, example_input, is_leaf=is_example_list)


def two_examples(example_input: Any, model: nn.Module) -> Any:
    """Resize a batch to two examples, with the dtype and device of the model's first parameter."""
    parameter = next(model.parameters(), torch.zeros(()))

    def convert(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        dtype = parameter.dtype if x.is_floating_point() else x.dtype
        return x.detach().to(parameter.device, dtype)

    return tree_map(convert, resize_batch(example_input, 2))


def noise_like(example_input: Any, seed: int = 0) -> Any:
    """Replace floating point tensors by normal noise; zeros would hide what a channel does.

    Integers, and dictionaries in lists, such as the boxes of each image, stay as they are: which
    values are valid is not known.
    """
    generator = torch.Generator().manual_seed(seed)

    def replace(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_floating_point():
            return torch.randn(x.shape, generator=generator).to(x)
        return x

    return tree_map(replace, example_input, is_leaf=is_list_of_dictionaries)


def is_list_of_dictionaries(value: Any) -> bool:
    """Return whether a value is a list with one dictionary for each example, such as boxes."""
    return is_example_list(value) and any(isinstance(item, Mapping) for item in value)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two tensors of one shape / the largest expected magnitude.

    Equal values do not differ, NaN and Inf included. Equal values above 1000, and above 1000 times
    the median magnitude, such as the -1e9 of masked positions, do not count as the largest.

    Example:
        >>> expected = torch.tensor([1.0, 2.0, -1e9])
        >>> relative_difference(torch.tensor([1.0, 1.5, -1e9]), expected)
        0.25
    """
    wide = torch.complex128 if expected.is_complex() else torch.float64
    one, other = found.detach().cpu().to(wide), expected.detach().cpu().to(wide)
    equal = (one == other) | (one.isnan() & other.isnan())
    if bool(equal.all()):
        return 0.0
    size = other.abs()
    counted = size.isfinite()
    if bool((counted & (size > _CONSTANT)).any()):
        typical = float(torch.unique(size[counted & (size > 0)]).median())
        counted &= ~equal | (size <= _CONSTANT * max(typical, 1.0))
    largest = float(size[counted].max()) if bool(counted.any()) else 0.0
    return float((one - other).abs()[~equal].max()) / (largest or 1.0)
