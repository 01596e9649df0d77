# SPDX-License-Identifier: MIT
"""The inputs that layers of a model get."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from regrow.utils.batches import bound_forward
from regrow.utils.modes import in_mode


def layer_inputs(
    model: nn.Module, layers: Mapping[str, nn.Module], batch: Any
) -> dict[str, Tensor]:
    """Return the input of the first call of each layer in a forward pass in eval mode.

    A layer that is not called has none.
    """
    found: dict[str, Tensor] = {}

    def make_hook(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], __: Any) -> None:
            found.setdefault(name, (args[0] if args else next(iter(kwargs.values()))).detach())

        return hook

    handles = [
        layer.register_forward_hook(make_hook(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        with in_mode(model, training=False):
            bound_forward(model, batch)()
    finally:
        for handle in handles:
            handle.remove()
    return found
