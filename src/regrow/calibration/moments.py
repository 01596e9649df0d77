# SPDX-License-Identifier: MIT
"""Collect second moments of layer inputs and outputs, in memory that does not grow with data."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from regrow.calibration.layer_rows import LayerRows
from regrow.utils.batches import bound_forward
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.modes import in_mode, no_attention_fastpath
from regrow.utils.random import make_generator
from regrow.utils.repeated_forward import RepeatedForward

# Functions of torch that multiply inputs by weights.
_PRODUCT = re.compile("linear$|conv|multi_head_attention|(rnn_tanh|rnn_relu|lstm|gru)(_cell)?$")


class Moments:
    """Sums over rows of inputs X `(groups, rows, features)` and outputs Y `(groups, rows, out)`.

    Attributes:
        rows: Number of rows seen.
        xx: X^T X, `(groups, features, features)` in float64.
        xy: X^T Y, `(groups, features, out)`; None without outputs.
        x, y: Sums of rows.

    Example:
        >>> moments = Moments()
        >>> moments.add(torch.tensor([[[1.0, 2.0]]]), None)
        >>> moments.xx.tolist()
        [[[1.0, 2.0], [2.0, 4.0]]]
    """

    xx: Tensor
    xy: Tensor | None
    x: Tensor
    y: Tensor | None

    def __init__(self) -> None:
        self.rows = 0
        self.xy = self.y = None

    def add(self, inputs: Tensor, outputs: Tensor | None) -> None:
        """Add rows; outputs belong to the same rows."""
        x = inputs.double()
        y = None if outputs is None else outputs.double()
        xx, sums = x.mT @ x, x.sum(1)
        self.xx, self.x = (self.xx + xx, self.x + sums) if self.rows else (xx, sums)
        if y is not None:
            xy, sums = x.mT @ y, y.sum(1)
            self.xy = xy if self.xy is None else self.xy + xy
            self.y = sums if self.y is None else self.y + sums
        self.rows += x.shape[1]

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """Add up the sums of all ranks; `total` returns the sum of a tensor over them."""
        self.rows = int(total(self.x.new_tensor(self.rows)))
        self.xx, self.x = total(self.xx), total(self.x)
        if self.xy is not None and self.y is not None:
            self.xy, self.y = total(self.xy), total(self.y)

    def check_finite(self, name: str) -> None:
        """Raise `StateError` if inputs of a layer were not finite."""
        if not bool(self.xx.isfinite().all()):
            raise StateError(
                f"inputs of {name} are not finite on the calibration data: check the data and its "
                "normalisation, or exclude the layer"
            )


@dataclass(frozen=True)
class Data:
    """Calibration data, and how it is used.

    Attributes:
        batches: Inputs; a tuple holds positional arguments, a dict keyword arguments.
        max_rows: Largest number of rows of a batch that are used, drawn at random.
        seed: For that draw.
        total: Returns the sum of a tensor over all ranks; None: there is one.
    """

    batches: Sequence[Any]
    max_rows: int = 16384
    seed: int = 0
    total: Callable[[Tensor], Tensor] | None = None

    def sample(self, rows: Tensor, name: str, seen: int) -> Tensor:
        """Draw rows of a layer that has seen others; the same ones for inputs and outputs."""
        if rows.shape[1] <= self.max_rows:
            return rows
        generator = make_generator(self.seed, seen, name)
        chosen = torch.randperm(rows.shape[1], generator=generator)[: self.max_rows]
        return rows.index_select(1, chosen.to(rows.device))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise an error of this rank after the block, and `StateError` on the other ranks."""
        failed = None
        try:
            yield
        except Exception as error:
            failed = error
        count = torch.tensor(float(failed is not None))
        count = count if self.total is None else self.total(count)
        if failed is not None:
            raise failed
        if float(count):
            raise StateError("calibration failed on another rank")

    def finish(self, name: str, moments: Moments) -> Moments:
        """Add up the ranks' sums, and check them."""
        if self.total is not None:
            moments.reduce(self.total)
        moments.check_finite(name)
        return moments


def input_moments(model: nn.Module, layers: Sequence[LayerRows], data: Data) -> dict[str, Moments]:
    """Collect moments of the inputs of layers by name, in the order in which the layers run.

    One pass over the data, in eval mode; layers that do not run are left out.
    """
    found: dict[str, Moments] = {}

    def make_hook(layer: LayerRows) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, __: Any) -> None:
            moments = found.setdefault(layer.name, Moments())
            moments.add(data.sample(layer.inputs(args, kwargs), layer.name, moments.rows), None)

        return hook

    check_forwards(model, layers, data.batches)
    with in_mode(model, training=False), no_attention_fastpath(), ExitStack() as hooks:
        for layer in layers:
            handle = layer.module.register_forward_hook(make_hook(layer), with_kwargs=True)
            hooks.callback(handle.remove)
        for batch in data.batches:
            bound_forward(model, batch)()
    return {name: data.finish(name, moments) for name, moments in found.items()}


def order_layers(
    model: nn.Module, layers: Sequence[LayerRows], batches: Sequence[Any], all_run: bool = False
) -> list[LayerRows]:
    """Return the layers that run, in the order in which they first do, in eval mode.

    Raises:
        ConfigError: If one does not run, and `all_run` says that all have to; see `check_forwards`.
    """
    check_forwards(model, layers, batches)
    ran: dict[str, LayerRows] = {}

    def make_hook(layer: LayerRows) -> Callable[..., None]:
        def hook(*_: object) -> None:
            ran.setdefault(layer.name, layer)

        return hook

    with in_mode(model, training=False), no_attention_fastpath(), ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.module.register_forward_hook(make_hook(layer)).remove)
        for batch in batches:
            bound_forward(model, batch)()
    if all_run:
        check_all_run(layers, ran)
    return list(ran.values())


def check_all_run(layers: Sequence[LayerRows], ran: Container[str]) -> None:
    """Raise `ConfigError` if a layer is not among the names of those that ran."""
    if missing := [layer.name for layer in layers if layer.name not in ran]:
        raise ConfigError(
            f"{missing[0]} is not used in the model's forward pass: write exclude={missing}"
        )


def check_forwards(model: nn.Module, layers: Sequence[LayerRows], batches: Iterable[Any]) -> None:
    """Raise `ConfigError` if a layer transforms its weight before it uses it."""
    if names := find_transforming(model, layers, batches):
        kind = next(type(layer.module).__name__ for layer in layers if layer.name == names[0])
        raise ConfigError(
            f"{kind} has its own forward(), which transforms {names[0]} or its bias before it uses "
            f"them, and calibration needs these values themselves: write exclude={names}"
        )


def find_transforming(
    model: nn.Module, layers: Sequence[LayerRows], batches: Iterable[Any]
) -> list[str]:
    """Return the names of layers whose own `forward` gives torch other values than their weight.

    A subclass of a layer of torch may scale or standardize its weight, or only pad its inputs.
    """
    own = [layer for layer in layers if _has_own_forward(layer.module)]
    if not own:
        return []
    called = set[nn.Module]()
    with in_mode(model, training=False), no_attention_fastpath(), ExitStack() as stack:
        for layer in own:
            hook = layer.module.register_forward_pre_hook(lambda module, _: called.add(module))
            stack.callback(hook.remove)
        used = stack.enter_context(_Operands())
        for batch in batches:
            bound_forward(model, batch)()
    return [layer.name for layer in own if layer.module in called and not used.directly(layer)]


def _has_own_forward(module: nn.Module) -> bool:
    return "forward" in vars(module) or not type(module).forward.__module__.startswith("torch.nn.")


class _Operands(TorchFunctionMode):
    """Records the tensors that products and convolutions get."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = set[frozenset[int]]()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if _PRODUCT.match(getattr(func, "__name__", "")):
            leaves = tree_leaves((args, kwargs))
            self.calls.add(frozenset(id(x) for x in leaves if isinstance(x, nn.Parameter)))
        return func(*args, **(kwargs or {}))

    def directly(self, layer: LayerRows) -> bool:
        """Return whether a call got the weight and the bias of a layer themselves."""
        own = {id(x) for x in (layer.weight, layer.bias) if isinstance(x, nn.Parameter)}
        return any(own <= call for call in self.calls)


def squared_gradients(
    model: nn.Module, layers: Sequence[LayerRows], data: Data, draws: int = 4
) -> dict[str, Tensor]:
    """Estimate the sum of squares of d z / d w over all outputs z, examples and weights w of a row.

    For v ~ N(0, I), the mean of the squared gradient of v . z is the diagonal of J^T J, which is
    the second derivative of the squared error of the outputs. A draw is for a whole batch, so the
    estimate depends on how examples are divided into batches. Returns sums `(groups, out)` by name;
    raises `ConfigError` if no output has a gradient with respect to a weight.

    Source: Bekas et al. 2007 (diagonals of a matrix by random vectors).
    """
    weights = {layer.name: layer.weight for layer in layers}
    found = dict[str, Tensor]()
    with ExitStack() as stack, gradients_in_eval(model), torch.enable_grad():
        for weight in weights.values():
            stack.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_(True)
        for at, batch in enumerate(data.batches):
            leaves = tree_leaves(bound_forward(model, batch)())
            outputs = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
            for draw in range(draws):
                generator = make_generator(data.seed, at * draws + draw, "outputs")
                along = [torch.randn(z.shape, generator=generator).to(z) for z in outputs]
                _add_squares(found, layers, outputs, along)
    with data.together():
        if missing := [layer.name for layer in layers if layer.name not in found]:
            raise ConfigError(
                f"the model's outputs have no gradient with respect to {missing[0]}, by which "
                "criterion='obs' compares layers: write criterion='magnitude' or 'sparsegpt'"
            )
    sums = {layer.name: found[layer.name] for layer in layers}  # in the same order on all ranks
    if data.total is not None:
        sums = {name: data.total(values) for name, values in sums.items()}
    return {name: values / draws for name, values in sums.items()}


@contextmanager
def gradients_in_eval(model: nn.Module) -> Iterator[None]:
    """Set eval mode, without cuDNN where there is an `nn.RNNBase`, which has no gradient in it."""
    with ExitStack() as stack:
        stack.enter_context(in_mode(model, training=False))
        stack.enter_context(no_attention_fastpath())
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def _add_squares(
    found: dict[str, Tensor],
    layers: Sequence[LayerRows],
    outputs: Sequence[Tensor],
    along: Sequence[Tensor],
) -> None:
    """Add the squared gradients of v . z to the sums of each row that they depend on."""
    if not outputs:
        return
    weights = [layer.weight for layer in layers]
    parts = torch.autograd.grad(outputs, weights, along, retain_graph=True, allow_unused=True)
    for layer, part in zip(layers, parts, strict=True):
        if part is not None:
            squares = layer.to_matrix(part).double().square().sum(2)
            found[layer.name] = squares + found.get(layer.name, 0)


def paired_moments(
    layer: LayerRows,
    model: RepeatedForward,
    twin: LayerRows,
    dense: RepeatedForward,
    data: Data,
    kept: Tensor | None = None,
) -> Moments:
    """Collect moments of a layer's inputs in a model and of its twin's outputs in a dense copy.

    `kept` says which outputs of the twin the layer has; None: all.
    """
    moments = Moments()
    with data.together(), in_mode(model.model, training=False), in_mode(dense.model, False):
        for index, batch in enumerate(data.batches):
            inputs = model.run_to(layer.module, index, batch, layer.inputs)
            before = dense.run_to(twin.module, index, batch, twin.inputs)
            shapes = [[x.shape[1] for x in calls] for calls in (inputs, before)]
            if shapes[0] != shapes[1]:
                raise StateError(
                    f"the calls of {layer.name} get {shapes[0]} rows of inputs in the model and "
                    f"{shapes[1]} in its dense copy: a refit needs a forward pass that does not "
                    "depend on weights (as routing among experts does) or on attributes that "
                    f"copy.deepcopy shares; write exclude=[{layer.name!r}] or refit=False"
                )
            for pair in zip(inputs, before, strict=True):
                x, dense_x = (data.sample(rows, layer.name, moments.rows) for rows in pair)
                moments.add(x, twin.outputs(dense_x, kept))
        if not moments.rows:
            raise StateError(f"{layer.name} is not called on the calibration data")
    return data.finish(layer.name, moments)
