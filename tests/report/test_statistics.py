# SPDX-License-Identifier: MIT
"""Points: means over seeds, dense controls, fronts and levels."""

import numpy as np
import pytest
from fake_results import dense_result, result, task

from regrow.report.statistics import MAX_LINES, tabulate_means


def by_name(*contents):
    plot = task(*contents).plot
    return {series.name: series for series in plot.series}, plot.dense


def test_seeds_make_one_point_with_numpys_mean_and_spread():
    found = {0: 0.95, 1: 0.93, 2: 0.96}
    series, _ = by_name(*(result(seed=s, accuracy=a) for s, a in found.items()))
    (point,) = series["gmp"].points
    values = list(found.values())
    assert point.seeds == [0, 1, 2]
    assert point.y["accuracy"].mean == pytest.approx(np.mean(values))
    assert point.y["accuracy"].deviation == pytest.approx(np.std(values, ddof=1))
    assert point.y["accuracy_drop"].mean == pytest.approx(np.mean(values) - 0.97)
    assert point.x["compression"].mean == pytest.approx(1000 / 280)
    assert "accuracy_top5" not in point.y


def test_a_sparsity_that_differs_by_seed_is_one_point_with_a_spread():
    """An accuracy budget ends elsewhere with each seed."""
    found = [result(seed=0) | {"sparsity": 0.7}, result(seed=1) | {"sparsity": 0.5}]
    series, _ = by_name(*found)
    (point,) = series["gmp"].points
    assert point.x["sparsity"].mean == pytest.approx(0.6)
    assert point.x["sparsity"].deviation == pytest.approx(np.std([0.7, 0.5], ddof=1))


def test_points_of_a_method_are_in_the_order_of_sparsity():
    series, _ = by_name(*(result(sparsity=s) for s in (0.9, 0.5, 0.8)))
    assert [point.x["sparsity"].mean for point in series["gmp"].points] == [0.5, 0.8, 0.9]


def test_shared_dense_baseline_counts_once():
    """Two methods and a dense run, two seeds: two controls."""
    contents = [result(m, seed=s, control=0.97 + s / 100) for m in ("gmp", "imp") for s in (0, 1)]
    series, (control,) = by_name(*contents, dense_result(0, 0.97), dense_result(1, 0.98))
    assert set(series) == {"gmp", "imp"}
    assert control.y["accuracy"].n == 2
    assert control.y["accuracy"].mean == pytest.approx(0.975)
    assert control.y["accuracy"].deviation == pytest.approx(np.std([0.97, 0.98], ddof=1))
    assert control.x["latency"].mean == 2.0
    assert "sparsity" not in control.x


def test_dense_baselines_of_other_training_are_separate_and_named_by_methods():
    _, controls = by_name(result(), result("imp", setting={"optimizer": {"lr": 0.1}}))
    assert [control.name for control in controls] == [
        *("dense, 20 epochs, seed 0 (of gmp)", "dense, 20 epochs, seed 0 (of imp)")
    ]


def test_dense_baselines_are_named_by_epochs_and_seeds():
    longer = {"epochs": 30, "setting": {"dense_epochs": 15}}
    contents = [*(result(seed=s) for s in (0, 1, 4)), result("imp", seed=2, **longer)]
    one = task(*contents)
    names = ["dense, 20 epochs, seeds 0, 1, 4", "dense, 30 epochs, seed 2"]
    assert [control.name for control in one.plot.dense] == names
    assert one.rows["dense_baseline"].tolist() == [names[0]] * 3 + [names[1]]
    starts = {
        "sha256:0": "trained before",
        "scratch": "epochs not counted",
        None: "epochs not counted",
    }
    for start, budget in starts.items():
        (free,) = task(result(setting={"start": start}) | {"epochs": None}).plot.dense
        assert free.name == f"dense, {budget}, seed 0"


def test_pareto_front_uses_means_and_includes_the_dense_network():
    series, (control,) = by_name(
        result("a", 0.5, accuracy=0.96),
        result("a", 0.9, accuracy=0.94),
        result("b", 0.5, accuracy=0.95),  # as small as a, less accurate
        result("b", 0.8, accuracy=0.93, pruned={"latency_ms": {"median": 9.0}}),
    )
    on = {
        (name, point.x["sparsity"].mean)
        for name, one in series.items()
        for point in one.points
        if ("macs", "accuracy") in point.fronts
    }
    assert on == {("a", 0.5), ("a", 0.9)}
    assert ("macs", "accuracy") in control.fronts  # dearest, and the most accurate
    assert ("sparsity", "accuracy") not in control.fronts


def test_sparsities_of_weights_and_of_macs_are_on_no_common_front():
    fronts = [
        {front for one in by_name(*rows)[0].values() for p in one.points for front in p.fronts}
        for rows in (
            (result("a", 0.5), result("b", 0.5, of="macs")),
            (result("a", 0.5, of="macs"), result("b", 0.5, of="macs")),
        )
    ]
    assert ("sparsity", "accuracy") not in fronts[0]
    assert ("macs", "accuracy") in fronts[0]
    assert ("sparsity", "accuracy") in fronts[1]


def test_latency_front_has_no_networks_of_dense_kernels_with_zeros():
    cut = {"of": "macs", "channels": {"removed": {}, "error": 0.0}}
    series, (control,) = by_name(
        result("a", 0.5, accuracy=0.97, pruned={"latency_ms": {"median": 0.5}}),
        result("b", 0.5, accuracy=0.95, **cut, pruned={"latency_ms": {"median": 1.0}}),
        result("b", 0.8, accuracy=0.93, **cut, pruned={"latency_ms": {"median": 9.0}}),
    )
    front = ("latency", "accuracy")
    assert [[front in p.fronts for p in series[name].points] for name in "ab"] == [
        [False],
        [True, False],  # the dense network is faster than the second, and better
    ]
    assert front in control.fronts


def test_levels_are_averaged_within_their_point():
    levels = [{"sparsity": s, "test_accuracy": 0.9 + s / 100} for s in (0.5, 0.2, 0.9)]
    series, _ = by_name(*(result(seed=s, levels=levels) for s in (0, 1)))
    (point,) = series["gmp"].points
    assert [level.x["sparsity"].mean for level in point.levels] == [0.2, 0.5]
    assert point.levels[0].y["accuracy"].n == 2
    assert set(point.levels[0].x) == {"sparsity", "compression"}


def test_many_methods_are_grouped_by_recipe_without_lines():
    rates = [result(setting={"optimizer": {"lr": i + 1}}) for i in range(MAX_LINES + 1)]
    series, _ = by_name(*rates)
    (one,) = series.values()
    assert (one.name, one.line, len(one.points)) == ("digits/gmp", False, MAX_LINES + 1)


def test_means_to_copy_have_one_row_for_each_point_and_dense_baseline():
    two = [result("b_1", 0.5, seed=s, accuracy=0.90 + s / 50, control=0.97) for s in (0, 1)]
    cut = result("cut", 0.3, of="macs", pruned={"macs": 3500, "latency_ms": None}, accuracy=0.96)
    table = tabulate_means(task(*two, cut).plot)
    assert table.to_dict("list") == {
        "Method": ["b_1", "cut", "dense, 20 epochs, seeds 0, 1"],
        "Of": ["weights", "macs", ""],
        "Sparsity, %": ["50.00", "30.00", ""],
        "Top-1, %": ["91.00 ± 1.41", "96.00", "97.00 ± 0.00"],
        "Against dense, points": ["-6.00 ± 1.41", "-1.00", "+0.00"],
        "Compression, x": ["1.67", "1.32", "1.00"],
        "MACs": ["3,000", "3,500", "5,000"],
        "Latency, ms": ["1.600", "", "2.000"],
        "Seeds": [2, 1, 2],
    }
