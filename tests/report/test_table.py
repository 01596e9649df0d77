# SPDX-License-Identifier: MIT
"""Rows: what a line of results.csv says, by hand."""

import csv
import io

import pytest
from fake_results import dense_result, result, runs, task

from regrow.report.table import NAMES, format_excluded, make_csv, run_rows

LEVELS = [
    {"sparsity": 0.0, "epoch": 1, "val_accuracy": 0.96, "test_accuracy": 0.955, "test_loss": 0.2},
    {"sparsity": 0.5, "epoch": 4, "val_accuracy": 0.95, "test_accuracy": 0.94, "test_loss": 0.2},
    {"sparsity": 0.9, "epoch": 9, "val_accuracy": 0.93, "test_accuracy": 0.95, "test_loss": 0.1},
]


def rows(content):
    return run_rows(runs(content)[0], "gmp")


def test_row_of_a_run_has_every_column():
    (row,) = rows(result(accuracy=0.95, control=0.97))
    assert row["final"] == "yes"
    for name, value in {
        "recipe": "digits/gmp",
        "data": "Digits",
        "model": "Net(width=16)",
        "overrides": "pruning.sparsity=0.9 seed=0",
        "sparsity": 0.9,
        "sparsity_total": pytest.approx(0.72),
        "params": 280,
        "dense_params": 1000,
        "macs": 1400,
        "dense_macs": 5000,
        "compression": pytest.approx(1000 / 280),
        "theoretical_speedup": pytest.approx(1000 / 280),
        "measured_speedup": 1.25,
        "speedup_low": 1.2,
        "speedup_high": 1.3,
        "speed": "faster",
        "accuracy": 0.95,
        "dense_accuracy": 0.97,
        "accuracy_drop": pytest.approx(0.02),
        "relative_drop": pytest.approx(0.02 / 0.97),
        "latency_ms": 1.6,
        "latency_p25_ms": 1.9,
        "latency_p75_ms": 2.2,
        "latency_device": "cpu",
        "threads": 1,
        "batch": 1,
        "epochs": 20,
        "start": "scratch",
        "lr": 0.05,
        "train_batch": 64,
        "excluded": "fc.bias (bias of Linear: only when included by name)",
        "torch": "2.13.0",
        "final": "yes",
        "folder": "job0",
        "split": "test",
    }.items():
        assert row[name] == value, name


def test_top5_is_shown_if_measured():
    top5 = {"dense": {"accuracy_top5": 0.999}, "pruned": {"accuracy_top5": 0.99}}
    (row,) = rows(result(**top5))
    assert (row["accuracy_top5"], row["dense_accuracy_top5"]) == (0.99, 0.999)
    assert rows(result())[0]["accuracy_top5"] is None


def test_levels_come_first_and_the_final_network_last():
    dense, half, final = rows(result(levels=LEVELS))
    assert [row["final"] for row in (dense, half, final)] == ["no", "no", "yes"]
    assert half["accuracy"] == 0.94
    assert half["params"] == 600  # 400 of the 800 that can be pruned are gone
    assert half["compression"] == pytest.approx(1000 / 600)
    assert half["sparsity_total"] == pytest.approx(0.4)
    assert half["macs"] is None  # nobody measured where those zeros were
    assert half["theoretical_speedup"] is half["speed"] is half["speedup_low"] is None
    assert dense["params"] == 1000
    assert final["val_accuracy"] == 0.93


def test_split_of_the_measurements_is_in_every_row():
    found = rows(result(levels=LEVELS, split="val")) + rows(dense_result() | {"split": "val"})
    assert [row["split"] for row in found] == ["val"] * 4


def test_channel_levels_have_no_parameter_count():
    level = rows(result(levels=LEVELS[:2], of="macs"))[1]
    assert level["params"] is None
    assert level["compression"] is None


def test_dense_run_has_one_row():
    (row,) = rows(dense_result())
    assert (row["sparsity"], row["compression"]) == (0, 1)
    assert (row["accuracy"], row["accuracy_drop"]) == (0.97, 0)
    assert row["latency_ms"] is None


def test_many_excluded_layers_are_counted():
    reasons = {f"bn{i}.weight": "weight of BatchNorm2d" for i in range(53)}
    found = format_excluded(reasons | {"fc.weight": "excluded by 'fc'"})
    assert found == "53 parameters (weight of BatchNorm2d); fc.weight (excluded by 'fc')"


def test_csv_round_trips():
    """Quotes, commas and line ends within a value too."""
    odd = 'x="a,b"\nc'
    content = result(levels=LEVELS) | {"overrides": ["recipe=digits/gmp", odd]}
    text = make_csv([task(content, result(seed=1)).rows])
    back = list(csv.DictReader(io.StringIO(text)))
    assert tuple(back[0]) == NAMES
    assert [row["final"] for row in back] == ["no", "no", "yes", "yes"]
    assert back[0]["overrides"] == odd
    assert float(back[2]["compression"]) == 1000 / 280
    assert back[0]["macs"] == ""
