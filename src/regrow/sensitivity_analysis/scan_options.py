# SPDX-License-Identifier: MIT
"""Options of a sensitivity scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ScanOptions:
    """What to try on which checkpoint.

    Attributes:
        checkpoint: The file.
        out: Where table and plot go.
        sparsities: Of each layer.
        by: "weights" or "channels".
        criterion: What ranks; None: "magnitude", or "l2" for channels.
        samples: Of the validation set; None: all.
        max_drop: What a layer may lose in accuracy, as a fraction.
        include: Patterns of what is tried; None: all that can be.
        exclude: Patterns of what is not.
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
