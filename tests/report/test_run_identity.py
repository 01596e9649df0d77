# SPDX-License-Identifier: MIT
"""Grouping of runs into methods and tasks, and their names."""

import pytest
from fake_results import result, runs

from regrow.report.run_identity import (
    baseline_key,
    method_key,
    method_names,
    model_name,
    point_key,
    task_key,
)


def keys(key, *contents):
    """Which of the runs have equal keys: [0, 0, 1] for two alike and one apart."""
    found = [key(run) for run in runs(*contents)]
    return [found.index(one) for one in found]


def rewound(seed, reinit):
    return result(seed=seed, setting={"pruning": {"rewind": {"reinit": reinit}}})


def test_seeds_are_one_point_and_sparsities_one_method():
    contents = [result(sparsity=s, seed=seed) for s in (0.8, 0.9) for seed in (0, 1)]
    assert keys(point_key, *contents) == [0, 0, 2, 2]
    assert keys(method_key, *contents) == [0, 0, 0, 0]
    assert keys(method_key, result(), result("imp")) == [0, 1]


def test_set_and_unset_seeds_are_different_methods():
    """The re-initialised control differs from the ticket by nothing else."""
    assert keys(method_key, rewound(0, None), rewound(0, 0), rewound(1, 1)) == [0, 1, 1]


def test_each_seed_may_have_its_own_starting_checkpoint():
    starts = [result(seed=s, setting={"start": f"sha256:{s}abc"}) for s in (0, 1)]
    assert keys(point_key, *starts, result()) == [0, 0, 2]


def test_dense_baseline_is_shared_by_runs_that_differ_only_in_pruning():
    contents = [result(), result("imp", 0.5), result(seed=1), result(setting={"start": None})]
    assert keys(baseline_key, *contents) == [0, 0, 2, 3]
    assert keys(lambda run: baseline_key(run, seeds=False), *contents) == [0, 0, 0, 3]


@pytest.mark.parametrize(
    ("setting", "same"),
    [
        ({"data": {"batch_size": 32}}, True),  # how data are served
        ({"data": {"augment": "flip"}}, True),
        ({"data": {"classes": 100}}, False),  # which data they are
        ({"model": {"width": 32}}, False),
        ({"optimizer": {"lr": 1}}, True),
    ],
)
def test_task_key_is_data_and_model(setting, same):
    assert keys(task_key, result(), result(setting=setting)) == [0, 0 if same else 1]


def names(*contents):
    made = runs(*contents)
    found = method_names(made)
    return [found[method_key(run)] for run in made]


def worded(method, *words, **setting):
    return result(method, setting=setting) | {"overrides": [f"recipe=digits/{method}", *words]}


def test_names_show_only_settings_that_differ():
    common = ("trainer.max_epochs=4", "seed=1", "pruning.sparsity=0.9", "paths.controls=/tmp/x")
    found = names(
        worded("gmp", *common),
        worded("imp", *common, "optimizer.lr=0.1", optimizer={"lr": 0.1}),
        worded("imp", *common),
    )
    assert found == ["gmp", "imp optimizer.lr=0.1", "imp"]


def test_names_differ_if_only_settings_differ():
    one, other = names(worded("gmp"), worded("gmp", optimizer={"lr": 0.1}))
    assert one != other
    assert one.startswith("gmp #")


def test_recipes_of_the_same_name_include_their_folder():
    there = worded("gmp", optimizer={"lr": 1}) | {"recipe": "mnist/gmp"}
    assert names(worded("gmp"), there) == ["digits/gmp", "mnist/gmp"]


def test_the_exact_architecture_is_named():
    assert model_name(runs(result())[0]) == "Net(width=16)"
