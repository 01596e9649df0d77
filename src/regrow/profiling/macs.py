# SPDX-License-Identifier: MIT
"""Count multiply-accumulates (MACs) of one forward pass, for one example.

Matrix products and convolutions count, attention included.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
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
}


class Work(NamedTuple):
    """MACs of one example, and the number of uses of each weight."""

    macs: float
    positions: dict[str, float]


def positions(model: nn.Module, example_input: Any) -> dict[str, float]:
    """Count how often one example uses each weight: output positions of its layer.

    A pruned weight saves as many MACs. The model runs once in eval mode; a layer used twice counts
    twice; parameters that no product uses are left out, shared ones have all their names.

    Args:
        model: The model.
        example_input: A batch; a tuple holds positional arguments, a dict keyword arguments.

    Raises:
        ConfigError: If the example has no batch dimension.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 2))
        >>> positions(net, torch.zeros(5, 3, 4, 4))
        {'0.weight': 4.0, '2.weight': 1.0}
    """
    return count_macs(model, example_input).positions


def count_macs(model: nn.Module, example_input: Any) -> Work:
    """Count the MACs of one forward pass in eval mode.

    Example:
        >>> count_macs(nn.Linear(10, 4), torch.zeros(2, 10))
        Work(macs=40.0, positions={'weight': 1.0})
    """
    counter = _Counter(model.parameters())
    run, batch = bound_forward(model, example_input), batch_size(example_input)
    with (
        eval_mode(model),
        no_attention_fastpath(),
        torch.compiler.set_stance("force_eager"),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),  # attention as separate products
        counter,
    ):
        run()
    used = {
        name: counter.of[parameter.untyped_storage()] / parameter.numel() / batch
        for name, parameter in named_parameters(model).items()
        if parameter.untyped_storage() in counter.of
    }
    return Work(counter.macs / batch, used)


class _Counter(TorchDispatchMode):
    """Adds up the MACs of all products, and of those in which each weight is a factor.

    Weights are identified by their storage, which also covers views of them, as in attention.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = {weight.untyped_storage() for weight in weights}
        self.macs = 0.0
        self.of: dict[torch.UntypedStorage, float] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, packet = kwargs or {}, getattr(func, "overloadpacket", func)
        if packet not in flop_registry:
            if isinstance(func, torch._ops.OpOverload):
                with self:  # in inference mode a linear layer is one operation
                    out = func.decompose(*args, **kwargs)
                if out is not NotImplemented:
                    return out
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        macs = flop_registry[packet](*args, **kwargs, out_val=out) / 2
        self.macs += macs
        for factor in args[_FACTORS.get(packet, slice(0))]:
            storage = factor.untyped_storage()
            if storage in self._weights:
                self.of[storage] = self.of.get(storage, 0.0) + macs
        return out
