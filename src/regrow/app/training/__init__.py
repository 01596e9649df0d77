# SPDX-License-Identifier: MIT
"""One resumable fit, built from a configuration."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("constant", "cosine", "linear", "multistep"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.lr_schedules"), name)
