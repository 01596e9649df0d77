# SPDX-License-Identifier: MIT
"""Result.json."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from regrow.io.files import read_json

FORMAT = 1


FILE = "result.json"


def finished_result(folder: Path, config_hash: str) -> dict[str, Any] | None:
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


def budget(history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What an accuracy budget judged, in order, and why its search ended; None without one.

    Returns:
        judged (each with sparsity, step, epoch, whether it held, and what it had lost of the
        metric: None where it never was a number), held (the sparsest that did), rollbacks (how many
        did not) and reason.

    Example:
        >>> found = budget([{"kind": "prune", "after": 0.5, "lost": 0.01, "reason": "it held"}])
        >>> found["held"], found["rollbacks"], found["reason"]
        (0.5, 0, 'it held')
    """
    judged = [
        {
            "sparsity": entry["before" if entry["kind"] == "rollback" else "after"],
            "held": entry["kind"] != "rollback",
            "lost": entry["lost"],
            "step": entry.get("step"),
            "epoch": entry.get("epoch"),
        }
        for entry in history
        if "lost" in entry
    ]
    if not judged:
        return None
    return {
        "held": max((event["sparsity"] for event in judged if event["held"]), default=0.0),
        "rollbacks": sum(not event["held"] for event in judged),
        "reason": [entry.get("reason") for entry in history if "lost" in entry][-1],
        "judged": judged,
    }


def verdict(result: dict[str, Any]) -> str:
    """One line: what was gained, what was lost, and why it is or is not faster.

    After an accuracy budget also why it ended where it did.

    Example:
        >>> verdict({"pruned": None, "dense": {"accuracy": 0.9}})
        'dense: accuracy 90.00 %'
    """
    dense, pruned = result["dense"], result["pruned"]
    if pruned is None:
        return f"dense: accuracy {dense['accuracy']:.2%}".replace("%", " %")
    points = 100 * result["accuracy_drop"]
    change = f"{abs(points):.2f} points {'lost' if points > 0 else 'gained'}"
    of = result.get("of", "weights")
    gone = "of the prunable are zero" if of == "weights" else f"of the {of} are gone"
    size = f"{result['compression']:.1f}x fewer parameters ({result['sparsity']:.1%} {gone}), "
    size += f"{result['theoretical_speedup']:.1f}x fewer MACs"
    speed = result["measured_speedup"]
    if speed > 1.05 and pruned["latency_ms"]["p75"] < dense["latency_ms"]["p25"]:
        line = f"{change}, {size}, {speed:.2f}x as fast"
    elif of != "weights":
        line = f"{change}, {size}; not faster here ({speed:.2f}x measured): too little work to save"
    else:
        line = (
            f"{change}, {size}; not faster ({speed:.2f}x measured): a dense kernel multiplies "
            "zeros too, channel or 2:4 pruning is what speeds it up"
        )
    judged = result.get("budget")
    if judged is None:
        return line
    taken = f"{judged['rollbacks']} of {len(judged['judged'])} events taken back"
    return f"{line}; budget: {judged['reason']} ({taken})"


def device_name() -> str:
    """The device that latencies were measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()
