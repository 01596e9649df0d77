# SPDX-License-Identifier: MIT
"""The result of a run: one JSON file, written last and whole."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from regrow.app.files import read_json

FORMAT = 1
FILE = "result.json"


def standing_result(folder: Path, config_hash: str) -> dict[str, Any] | None:
    """The result in a folder, if it is of the same settings."""
    path = folder / FILE
    if not path.is_file():
        return None
    result: dict[str, Any] = read_json(path)
    return result if result.get("config_hash") == config_hash else None


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    packages = ("regrow", "torch", "lightning", "torchmetrics", "hydra-core", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def compare(dense: dict[str, Any], pruned: dict[str, Any]) -> dict[str, float]:
    """How the pruned network stands to the dense one.

    Returns:
        accuracy_drop (fraction), compression (parameters of all kinds), theoretical_speedup (MACs)
        and measured_speedup (median latency), the ratios dense / pruned.
    """
    return {
        "accuracy_drop": dense["accuracy"] - pruned["accuracy"],
        "compression": dense["params"] / max(1, pruned["params"]),
        "theoretical_speedup": dense["macs"] / max(1, pruned["macs"]),
        "measured_speedup": dense["latency_ms"]["median"] / pruned["latency_ms"]["median"],
    }


def verdict(result: dict[str, Any]) -> str:
    """One line: what was gained, what was lost, and why it is or is not faster.

    Example:
        >>> verdict({"pruned": None, "dense": {"accuracy": 0.9}})
        'dense: accuracy 90.00 %'
    """
    dense, pruned = result["dense"], result["pruned"]
    if pruned is None:
        return f"dense: accuracy {dense['accuracy']:.2%}".replace("%", " %")
    points = 100 * result["accuracy_drop"]
    change = f"{abs(points):.2f} points {'lost' if points > 0 else 'gained'}"
    size = f"{result['compression']:.1f}x fewer parameters ({result['sparsity']:.1%} of the "
    size += f"prunable are zero), {result['theoretical_speedup']:.1f}x fewer MACs"
    speed = result["measured_speedup"]
    if speed > 1.05 and pruned["latency_ms"]["p75"] < dense["latency_ms"]["p25"]:
        return f"{change}, {size}, {speed:.2f}x as fast"
    return (
        f"{change}, {size}; not faster ({speed:.2f}x measured): a dense kernel multiplies zeros "
        "too, channel or 2:4 pruning is what speeds it up"
    )


def device_name() -> str:
    """The device that latencies were measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()
