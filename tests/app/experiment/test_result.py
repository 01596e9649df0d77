# SPDX-License-Identifier: MIT
import pytest

from regrow.app.experiment.result import (
    budget,
    compare,
    levels_table,
    result_table,
    speed_record,
    verdict,
)
from regrow.profiling.latency import Speedup


def block(accuracy, params, macs, latency):
    times = {"median": latency, "p25": 0.9 * latency, "p75": 1.1 * latency}
    return {"accuracy": accuracy, "params": params, "macs": macs, "latency_ms": times}


def test_comparison_by_hand():
    found = compare(block(0.9, 1000, 500, 4.0), block(0.88, 100, 125, 2.0), "accuracy", "max")
    assert found == {
        "accuracy_drop": pytest.approx(0.02),
        "compression": 10,
        "theoretical_speedup": 4,
        "measured_speedup": 2,
    }


def speed(ratio, spread=0.05, noise=1.02, load=0.5):
    found = Speedup(ratio, ratio - spread, ratio + spread, noise)
    return {"speed": speed_record(found) | {"load": load}}


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (speed(2.0), "2.00x as fast (1.95 to 2.05)"),
        (speed(1.05), "as fast within noise (1.00x to 1.10x): dense kernels multiply zeros too"),
        (speed(1.2, noise=1.3), "as fast within noise"),
        (speed(0.5), "0.50x as fast"),
        (speed(2.0, load=1000.0), "measured beside other processes (load 1000.0 on"),
    ],
)
def test_verdict_says_faster_only_above_the_noise(measured, said):
    dense, pruned = block(0.9, 1000, 500, 4.0), block(0.92, 100, 125, 2.0)
    result = {"dense": dense, "pruned": pruned, "sparsity": 0.9} | measured
    result |= compare(dense, pruned, "accuracy", "max")
    assert said in verdict(result)
    assert "2.00 points gained" in verdict(result)
    assert ("beside other processes" in verdict(result)) == (measured["speed"]["load"] > 100)


def test_budget_is_read_from_the_history():
    history = [
        {"kind": "prune", "before": 0, "after": 0.5, "step": 8, "epoch": 1, "lost": -0.01},
        {"kind": "regrow", "before": 0.5, "after": 0.4, "step": 9, "epoch": 1},
        {"kind": "rollback", "before": 0.8, "after": 0.4, "step": 24, "epoch": 3, "lost": None},
        {"kind": "prune", "before": 0.4, "after": 0.6, "step": 24, "epoch": 3, "lost": 0.0}
        | {"reason": "why"},
    ]
    found = budget(history)
    assert [(e["sparsity"], e["kept"], e["lost"]) for e in found.pop("judged")] == [
        (0.5, True, -0.01),
        (0.8, False, None),
        (0.6, True, 0.0),
    ]
    assert found == {"kept": 0.6, "rollbacks": 1, "reason": "why"}
    assert budget(history[1:2]) is None
    dense, pruned = block(0.9, 1000, 500, 4.0), block(0.92, 100, 125, 2.0)
    result = {"dense": dense, "pruned": pruned, "sparsity": 0.6, "budget": budget(history)}
    result |= compare(dense, pruned, "accuracy", "max") | speed(2.0)
    assert verdict(result).endswith(
        "2.00x as fast (1.95 to 2.05); budget: why (1 of 3 events rolled back)"
    )


def run_result(dense, pruned, **fields):
    """A result with one level of sparsity 0.5."""
    blocks = [
        block(value, *rest) for value, *rest in ((dense, 1000, 500, 4.0), (pruned, 100, 125, 2.0))
    ]
    level = {"sparsity": 0.5, "epoch": 1, "monitored": pruned, "val_accuracy": pruned}
    result = {"recipe": "own", "seed": 0, "dense": blocks[0], "pruned": blocks[1], "sparsity": 0.5}
    result |= {"sparsity_total": 0.5, "levels": [level | {"test_accuracy": pruned}]}
    result |= compare(*blocks, "accuracy", "max") | speed(2.0) | fields
    return result | {"verdict": verdict(result)}


def cells(table):
    """The texts of a table, row by row, headings first."""
    columns = [[column.header, *column.cells] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize(
    ("fields", "label", "heads", "measured"),
    [
        ({}, "test", ["validation", "test"], ["88.00 %", "88.00 %"]),
        ({"split": "test"}, "test", ["validation", "test"], ["88.00 %", "88.00 %"]),
        ({"split": "val"}, "validation", ["validation"], ["88.00 %"]),
    ],
)
def test_tables_name_the_split_that_was_measured(fields, label, heads, measured):
    result = run_result(0.9, 0.88, **fields)
    labels = [row[0] for row in cells(result_table(result))]
    assert [one for one in labels if "accuracy" in one] == [f"{label} accuracy"]
    head, row = cells(levels_table(result))
    assert (head[2:], row[2:]) == (heads, measured)


def test_an_accuracy_in_percent_is_shown_as_the_number_that_was_logged():
    result = run_result(86.67, 84.5)
    rows = {row[0]: row[1:] for row in cells(result_table(result))}
    assert rows["test accuracy"] == ["86.67", "84.5", "-2.17"]
    assert cells(levels_table(result))[1][2:] == ["84.5", "84.5"]
    assert result["verdict"].startswith("accuracy 2.17 worse, ")
    assert verdict(result | {"pruned": None}) == "dense: accuracy 86.67"
