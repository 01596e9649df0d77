# SPDX-License-Identifier: MIT
"""Each warning appears if and only if it applies."""

import pytest
from fake_results import dense_result, result, runs, task

from regrow.report.tasks import cross_task_advice, make_tasks

FILE = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
FIRST = {"start": None}  # a dense network is trained first, within the job


def warnings(*contents):
    return {advice.title: advice for advice in task(*contents).advice}


def both(one=None, other=None, **result_of_other):
    """Two methods of three seeds that differ in nothing but what is given."""
    first = [result("gmp", seed=s, accuracy=0.95 + s / 1000, setting=one or {}) for s in range(3)]
    second = [
        result("imp", seed=s, accuracy=0.90 + s / 1000, setting=other or {}) | result_of_other
        for s in range(3)
    ]
    return warnings(*first, *second)


@pytest.mark.parametrize(
    "same",
    [
        {},
        FIRST,
        {"start": FILE},
        {"finetune": {"lr": 0.01}, "start": FILE},
        {"callbacks": {"budget": {"monitor": "val/accuracy"}}},
    ],
)
def test_a_fair_comparison_has_no_warning(same):
    assert both(same, same) == {}


def test_the_learning_rate_of_an_own_optimizer_counts():
    assert "Different learning rates" in str(both({}, {}, lr=0.02))  # settings are alike


@pytest.mark.parametrize(
    ("title", "found", "one", "other"),
    [
        ("learning rates", "0.05 (gmp); 0.1 (imp)", {}, {"optimizer": {"lr": 0.1}}),
        ("learning rates", "0.05 (gmp); 0.01 (imp)", FIRST, {**FIRST, "finetune": {"lr": 0.01}}),
        ("batch sizes", "64 (gmp); 32 (imp)", {}, {"data": {"batch_size": 32}}),
        ("batch sizes", "64 on each of 2 devices (imp)", {}, {"trainer": {"devices": 2}}),
        ("training", "optimizer.momentum is 0.9 (gmp); 0.5", {}, {"optimizer": {"momentum": 0.5}}),
        ("training", "data.augment is null (gmp); \"flip\"", {}, {"data": {"augment": "flip"}}),
        ("starting checkpoints", "At seed 0: checkpoint a", {"start": FILE}, {"start": OTHER}),
        ("starting checkpoints", "scratch (gmp), checkpoint a", {}, {"start": FILE}),
        (
            "starting checkpoints",
            "trained dense first, lr=0.05, batch 64 (gmp), checkpoint a",
            FIRST,
            {"start": FILE},
        ),
    ],
)  # fmt: skip
def test_differing_settings_are_reported_with_their_methods(title, found, one, other):
    advice = both(one, other)[f"Different {title}"]
    assert found in " ".join(advice.findings)
    assert advice.todo.endswith(".")


def test_fine_tuning_settings_are_ignored_for_training_from_scratch():
    assert both({"finetune": {"lr": 0.3}}, {}) == {}


def test_equal_total_epochs_are_fair_with_or_without_pretraining():
    """One-shot after 20 dense epochs, 10 dense and 10 fine-tuned, 20 gradual."""
    assert both({}, FIRST) == {}
    assert both({**FIRST, "dense_epochs": 10}, {**FIRST, "dense_epochs": 20}) == {}


def test_different_total_epochs_are_reported():
    found = both(FIRST, {**FIRST, "dense_epochs": 8}, epochs=28)
    assert "20 (gmp); 28 (imp)" in found["Different total epochs"].findings[0]
    assert "Different starting checkpoints" in found


def test_unknown_total_epochs_are_reported():
    found = both({}, {"start": FILE}, epochs=None)["Different total epochs"].findings[0]
    assert "20 (gmp); 20 after a checkpoint of unknown training (imp)" in found


def test_fits_that_may_end_early_are_reported():
    found = both({}, {}, epochs=None)["Different total epochs"].findings[0]
    assert "20 (gmp); at most 20 with pruning, ended by a metric, steps or time (imp)" in found


def test_dense_run_of_other_length_is_reported():
    contents = [result(seed=s) for s in range(3)]
    longer = dense_result() | {"epochs": 40}
    assert "Different total epochs" in warnings(*contents, longer)
    assert warnings(*contents, dense_result()) == {}


@pytest.mark.parametrize(
    ("setting", "warned"),
    [
        ({"monitor": "test/accuracy"}, True),
        ({"callbacks": {"budget": {"monitor": "test_acc"}}}, True),
        ({"monitor": "val/accuracy"}, False),
        ({"monitor": "latest/accuracy"}, False),
    ],
)
def test_selection_on_the_test_set_is_reported(setting, warned):
    assert ("Chosen on the test set" in both(setting, setting)) == warned


@pytest.mark.parametrize(
    ("title", "change", "found"),
    [
        ("Different versions", {"versions": {"torch": "2.14.0"}}, "torch 2.14.0"),
        ("Latency measured differently", {"device": "H200"}, "cpu H200, threads 1, batch 1 (imp)"),
        ("Sparsity of different things", {"of": "macs"}, "weights (gmp); macs (imp)"),
    ],
)
def test_different_measurements_are_reported(title, change, found):
    assert found in both(**change)[title].findings[0]


@pytest.mark.parametrize("setting", [{}, {"data": {"test": None}}])  # of one task, of two
def test_measurements_on_both_splits_are_reported(setting):
    validated = result("imp", setting=setting, split="val")
    advice = cross_task_advice(make_tasks(runs(result(), validated)))
    [found] = [one for one in advice if one.title == "Measured on different sets"]
    assert found.findings[0].endswith("which also chose the checkpoint: imp.")
    for same in ((result(), result("imp")), (result(split="val"), validated)):
        titles = [one.title for one in cross_task_advice(make_tasks(runs(*same)))]
        assert "Measured on different sets" not in titles
