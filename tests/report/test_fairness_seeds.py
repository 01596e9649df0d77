# SPDX-License-Identifier: MIT
"""Warnings about seeds appear if and only if they apply."""

import pytest
from fake_results import result, runs, task

from regrow.report.tasks import cross_task_advice, make_tasks

CLOSE = "No clear difference: the intervals mean ± standard deviation overlap"


def seeds(method, *accuracies, sparsity=0.9, **more):
    return [result(method, sparsity, s, accuracy=a, **more) for s, a in enumerate(accuracies)]


def warnings(*contents):
    return {advice.title: advice for advice in task(*contents).advice}


def test_overlapping_intervals_are_reported_with_their_point():
    found = warnings(*seeds("gmp", 0.94, 0.95, 0.96), *seeds("imp", 0.945, 0.955, 0.965))
    assert found.keys() == {CLOSE}
    (text,) = found[CLOSE].findings
    assert text == "At 90 %: gmp 95.00 ± 1.00 % (n = 3) and imp 95.50 ± 1.00 % (n = 3)."


def test_disjoint_intervals_are_not_reported():
    assert warnings(*seeds("gmp", 0.94, 0.95, 0.96), *seeds("imp", 0.90, 0.91, 0.92)) == {}


@pytest.mark.parametrize(
    ("one", "other", "met"),
    [
        (0.9, 0.9, True),
        (0.98, 0.9801, True),
        (0.98, 0.985, False),  # a quarter fewer weights
        (0.3, 0.305, True),
        (0.8, 0.9, False),
    ],
)
def test_only_points_of_similar_density_are_compared(one, other, met):
    low, high = (seeds(m, 0.94, 0.95, 0.96, sparsity=s) for m, s in (("a", one), ("b", other)))
    assert (CLOSE in warnings(*low, *high)) == met


def test_sparsities_of_different_units_are_not_compared():
    weights = seeds("gmp", 0.94, 0.95, 0.96)
    channels = seeds("channel", 0.94, 0.95, 0.96, of="macs")
    assert CLOSE not in warnings(*weights, *channels)


def test_fewer_than_three_seeds_are_reported():
    found = warnings(*seeds("gmp", 0.94, 0.95), *seeds("imp", 0.9, 0.91, 0.92))
    assert found["Fewer than three seeds"].findings == ("gmp at 90 %: 2.",)
    assert "Fewer than three seeds" not in warnings(*seeds("gmp", 0.9, 0.91, 0.92))


def test_one_seed_has_no_interval():
    assert CLOSE not in warnings(*seeds("gmp", 0.95), *seeds("imp", 0.95))


def test_tasks_are_compared_separately():
    made = runs(result(), result(setting={"model": {"width": 32}}))
    tasks = make_tasks(made)
    (advice,) = cross_task_advice(tasks)
    assert advice.title == "Different data or models"
    assert advice.findings == ("Digits · Net(width=16): 1 job.", "Digits · Net(width=32): 1 job.")
    assert cross_task_advice(tasks[:1]) == []
