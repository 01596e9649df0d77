# SPDX-License-Identifier: MIT
"""Hydra entry, sweeps, signals and failures."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "SweepNotes":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.sweep").SweepNotes
