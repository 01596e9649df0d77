# SPDX-License-Identifier: MIT
"""A penalty weight that follows the sparsity ramp.

Weights are pruned when the penalty has lowered their margin to 0. At each update the controller
measures the margin at the sparsity due at the next update, and sets the penalty so that this margin
becomes 0 by then, plus a correction, learned from earlier errors, against the loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_SAMPLE = 1 << 18  # the most margins of which a quantile is computed
_GAIN = 0.5  # the part of an error that is attributed to the loss


def quantile(margins: Iterable[Tensor], share: float) -> float:
    """Compute the margin below which `share` of all lie; of many, from an evenly spaced sample."""
    margins = list(margins)
    total = sum(margin.numel() for margin in margins)
    step = max(1, total // _SAMPLE) | 1  # odd, because widths of layers are even
    sample = torch.cat([margin.reshape(-1)[::step].float() for margin in margins])
    rank = min(len(sample), max(1, round(share * len(sample))))
    return float(sample.kthvalue(rank).values)


@dataclass
class SparsityController:
    """A proportional-integral controller in units of scores."""

    limit: float  # the maximal change of margins in a step
    speed: float = 0.0  # how far the penalty lowers margins in a step
    drift: float = 0.0  # the estimate of how far the loss raises them in a step
    started: bool = False

    def update(self, margin: float, steps: int) -> float:
        """Compute the speed until the next update, in `steps` steps.

        `margin` is that at the sparsity due then, when it should be 0.
        """
        if self.started and abs(self.speed) < self.limit:
            self.drift += _GAIN * margin / steps
        self.drift = max(-self.limit, min(self.limit, self.drift))
        self.speed = max(-self.limit, min(self.limit, margin / steps + self.drift))
        self.started = True
        return self.speed
