# SPDX-License-Identifier: MIT
"""A search with Optuna: validation objectives, a continued study, errors."""

import pytest

from regrow.app.launch.search import DIRECTIONS, check_objectives, measured, requeue_running
from regrow.utils.errors import ConfigError

optuna = pytest.importorskip("optuna")

RESULT = {
    "levels": [
        {"sparsity": 0.5, "val_accuracy": 0.9, "val_loss": 0.3, "test_accuracy": 0.1},
        {"sparsity": 0.8, "val_accuracy": 0.7, "val_loss": 0.6, "test_accuracy": 0.2},
    ],
    "sparsity": 0.8,
    "compression": 5.0,
    "pruned": {"accuracy": 0.2, "macs": 100, "latency_ms": {"median": 1.5}},
}
SEARCH = ("sweep=optuna", "recipe=digits/gmp", "optimizer.lr=0.05", "hydra.sweeper.n_trials=2")


def study_in(tmp_path):
    [path] = (tmp_path / "outputs" / "sweeps").rglob("optuna.db")
    storage = f"sqlite:///{path}"
    [summary] = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=summary.study_name, storage=storage)


def test_objectives_are_measured_on_the_selected_checkpoint():
    assert measured(RESULT, ["val_accuracy", "sparsity"]) == (0.7, 0.8)
    assert measured(RESULT, ["val_loss"]) == 0.6
    assert measured(RESULT, ["compression", "macs", "latency_ms"]) == (5.0, 100.0, 1.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["val_acuracy"], "did you mean 'val_accuracy'"),
        (["accuracy"], "a search never sees the test set"),
        (["test_accuracy", "sparsity"], r"objectives has 'test_accuracy'.*val_loss, sparsity"),
        ([], "must be names"),
        (["sparsity", "sparsity"], "each once"),
    ],
)
def test_unknown_objectives_raise(given, message):
    with pytest.raises(ConfigError, match=message):
        check_objectives(given)


def test_objectives_do_not_use_the_test_set():
    assert not [name for name in DIRECTIONS if "test" in name or name in ("accuracy", "loss")]


def test_second_search_adds_trials_to_the_study(sweep, found, reports, tmp_path):
    for count in (2, 4):
        assert sweep(*SEARCH) == 0
        trials = study_in(tmp_path).trials
        assert [trial.state for trial in trials] == [optuna.trial.TrialState.COMPLETE] * count
    results = found("result.json").values()
    told = {tuple(trial.values) for trial in trials}
    assert told == {(r["levels"][-1]["val_accuracy"], r["sparsity"]) for r in results}
    assert [one.name for one in study_in(tmp_path).directions] == ["MAXIMIZE", "MAXIMIZE"]
    assert {*trials[0].params} == {"pruning.sparsity"}, "a value given is not searched for"
    assert len(reports[-1][1]) == 4


def test_search_needs_one_override_only(sweep, reports, tmp_path, monkeypatch):
    """The directions are those of the objectives, a failed trial stops no other."""
    runs = []

    def train(cfg):
        runs.append(cfg.pruning.sparsity)
        if len(runs) == 1:
            raise ConfigError("no")
        return RESULT

    monkeypatch.setattr("regrow.app.experiment.run.train", train)
    words = ("recipe=digits/gmp", "pruning.sparsity=interval(0.5,0.9)", "hydra/sweeper=optuna")
    assert sweep(*words, "objectives=[val_loss,compression]", "hydra.sweeper.n_trials=3") == 1
    study = study_in(tmp_path)
    assert [one.name for one in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[1].values == [0.6, 5.0]
    monkeypatch.setattr("regrow.app.experiment.run.train", lambda cfg: RESULT)
    assert sweep(*words, "objectives=val_accuracy", "hydra.sweeper.n_trials=1") == 0


def test_interrupted_trial_is_repeated(sweep, reports, tmp_path, monkeypatch):
    runs = []

    def train(cfg):
        runs.append(cfg.pruning.sparsity)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return RESULT

    monkeypatch.setattr("regrow.app.experiment.run.train", train)
    assert sweep(*SEARCH) == 130
    assert sweep(*SEARCH) == 0
    assert runs[2] == runs[1] != runs[0]
    states = [trial.state.name for trial in study_in(tmp_path).trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert requeue_running("sqlite:///" + str(tmp_path / "none.db"), "nothing") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("objectives=[val_accuracy,sparsty]",), "error: objectives has 'sparsty': did you mean"),
        (("hydra.sweeper.direction=[minimize,maximize]",), "does not fit objectives"),
        (("pruning=none",), "this recipe does not prune: choose one with pruning"),
        (("trainer.max_epochs=0", "start=null"), "validates nothing: write trainer.max_epochs=1"),
    ],
)
def test_unsupported_searches_raise(sweep, reports, capfd, words, message):
    search = ("hydra/sweeper=optuna", "optimizer.lr=interval(0.1,0.2)", "hydra.sweeper.n_trials=1")
    recipe = () if words == ("pruning=none",) else ("recipe=digits/gmp",)
    assert sweep(*search, *recipe, *words) == 1
    assert message in capfd.readouterr().err
