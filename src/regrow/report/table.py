# SPDX-License-Identifier: MIT
"""The table of results: one row for each operating point of each run."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from regrow.report.load import Run
from regrow.report.run_identity import data_name, model_name


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Name in the CSV file.
        heading: Heading on the page; empty: only in the file.
        unit: Unit on the page; "%" shows a fraction as per cent.
        digits: Decimals on the page; None: as in the file.
        text: Whether values are text.
    """

    name: str
    heading: str = ""
    unit: str = ""
    digits: int | None = None
    text: bool = False


COLUMNS = (
    Column("recipe", text=True),
    Column("method", "Method", text=True),
    Column("data", "Data", text=True),
    Column("model", "Model", text=True),
    Column("overrides", text=True),
    Column("seed", "Seed", digits=0),
    Column("final", text=True),
    Column("of", text=True),
    Column("sparsity", "Sparsity", "%", 2),
    Column("sparsity_total", "Sparsity, all weights", "%", 2),
    Column("compression", "Compression", "x", 2),
    Column("theoretical_speedup", "Theoretical speed-up", "x", 2),
    Column("measured_speedup", "Measured speed-up", "x", 2),
    Column("accuracy", "Top-1", "%", 2),
    Column("accuracy_top5", "Top-5", "%", 2),
    Column("loss"),
    Column("val_accuracy", "Validation top-1", "%", 2),
    Column("dense_accuracy", "Dense top-1", "%", 2),
    Column("dense_accuracy_top5", "Dense top-5", "%", 2),
    Column("accuracy_drop", "Drop", "points", 2),
    Column("relative_drop", "Relative drop", "%", 2),
    Column("params", "Parameters", "", 0),
    Column("dense_params", "Dense parameters", "", 0),
    Column("macs", "MACs", "per image", 0),
    Column("dense_macs", "Dense MACs", "per image", 0),
    Column("bytes", "Size", "bytes", 0),
    Column("dense_bytes"),
    Column("latency_ms", "Latency, median", "ms", 3),
    Column("latency_p25_ms", "p25", "ms", 3),
    Column("latency_p75_ms", "p75", "ms", 3),
    Column("dense_latency_ms", "Dense latency", "ms", 3),
    Column("device", text=True),
    Column("latency_device", "Timed on", text=True),
    Column("threads", "Threads", "", 0),
    Column("batch", "Batch", "timed", 0),
    Column("epochs", "Epochs", "total", 0),
    Column("level_epoch"),
    Column("start", "Start", text=True),
    Column("lr", "Learning rate"),
    Column("train_batch", "Batch", "trained", 0),
    Column("excluded", text=True),
    Column("seconds", "Time", "s", 0),
    Column("regrow", text=True),
    Column("torch", text=True),
    Column("config_hash", "Config hash", text=True),
    Column("folder", "Folder", text=True),
)


NAMES = tuple(column.name for column in COLUMNS)
Values = dict[str, Any]


class Row(NamedTuple):
    """One operating point of one run.

    Attributes:
        run: The run.
        values: Values by column name; None if not measured.
        final: Whether it is the final network of the run, not an intermediate level.
    """

    run: Run
    values: Values
    final: bool


def run_rows(run: Run, folder: str, method: str) -> list[Row]:
    """Make the rows of a run: its levels in the order of training, then the final network.

    Of a level only the accuracy was measured. If weights are pruned, its parameters follow from
    its sparsity; MACs and latency stay empty, as they depend on the positions of the zeros.

    Args:
        run: A finished job.
        folder: Name of its folder.
        method: Name of its method.
    """
    shared = _shared(run) | {"folder": folder, "method": method}
    if run.pruned is None:
        dense = _network(run.dense) | _ratios(run, run.dense) | {"sparsity": 0, "sparsity_total": 0}
        return [Row(run, _complete(shared | dense | {"final": "yes"}), True)]
    levels = list(run.result["levels"])
    last: Mapping[str, Any] = {}
    if levels and levels[-1]["sparsity"] == run.result["sparsity"]:
        last = levels.pop()
    final = _network(run.pruned) | _ratios(run, run.pruned) | _validated(last)
    final |= {key: run.result[key] for key in ("sparsity", "sparsity_total")}
    rows = [Row(run, _complete(shared | _level(run, lv) | {"final": "no"}), False) for lv in levels]
    return [*rows, Row(run, _complete(shared | final | {"final": "yes"}), True)]


def csv_text(rows: Sequence[Row]) -> str:
    """Format rows as CSV with a heading; values that were not measured are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, NAMES, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.values for row in rows)
    return text.getvalue()


def _shared(run: Run) -> Values:
    """Return the values that all operating points of a run share."""
    result, versions = run.result, run.result["versions"]
    latency = (run.pruned or {}).get("latency_ms") or run.dense.get("latency_ms") or {}
    return {
        "recipe": result["recipe"],
        "data": data_name(run),
        "model": model_name(run),
        "overrides": " ".join(run.overrides),
        "seed": result["seed"],
        "of": result.get("of"),
        "dense_accuracy": run.dense["accuracy"],
        "dense_accuracy_top5": run.dense.get("accuracy_top5"),
        "dense_params": run.dense["params"],
        "dense_macs": run.dense["macs"],
        "dense_bytes": run.dense["bytes"],
        "dense_latency_ms": (run.dense.get("latency_ms") or {}).get("median"),
        "device": result.get("device"),
        "latency_device": latency.get("device"),
        "threads": latency.get("threads", result.get("threads")),
        "batch": latency.get("batch", result.get("batch")),
        "epochs": result.get("epochs"),
        "start": describe_start(run),
        "lr": run.rate,
        "train_batch": run.batch_size,
        "excluded": format_excluded(result.get("excluded") or {}),
        "seconds": result.get("seconds"),
        "regrow": versions.get("regrow"),
        "torch": versions.get("torch"),
        "config_hash": result["config_hash"],
    }


def _network(block: Mapping[str, Any]) -> Values:
    """Return the measurements of one network."""
    latency = block.get("latency_ms") or {}
    copied = ("accuracy", "accuracy_top5", "loss", "params", "macs", "bytes")
    return {name: block.get(name) for name in copied} | {
        "latency_ms": latency.get("median"),
        "latency_p25_ms": latency.get("p25"),
        "latency_p75_ms": latency.get("p75"),
    }


def _ratios(run: Run, block: Mapping[str, Any]) -> Values:
    """Compare a network with the dense baseline of the same run."""
    result, drop = run.result, run.dense["accuracy"] - block["accuracy"]
    return {
        "compression": result.get("compression", 1.0),
        "theoretical_speedup": result.get("theoretical_speedup", 1.0),
        "measured_speedup": result.get("measured_speedup"),
        "accuracy_drop": drop,
        "relative_drop": drop / run.dense["accuracy"] if run.dense["accuracy"] else None,
    }


def _level(run: Run, level: Mapping[str, Any]) -> Values:
    block = {"accuracy": level["test_accuracy"], "loss": level.get("test_loss")}
    ratios = _ratios(run, block)
    values = block | {key: ratios[key] for key in ("accuracy_drop", "relative_drop")}
    values |= {"sparsity": level["sparsity"]} | _validated(level)
    total, sparsity = run.result["sparsity_total"], run.result["sparsity"]
    if run.result["of"] == "weights" and sparsity:
        values["sparsity_total"] = share = level["sparsity"] * total / sparsity
        values["params"] = params = round(run.dense["params"] * (1 - share))
        values["compression"] = run.dense["params"] / max(1, params)
    return values


def _validated(level: Mapping[str, Any]) -> Values:
    return {"val_accuracy": level.get("val_accuracy"), "level_epoch": level.get("epoch")}


def _complete(values: Values) -> Values:
    """Return values of all columns, in order."""
    return {name: values.get(name) for name in NAMES}


def describe_start(run: Run) -> str:
    """Describe the initial weights of a run."""
    start = run.settings.get("start")
    if start is None:
        return "trained dense first"
    text = str(start)
    return f"checkpoint {text[7:19]}" if text.startswith("sha256:") else text


def format_excluded(reasons: Mapping[str, str]) -> str:
    """Format the parameters that were not pruned, by reason; more than three are counted.

    Example:
        >>> format_excluded({"fc.weight": "excluded by 'fc'"})
        "fc.weight (excluded by 'fc')"
    """
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        by_reason[str(reason)].append(name)
    return "; ".join(
        f"{', '.join(names) if len(names) <= 3 else f'{len(names)} parameters'} ({reason})"
        for reason, names in by_reason.items()
    )
