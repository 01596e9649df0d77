# SPDX-License-Identifier: MIT
"""Options of a sensitivity scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ScanOptions:
    """Options of `regrow sensitivity`; importable without torch."""

    checkpoint: Path
    out: Path  # folder of the table and the plot
    sparsities: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)  # of each layer
    by: str = "weights"  # or "channels"
    criterion: str | None = None  # None: "magnitude", or "l2" for channels
    samples: int | None = None  # of the validation set; None: all
    max_drop: float = 0.01  # accuracy that a layer may lose, as a fraction
    include: tuple[str, ...] | None = None  # patterns of layers; None: all that can be pruned
    exclude: tuple[str, ...] | None = None  # patterns of layers not to prune
