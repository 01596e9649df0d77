# SPDX-License-Identifier: MIT
"""The columns of results.csv, in order: name, heading and unit."""

from __future__ import annotations

from typing import NamedTuple


class Column(NamedTuple):
    """One column.

    Attributes:
        name: In the CSV file.
        heading: On the page; empty: only in the file.
        unit: On the page. "%" shows a fraction as per cent.
        digits: After the point, on the page; None: as it is.
        text: Whether it holds words.
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
    Column("macs", "MACs", "an image", 0),
    Column("dense_macs", "Dense MACs", "an image", 0),
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
