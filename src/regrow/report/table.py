# SPDX-License-Identifier: MIT
"""The table of results: one row for each operating point of each run."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from regrow.report.load import Run, look_up
from regrow.report.run_identity import data_name, model_name

if TYPE_CHECKING:
    from pandas import DataFrame


class Column(NamedTuple):
    """One column of the CSV file and of the table on the page."""

    name: str  # in the file
    heading: str = ""  # on the page; empty: only in the file
    unit: str = ""  # on the page; "%" shows a fraction as per cent
    digits: int | None = None  # decimals on the page; None: as in the file
    text: bool = False  # whether values are text
    source: str = ""  # dotted path of the value in a result; empty: the name


COLUMNS = (
    Column("recipe", text=True),
    Column("method", "Method", text=True),
    Column("data", "Data", text=True),
    Column("model", "Model", text=True),
    Column("overrides", text=True),
    Column("seed", "Seed", digits=0),
    Column("final", text=True),
    Column("split", "Measured on", text=True),
    Column("of", text=True),
    Column("sparsity", "Sparsity", "%", 2),
    Column("sparsity_total", "Sparsity, all weights", "%", 2),
    Column("compression", "Compression", "x", 2),
    Column("theoretical_speedup", "Theoretical speed-up", "x", 2),
    Column("measured_speedup", "Measured speed-up", "x", 2),
    Column("speedup_low", source="speed.low"),
    Column("speedup_high", source="speed.high"),
    Column("speed", "Speed against dense", text=True, source="speed.verdict"),
    Column("load", source="speed.load"),
    Column("accuracy", "Top-1", "%", 2, source="network.accuracy"),
    Column("accuracy_top5", "Top-5", "%", 2, source="network.accuracy_top5"),
    Column("loss", source="network.loss"),
    Column("val_accuracy", "Validation top-1", "%", 2, source="level.val_accuracy"),
    Column("dense_accuracy", "Dense top-1", "%", 2, source="dense.accuracy"),
    Column("dense_accuracy_top5", "Dense top-5", "%", 2, source="dense.accuracy_top5"),
    Column("accuracy_drop", "Drop", "points", 2),
    Column("relative_drop", "Relative drop", "%", 2),
    Column("params", "Parameters", "", 0, source="network.params"),
    Column("dense_params", "Dense parameters", "", 0, source="dense.params"),
    Column("macs", "MACs", "per image", 0, source="network.macs"),
    Column("dense_macs", "Dense MACs", "per image", 0, source="dense.macs"),
    Column("bytes", "Size", "bytes", 0, source="network.bytes"),
    Column("dense_bytes", source="dense.bytes"),
    Column("latency_ms", "Latency, median", "ms", 3, source="network.latency_ms.median"),
    Column("latency_p25_ms", "p25", "ms", 3, source="network.latency_ms.p25"),
    Column("latency_p75_ms", "p75", "ms", 3, source="network.latency_ms.p75"),
    Column("dense_latency_ms", "Dense latency", "ms", 3, source="dense.latency_ms.median"),
    Column("device", text=True),
    Column("latency_device", "Timed on", text=True, source="latency.device"),
    Column("threads", "Threads", "", 0, source="latency.threads"),
    Column("batch", "Batch", "timed", 0, source="latency.batch"),
    Column("dense_baseline", "Dense baseline", text=True),
    Column("epochs", "Epochs", "total", 0),
    Column("level_epoch", source="level.epoch"),
    Column("start", "Start", text=True),
    Column("lr", "Learning rate"),
    Column("train_batch", "Batch", "trained", 0),
    Column("excluded", text=True),
    Column("seconds", "Time", "s", 0),
    Column("regrow", text=True, source="versions.regrow"),
    Column("torch", text=True, source="versions.torch"),
    Column("config_hash", "Config hash", text=True),
    Column("folder", "Folder", text=True),
)
NAMES = tuple(column.name for column in COLUMNS)
Values = dict[str, Any]  # by column name; None if not measured


def run_rows(run: Run, method: str) -> list[Values]:
    """Make the rows of a run: its levels in the order of training, then the final network.

    Of a level only the accuracy was measured. If weights are pruned, its parameters follow from
    its sparsity; MACs and latency stay empty, as they depend on the positions of the zeros.
    """
    result, latency = run.result, (run.pruned or {}).get("latency_ms")
    shared = {
        **{"theoretical_speedup": 1.0, "compression": 1.0, **result},
        **{"folder": run.name, "method": method, "data": data_name(run), "model": model_name(run)},
        **{"overrides": " ".join(run.overrides), "start": describe_start(run)},
        "split": run.split,
        "lr": run.lr,
        "train_batch": run.fit_setting("data.batch_size"),
        "excluded": format_excluded(result.get("excluded") or {}),
        "latency": {name: result.get(name) for name in ("threads", "batch")}
        | (latency or run.dense.get("latency_ms") or {}),
    }
    if run.pruned is None:
        final = {"network": run.dense, "sparsity": 0, "sparsity_total": 0}
        return [_row(run, shared | final | {"final": "yes"})]
    levels, last = list(result["levels"]), {}
    if levels and levels[-1]["sparsity"] == result["sparsity"]:
        last = levels.pop()
    rows = [_row(run, shared | _level(run, level) | {"final": "no"}) for level in levels]
    return [*rows, _row(run, shared | {"network": run.pruned, "level": last, "final": "yes"})]


def make_csv(tables: Iterable[DataFrame]) -> str:
    """Format rows as CSV with a heading; values that were not measured are empty."""
    options = {"columns": NAMES, "index": False, "header": False, "lineterminator": "\n"}
    return ",".join(NAMES) + "\n" + "".join(rows.to_csv(**options) for rows in tables)


def _row(run: Run, facts: Mapping[str, Any]) -> Values:
    dense = run.dense["accuracy"]
    drop = dense - facts["network"]["accuracy"]
    facts = {**facts, "accuracy_drop": drop, "relative_drop": drop / dense if dense else None}
    return {column.name: look_up(facts, column.source or column.name) for column in COLUMNS}


def _level(run: Run, level: Mapping[str, Any]) -> Values:
    """Return the facts of a level in place of those of the final network."""
    network = {"accuracy": level["test_accuracy"], "loss": level.get("test_loss")}
    unknown = ("compression", "theoretical_speedup", "measured_speedup", "speed")
    facts: Values = dict.fromkeys(unknown)
    facts |= {"network": network, "level": level, "sparsity": level["sparsity"]}
    facts["sparsity_total"] = None
    total, sparsity = run.result["sparsity_total"], run.result["sparsity"]
    if run.result["of"] == "weights" and sparsity:
        facts["sparsity_total"] = share = level["sparsity"] * total / sparsity
        network["params"] = params = round(run.dense["params"] * (1 - share))
        facts["compression"] = run.dense["params"] / max(1, params)
    return facts


def describe_start(run: Run) -> str:
    """Describe the initial weights of a run."""
    start = run.setting("start")
    if start is None:
        return "trained dense first"
    text = str(start)
    return f"checkpoint {text[7:19]}" if text.startswith("sha256:") else text


def format_excluded(reasons: Mapping[str, str]) -> str:
    """Format the parameters that were not pruned, by reason; more than three are counted."""
    return "; ".join(
        f"{', '.join(names) if len(names) <= 3 else f'{len(names)} parameters'} ({reason})"
        for reason, names in names_by_value(reasons.items()).items()
    )


def names_by_value(pairs: Iterable[tuple[str, Hashable]]) -> dict[Hashable, list[str]]:
    """Map each value to the different names that have it, both in their order."""
    names: dict[Hashable, dict[str, None]] = {}
    for name, value in pairs:
        names.setdefault(value, {})[name] = None
    return {value: list(group) for value, group in names.items()}
