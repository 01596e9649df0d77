# SPDX-License-Identifier: MIT
"""Count multiply-accumulates (MACs) of one forward pass, for one example.

Products of matrices and vectors and convolutions count, attention included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from regrow.utils.batches import batch_size, bound_forward
from regrow.utils.modes import eval_mode, no_attention_fastpath
from regrow.utils.names import named_parameters

_ATEN = torch.ops.aten
# Positions of the two factors among the arguments of each product.
_FACTORS = {
    _ATEN.mm: slice(0, 2),
    _ATEN.bmm: slice(0, 2),
    _ATEN.addmm: slice(1, 3),
    _ATEN.baddbmm: slice(1, 3),
    _ATEN.convolution: slice(0, 2),
    _ATEN.mv: slice(0, 2),
    _ATEN.addmv: slice(1, 3),
    _ATEN.dot: slice(0, 2),
    _ATEN.vdot: slice(0, 2),
}
# Those with a vector, which torch does not count; each element of the first factor is used once.
_WITH_VECTOR = (_ATEN.mv, _ATEN.addmv, _ATEN.dot, _ATEN.vdot)
# Operations that only copy values, as autocast does: the position of what is copied. cuDNN's
# weights are copied into one storage.
_COPIES = {_ATEN._to_copy: 0, _ATEN.clone: 0, _ATEN.copy_: 1}
# Operations that use each weight once at each position of the output: the argument with the
# weights, and the output's dimension of features.
_LAYERS = {
    "aten::mkldnn_rnn_layer": (slice(1, 3), -1),
    "aten::_cudnn_rnn": (slice(1, 2), -1),
    "aten::miopen_rnn": (slice(1, 2), -1),
    "aten::_trilinear": (slice(1, 2), -1),  # of a bilinear layer
    "torchvision::deform_conv2d": (slice(1, 2), 1),
}


class Work(NamedTuple):
    """MACs of one example, and the number of uses of each weight."""

    macs: float
    positions: dict[str, float]


def positions(model: nn.Module, example_input: Any) -> dict[str, float]:
    """Count how often one example uses each weight: output positions of its layer.

    A pruned weight saves as many MACs. The model runs once in eval mode; a layer used twice counts
    twice; parameters that no product uses are left out, shared ones have all their names.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 2))
        >>> positions(net, torch.zeros(5, 3, 4, 4))
        {'0.weight': 4.0, '2.weight': 1.0}
    """
    return count_macs(model, example_input).positions


def count_macs(model: nn.Module, example_input: Any) -> Work:
    """Count the MACs of one forward pass in eval mode."""
    counter = _Counter(model.parameters())
    run, batch = bound_forward(model, example_input), batch_size(example_input)
    with (
        eval_mode(model),
        no_attention_fastpath(),
        torch.compiler.set_stance("force_eager"),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),  # attention as separate products
        _no_autocast_cache(),
        counter,
    ):
        run()
    used = {
        name: counter.of[parameter] / parameter.numel() / batch
        for name, parameter in named_parameters(model).items()
        if parameter in counter.of
    }
    return Work(counter.macs / batch, used)


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Let autocast neither use copies of weights that were made before, nor keep those made now."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class _Part(NamedTuple):
    """Consecutive elements of a storage that are a weight, a part of it, or a copy of them."""

    start: int
    stop: int
    weight: Tensor


class _Counter(TorchDispatchMode):
    """Adds up the MACs of all products, and of those in which each weight is a factor.

    Weights are identified by their place in memory, which also covers views of them, as in
    attention, and so are copies. cuDNN keeps all weights of a recurrent layer in one storage.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parts: dict[torch.UntypedStorage, list[_Part]] = {}
        for weight in weights:
            self._add_part(weight, weight)
        self.macs = 0.0
        self.of: dict[Tensor, float] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, packet = kwargs or {}, getattr(func, "overloadpacket", func)
        name = func._schema.name if isinstance(func, torch._ops.OpOverload) else ""
        if name in _LAYERS:
            out, (given, features) = func(*args, **kwargs), _LAYERS[name]
            first = tree_leaves(out)[0]
            self._add_layer(tree_leaves(args[given]), first.numel() / first.shape[features])
            return out
        if packet in _COPIES:
            return self._follow(func(*args, **kwargs), args[_COPIES[packet]])
        if packet not in flop_registry and packet not in _WITH_VECTOR:
            if isinstance(func, torch._ops.OpOverload):
                with self:  # in inference mode a linear layer is one operation
                    out = func.decompose(*args, **kwargs)
                if out is not NotImplemented:
                    return out
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        factors = args[_FACTORS.get(packet, slice(0))]
        if packet in _WITH_VECTOR:
            macs = float(factors[0].numel())
        else:
            macs = flop_registry[packet](*args, **kwargs, out_val=out) / 2
        self.macs += macs
        for factor in factors:
            for weight in self._weights_in(factor):
                self.of[weight] = self.of.get(weight, 0.0) + macs
        return out

    def _weights_in(self, factor: Tensor) -> list[Tensor]:
        """Return the weight that a tensor is a view or a copy of, if any."""
        if factor.layout is not torch.strided:  # no storage
            return []
        parts = self._parts.get(factor.untyped_storage(), ())
        return [p.weight for p in parts if p.start <= factor.storage_offset() < p.stop]

    def _add_part(self, tensor: Tensor, weight: Tensor) -> None:
        """Note that a tensor has values of a weight."""
        start = int(tensor.storage_offset())
        part = _Part(start, start + tensor.numel(), weight)
        self._parts.setdefault(tensor.untyped_storage(), []).append(part)

    def _follow(self, copied: Tensor, given: Tensor) -> Tensor:
        """Note that a copy is the weight that it was made of, and return it."""
        if not self._weights_in(copied):
            for weight in self._weights_in(given):
                self._add_part(copied, weight)
        return copied

    def _add_layer(self, given: Iterable[Tensor], positions: float) -> None:
        """Add the work of an operation that uses each matrix once at each position."""
        for factor in given:
            for weight in self._weights_in(factor) if factor.ndim > 1 else ():
                work = positions * weight.numel()
                self.macs += work
                self.of[weight] = self.of.get(weight, 0.0) + work
