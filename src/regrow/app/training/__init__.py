# SPDX-License-Identifier: MIT
"""One resumable fit, built from a configuration.

Classes are imported when first used.
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    modules = {"Classifier": "classifier", "Task": "classifier"}
    modules["FakeQuantization"] = "fake_quantization"
    modules |= dict.fromkeys(("constant", "cosine", "linear", "multistep"), "lr_schedules")
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{modules[name]}"), name)
