# SPDX-License-Identifier: MIT
"""AccuracyBudget beside schedules with more events than the fit has recovery times for."""

import pytest
from accuracy_budget_fits import Judge
from tiny_fits import BATCHES, WEIGHTS, loader, trainer, zeros

from regrow import AccuracyBudget, ConfigError, Exponential, MagnitudePruning, Table


def run(pruning, limit=1.0, epochs=10, budget=None, **kw):
    module = Judge(pruning, limit)
    job = trainer(pruning, budget or AccuracyBudget("acc", 0.1), max_epochs=epochs, **kw)
    job.fit(module, loader(), loader(2))
    assert zeros(module) == round(pruning.sparsity * WEIGHTS)
    return pruning


def judged_steps(steps, recover):
    """By hand: the epoch's end at which each event is judged."""
    return [-(-(step + recover) // BATCHES) * BATCHES for step in steps]


@pytest.mark.parametrize("epochs", [4, 6, 10, 16])
@pytest.mark.parametrize("recover", ["1ep", "3it", "2ep"])
@pytest.mark.parametrize(
    "schedule",
    [{}, {"schedule": "linear"}, {"schedule": Exponential(0.2, every="2it", begin="3it")}],
)
def test_every_schedule_reaches_its_target_within_the_budget(epochs, recover, schedule):
    """As in the README: MagnitudePruning(0.9) beside AccuracyBudget("val/accuracy", 0.01)."""
    budget = AccuracyBudget("acc", max_drop=0.01, recover=recover)
    pruning = run(MagnitudePruning(0.9, **schedule), epochs=epochs, budget=budget)
    entries = [e for e in pruning.history if e["after"] > e["before"]]
    assert pruning.sparsity == pytest.approx(0.9, abs=1 / WEIGHTS)
    assert all("lost" in entry for entry in entries)
    steps = [entry["step"] for entry in entries]
    length = {"1ep": BATCHES, "3it": 3, "2ep": 2 * BATCHES}[recover]
    assert steps[0] >= BATCHES
    then = [*steps[1:], epochs * BATCHES]
    for after, judged in zip(then, judged_steps(steps, length), strict=True):
        assert judged <= after


@pytest.mark.parametrize("limit", [0.3, 0.6])
def test_search_ends_below_its_limit(limit):
    pruning = run(MagnitudePruning(0.9), limit, epochs=24)
    assert limit - 0.06 <= pruning.sparsity <= limit


@pytest.mark.parametrize("kw", [{"check_val_every_n_epoch": 2}, {"val_check_interval": 0.25}])
def test_rare_and_frequent_validations_work(kw):
    pruning = run(MagnitudePruning(0.9), epochs=12, **kw)
    assert pruning.sparsity == pytest.approx(0.9, abs=1 / WEIGHTS)
    assert all("lost" in entry for entry in pruning.history if entry["kind"] == "prune")


@pytest.mark.parametrize(
    "kw",
    [
        {"accumulate_grad_batches": 3, "val_check_interval": 4},
        {"val_check_interval": 15, "check_val_every_n_epoch": None},
        {"val_check_interval": 3, "accumulate_grad_batches": 4},
    ],
)
def test_target_is_reached_whatever_batches_validation_counts(kw):
    """With 10 batches in each of 6 epochs."""
    pruning = MagnitudePruning(0.8)
    budget = AccuracyBudget("acc", 0.1, recover="2it")
    job = trainer(pruning, budget, max_epochs=6, **kw)
    job.fit(Judge(pruning, 1.0), loader(10), loader(2))
    assert pruning.sparsity == pytest.approx(0.8, abs=1 / WEIGHTS)
    assert all("lost" in entry for entry in pruning.history if entry["after"] > entry["before"])


def test_first_event_waits_for_a_validation_within_an_accumulated_step():
    """The first validation, after batch 4, comes within step 1, and so do events at step 1."""
    pruning = MagnitudePruning(0.8, begin="1it", end="20it", every="1it")
    budget = AccuracyBudget("acc", 0.1, recover="2it")
    kw = {"accumulate_grad_batches": 3, "val_check_interval": 4}
    trainer(pruning, budget, max_epochs=6, **kw).fit(Judge(pruning, 1.0), loader(10), loader(2))
    assert pruning.history[0]["step"] >= 2
    assert pruning.sparsity == pytest.approx(0.8, abs=1 / WEIGHTS)


def test_schedule_with_enough_room_keeps_its_events():
    levels = Table({"2ep": 0.25, "4ep": 0.5})
    assert [e["step"] for e in run(MagnitudePruning(0.5, schedule=levels)).history] == [16, 32]


def test_a_fit_without_room_for_one_event_raises_before_training():
    pruning = MagnitudePruning(0.9)
    with pytest.raises(ConfigError, match="no room for one event"):
        run(pruning, epochs=1)
    assert pruning.sparsity == 0
