# SPDX-License-Identifier: MIT
"""Options of a sensitivity scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ScanOptions:
    """Options of `regrow sensitivity`; importable without torch.

    Attributes:
        checkpoint: The checkpoint file.
        out: Folder of the table and the plot.
        sparsities: Sparsities of each layer.
        by: "weights" or "channels".
        criterion: Criterion; None: "magnitude", or "l2" for channels.
        samples: Number of validation samples; None: all.
        max_drop: Accuracy that a layer may lose, as a fraction.
        include: Patterns of layers to prune; None: all that can be pruned.
        exclude: Patterns of layers not to prune.
    """

    checkpoint: Path
    out: Path
    sparsities: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    by: str = "weights"
    criterion: str | None = None
    samples: int | None = None
    max_drop: float = 0.01
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
