# SPDX-License-Identifier: MIT
"""The content of result.json, its verdict, and finished results on disk."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch

from regrow.app.training.sparsity_levels import LevelRecord
from regrow.io.files import read_json
from regrow.profiling.latency import Latency, Speedup, describe_load, machine_load
from regrow.report.load import FILE, FORMAT
from regrow.utils.lightning_classes import pl


class LatencyRecord(TypedDict):
    """Latency in milliseconds, and how it was measured."""

    median: float
    p25: float
    p75: float
    device: str
    threads: int
    batch: int


def latency_record(latency: Latency) -> LatencyRecord:
    """Return the record of a measured latency."""
    return {
        "median": latency.median_ms,
        "p25": latency.p25_ms,
        "p75": latency.p75_ms,
        "device": latency.device,
        "threads": latency.threads,
        "batch": latency.batch,
    }


class SpeedRecord(TypedDict):
    """Ratio of median latencies, dense / pruned, with the 95 % interval and the noise; see Speedup.

    `verdict` is "faster", "slower" or "within noise"; `load` the load of the machine while it was
    measured (processes that want to run, over a minute), None where it is unknown.
    """

    ratio: float
    low: float
    high: float
    noise: float
    verdict: str
    load: float | None


def speed_record(speedup: Speedup) -> SpeedRecord:
    """Return the record of a measured speed-up."""
    verdict = "faster" if speedup.is_faster else "slower" if speedup.is_slower else "within noise"
    return {
        "ratio": speedup.ratio,
        "low": speedup.low,
        "high": speedup.high,
        "noise": speedup.noise,
        "verdict": verdict,
        "load": machine_load(),
    }


class Measurements(TypedDict):
    """Measurements of one network on the test set.

    `accuracy` and `accuracy_top5` (more than 10 classes) are fractions; a LightningModule or a task
    of the user has the metrics that it logs instead. `params` and `macs` count unpruned weights and
    the multiply-accumulates of one image.
    """

    accuracy: float
    accuracy_top5: NotRequired[float]
    loss: float
    params: int
    macs: int
    bytes: int
    latency_ms: NotRequired[LatencyRecord]


class BudgetEvent(TypedDict):
    """One judgement of an accuracy budget; `lost` is None if the metric was not a number."""

    sparsity: float
    kept: bool
    lost: float | None
    step: int | None
    epoch: int | None


class BudgetRecord(TypedDict):
    """Events of an accuracy budget, the highest sparsity kept, and why the search ended."""

    kept: float
    rollbacks: int
    reason: str | None
    judged: list[BudgetEvent]


class Result(TypedDict):
    """Content of result.json; `pruned` is None without pruning, as are the optional fields.

    `of` is what was pruned (weights or channels); `sparsity` counts prunable units, and
    `sparsity_total` all weights; `layers` has the sparsity of each layer and `excluded` the reason
    for each layer that was not pruned. `compression`, `theoretical_speedup` (MACs) and
    `measured_speedup` (median latency) are dense / pruned. `metric` is what networks are compared
    by ("accuracy", a fraction, if absent), `metric_mode` whether "max" or "min" is best, and
    `accuracy_drop` how much worse it is after pruning; `split` is what was measured on.
    """

    format: int
    recipe: str
    overrides: list[str]
    config_hash: str
    settings: dict[str, Any]
    seed: int
    versions: dict[str, str]
    device: str
    threads: int
    batch: int
    seconds: float
    verdict: str
    dense: Measurements
    pruned: Measurements | None
    epochs: int | None
    levels: list[LevelRecord]
    history: list[dict[str, Any]]
    budget: BudgetRecord | None
    checkpoint: str
    of: NotRequired[str]
    sparsity: NotRequired[float]
    sparsity_total: NotRequired[float]
    layers: NotRequired[dict[str, float]]
    excluded: NotRequired[dict[str, str]]
    channels: NotRequired[dict[str, Any]]
    accuracy_drop: NotRequired[float]
    compression: NotRequired[float]
    theoretical_speedup: NotRequired[float]
    measured_speedup: NotRequired[float]
    speed: NotRequired[SpeedRecord]
    metric: NotRequired[str]
    metric_mode: NotRequired[str]
    split: NotRequired[str]


def finished_result(folder: Path, config_hash: str) -> Result | None:
    """Return the result in a folder if it has the same settings."""
    path = folder / FILE
    if not path.is_file():
        return None
    result: Result = read_json(path)
    same = result.get("config_hash") == config_hash and result.get("format") == FORMAT
    return result if same else None


def versions() -> dict[str, str]:
    """Return the versions of Python and the main packages."""
    lightning = pl.__name__.partition(".")[0].replace("_", "-")
    packages = ("regrow", "torch", lightning, "torchmetrics", "hydra-core", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def compare(
    dense: Measurements, pruned: Measurements, metric: str = "accuracy", mode: str = "max"
) -> dict[str, float]:
    """Compare the pruned network with the dense one; see `Result`."""
    before, after = (cast("dict[str, Any]", block)[metric] for block in (dense, pruned))
    return {
        "accuracy_drop": before - after if mode == "max" else after - before,
        "compression": dense["params"] / max(1, pruned["params"]),
        "theoretical_speedup": dense["macs"] / max(1, pruned["macs"]),
        "measured_speedup": dense["latency_ms"]["median"] / pruned["latency_ms"]["median"],
    }


def budget(history: Sequence[Mapping[str, Any]]) -> BudgetRecord | None:
    """Collect the events of an accuracy budget from a history; None without one.

    Example:
        >>> record = budget([{"kind": "prune", "after": 0.5, "lost": 0.01, "reason": "done"}])
        >>> record["kept"], record["rollbacks"], record["reason"]
        (0.5, 0, 'done')
    """
    judged: list[BudgetEvent] = [
        {
            "sparsity": entry["before" if entry["kind"] == "rollback" else "after"],
            "kept": entry["kind"] != "rollback",
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
        "kept": max((event["sparsity"] for event in judged if event["kept"]), default=0.0),
        "rollbacks": sum(not event["kept"] for event in judged),
        "reason": [entry.get("reason") for entry in history if "lost" in entry][-1],
        "judged": judged,
    }


def verdict(result: Result) -> str:
    """Summarize a result in one line: accuracy, size, speed, and the accuracy budget.

    Example:
        >>> verdict({"pruned": None, "dense": {"accuracy": 0.9}})
        'dense: accuracy 90.00 %'
    """
    dense, pruned = result["dense"], result["pruned"]
    metric, of_val = result.get("metric", "accuracy"), result.get("split") == "val"
    where = " on the validation set" if of_val else ""
    if pruned is None:
        value: float = cast("dict[str, Any]", dense)[metric]
        shown = f"{value:.2%}".replace("%", " %") if metric == "accuracy" else f"{value:.4g}"
        return f"dense: {metric} {shown}{where}"
    drop = result["accuracy_drop"]
    change = f"{abs(100 * drop):.2f} points {'lost' if drop > 0 else 'gained'}{where}"
    if metric != "accuracy":
        change = f"{metric} {abs(drop):.4g} {'worse' if drop > 0 else 'better'}{where}"
    of = result.get("of", "weights")
    gone = "of the prunable are zero" if of == "weights" else f"of the {of} are gone"
    size = f"{result['compression']:.1f}x fewer parameters ({result['sparsity']:.1%} {gone}), "
    size += f"{result['theoretical_speedup']:.1f}x fewer MACs"
    line = f"{change}, {size}; {_describe_speed(result['speed'], of)}"
    judged = result.get("budget")
    if judged is None:
        return line
    taken = f"{judged['rollbacks']} of {len(judged['judged'])} events rolled back"
    return f"{line}; budget: {judged['reason']} ({taken})"


def _describe_speed(speed: SpeedRecord, of: str) -> str:
    """Describe a measured speed-up, and whether the machine was busy."""
    shown = f"{speed['ratio']:.2f}x as fast ({speed['low']:.2f} to {speed['high']:.2f})"
    if speed["verdict"] == "within noise":
        shown = f"as fast within noise ({speed['low']:.2f}x to {speed['high']:.2f}x)"
        if of == "weights":
            shown += ": dense kernels multiply zeros too; channels make a network faster"
    return shown + describe_load(speed["load"])


def device_name() -> str:
    """Return the name of the device of latency measurements."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()
