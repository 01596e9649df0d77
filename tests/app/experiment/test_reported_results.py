# SPDX-License-Identifier: MIT
"""The report shows what the command measured."""

import csv

import numpy as np

from regrow.app.experiment.run import train
from regrow.report import write_report


def test_reported_numbers_of_a_pruned_and_a_dense_run(job, tmp_path):
    result = train(job("recipe=digits/gmp", "pruning.every=0.1", folder="gmp"))
    train(job("recipe=digits/dense", folder="dense"))
    done = write_report(tmp_path)
    assert done.summary == "2 finished jobs · 2 methods"
    with done.table.open(newline="") as file:
        dense, pruned = (row for row in csv.DictReader(file) if row["final"] == "yes")
    for name in ("accuracy", "params", "macs", "bytes"):
        assert float(pruned[name]) == result["pruned"][name]
        assert float(pruned[f"dense_{name}"]) == result["dense"][name]
    for name in ("sparsity", "sparsity_total", "compression", "theoretical_speedup"):
        assert float(pruned[name]) == result[name]
    assert float(pruned["latency_ms"]) == result["pruned"]["latency_ms"]["median"]
    assert float(pruned["accuracy_drop"]) == result["accuracy_drop"]
    assert pruned["config_hash"] == result["config_hash"]
    assert pruned["model"].startswith("DigitsCNN(")
    assert (pruned["epochs"], pruned["lr"], pruned["train_batch"]) == ("2", "0.05", "64")
    assert "bias of Linear" in pruned["excluded"]
    # the dense run is the control of the pruned one
    assert dense["accuracy"] == dense["dense_accuracy"] == pruned["dense_accuracy"]
    assert done.page.stat().st_size > 1_000_000  # the plotting library is in it


def test_equal_kernels_timed_in_two_jobs_are_reported_as_within_noise(job, tmp_path, monkeypatch):
    """Passes of 1 to 2 ms: medians differ, though masked networks run the kernels of the dense."""
    jitter = np.random.default_rng(0)

    def times(models, example_input, repeats, warmup):
        return jitter.uniform(1, 2, (len(models), repeats)).tolist()

    monkeypatch.setattr("regrow.profiling.latency._time_in_turns", times)
    for seed in range(2):
        words = ("recipe=digits/gmp", "pruning.every=0.1", f"seed={seed}", "latency.repeats=50")
        train(job(*words, folder=f"gmp{seed}"))
    with write_report(tmp_path).table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["final"] == "yes"]
    assert len(rows) == 2
    for row in rows:
        low, ratio, high = (
            row[name] for name in ("speedup_low", "measured_speedup", "speedup_high")
        )
        assert float(low) < float(ratio) < float(high)
        assert float(ratio) != 1
        assert row["speed"] == "within noise"
