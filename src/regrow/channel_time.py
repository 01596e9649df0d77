# SPDX-License-Identifier: MIT
"""How long a network takes, on the same batch at every event and after a resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regrow.cost import latency
from regrow.macs import batch_size


class Stopwatch:
    """Times networks on batches of one size, and remembers how long the original took.

    Args:
        timer: What tells a model's milliseconds; None: the median measured here.
        example_input: A batch; its size counts, not its values.

    Example:
        >>> watch = Stopwatch(lambda model: 2.0, torch.zeros(8, 4))
        >>> watch.size, watch(nn.Linear(4, 2), torch.zeros(2, 4))
        (8, 2.0)
    """

    def __init__(self, timer: Callable[[nn.Module], float] | None, example_input: Any) -> None:
        self.timer = timer
        self.size = batch_size(example_input)
        self._original = 0.0

    def __call__(self, model: nn.Module, example: Any) -> float:
        """Milliseconds of a pass.

        Args:
            model: The model.
            example: A few examples, repeated to the batch's size.
        """
        if self.timer is not None:
            return self.timer(model)
        return latency(model, _batch(example, self.size), repeats=20, warmup=3).median_ms

    def original(self, model: nn.Module, example: Any) -> float:
        """How long the original model takes; measured once, before anything is cut."""
        if not self._original:
            self._original = self(model, example)
        return self._original

    def state_dict(self) -> dict[str, Any]:
        return {"size": self.size, "original": self._original}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.size, self._original = int(state["size"]), float(state["original"])


def _batch(example: Any, size: int) -> Any:
    few = batch_size(example)

    def repeated(x: Any) -> Any:
        if isinstance(x, Tensor) and x.dim() and len(x) == few:
            return x[torch.arange(size, device=x.device) % few]
        return x

    return tree_map(repeated, example)
