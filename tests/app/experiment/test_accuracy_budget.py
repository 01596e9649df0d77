# SPDX-License-Identifier: MIT
"""The command with an accuracy budget: decisions are in the result and printed."""

import csv
import json

import pytest

from regrow.app.experiment.plan import plan
from regrow.app.experiment.run import train
from regrow.utils.errors import ConfigError

BUDGET = ("recipe=digits/budget", "trainer.max_epochs=8", "dense_epochs=2")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")


def accuracies(folder):
    """Validation accuracy by epoch, as it was logged."""
    with (folder / "logs" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/accuracy"]]
    return {int(row["epoch"]): float(row["val/accuracy"]) for row in rows}


def test_decisions_are_in_the_result_and_printed(job, tmp_path, capsys):
    result = train(job(*BUDGET))
    shown = " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    found, logged = result["budget"], accuracies(tmp_path / "run")
    held = [event for event in found["judged"] if event["kept"]]
    gone = [event for event in found["judged"] if not event["kept"]]
    assert held
    assert gone, "0.995 cannot hold"
    assert found["rollbacks"] == len(gone)
    assert result["sparsity"] == found["kept"] == max(event["sparsity"] for event in held)
    for event in found["judged"]:
        # judged after one epoch: an event's own one, or the one before the rollback
        epoch = event["epoch"] if event["kept"] else event["epoch"] - 1
        assert event["lost"] == pytest.approx(logged[0] - logged[epoch], abs=1e-6)
        assert (event["lost"] <= 0.01) == event["kept"]
        assert f"{100 * event['sparsity']:.2f} %" in shown
    taken = f"({len(gone)} of {len(found['judged'])} events rolled back)"
    assert result["verdict"].endswith(f"budget: {found['reason']} {taken}")
    assert f"sparsity {found['kept']:.4g} held" in found["reason"]
    assert found["reason"] in shown
    assert "rolled back" in shown
    assert result["history"][-1]["reason"] == found["reason"]


def test_search_cut_by_the_end_of_the_fit_has_a_result(job):
    """Against a reference of 2 nothing holds; what is left is the dense network."""
    words = ("pruning.end=2ep", "callbacks.budget.reference=2.0", "trainer.max_epochs=4")
    result = train(job(*BUDGET, *words))
    assert result["sparsity"] == 0
    assert [event["kept"] for event in result["budget"]["judged"]] == [False, False, False]
    assert result["budget"]["reason"].startswith("the fit ended before sparsity 0.1088 was judged")


@pytest.mark.parametrize("act", [train, plan])
def test_budget_errors_are_raised_before_training(act, job, monkeypatch):
    from regrow.app.training.classifier import Classifier

    def never(*_):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(Classifier, "training_step", never)
    with pytest.raises(ConfigError, match="AccuracyBudget acts on events that prune further"):
        act(job("recipe=digits/rigl", "callbacks=budget"))
    with pytest.raises(ConfigError, match="events, each with 1ep of recovery, end at step"):
        act(
            job(
                *BUDGET,
                "trainer.max_epochs=1",
                "pruning.end=0.9",
                "pruning.begin=0.01",
                "pruning.every=0.3",
            )
        )
