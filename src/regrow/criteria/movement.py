# SPDX-License-Identifier: MIT
"""Movement scores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regrow.utils.errors import StateError


class Movement:
    """Movement scores S = -sum over steps of g w: weights that move to zero are pruned first.

    The first event needs at least one optimizer step before it. With `soft=True` the scores of
    pruned weights accumulate by their dense values, as in the paper, so that masks may move; these
    values are trained too, while the paper's are frozen as long as they are pruned.

    Source: Sanh et al. 2020, eq. 4 (without the learning rate).

    Example:
        >>> movement = Movement()
        >>> movement.update("w", torch.tensor([1.0, 1.0]), torch.tensor([0.5, -0.5]))
        >>> movement.scores("w", torch.zeros(2))
        tensor([-0.5000,  0.5000])
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, name: str, weight: Tensor, grad: Tensor) -> None:
        total = self._sums.get(name)
        if total is None:
            total = torch.zeros_like(weight, dtype=torch.float32)
        total = total.to(weight.device)  # a checkpoint is loaded to the CPU
        self._sums[name] = total.sub_(grad.float() * weight.float())

    def scores(self, name: str, weight: Tensor) -> Tensor:
        if name not in self._sums:
            raise StateError(
                f"movement has seen no gradient of {name}: prune after at least one step, and "
                "leave out frozen layers"
            )
        return self._sums[name].to(weight.device)

    def state_dict(self) -> dict[str, Tensor]:
        # copies, because sums change in place while another thread may write the file
        return {name: total.clone() for name, total in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._sums = {name: total.clone() for name, total in state.items()}
