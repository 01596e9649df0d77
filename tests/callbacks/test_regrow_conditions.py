# SPDX-License-Identifier: MIT
"""Regrowth when a metric drops or stagnates, and the settings that Regrow rejects."""

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import Events, Net, fit, loader

from regrow import ConfigError, Drop, MagnitudePruning, OneShot, Plateau, Regrow
from regrow.schedules.triggers import TriggerState


def pruning(sparsity=0.8, **kw):
    return MagnitudePruning(sparsity, **({"schedule": OneShot("2it")} | kw))


class Scored(Net):
    """Logs one given number a validation."""

    def __init__(self, scores):
        super().__init__()
        self.scores = iter(scores)

    def on_validation_epoch_end(self):
        self.log("val/score", next(self.scores))


@pytest.mark.parametrize(
    ("when", "scores", "steps"),
    [
        (Drop("val/score", by=0.1), [0.5, 0.6, 0.45, 0.45, 0.3, 0.9], [24, 40]),
        (Drop("val/score", by=0.1, mode="min"), [0.5, 0.55, 0.61, 0.6, 0.6, 0.6], [24]),
        (Plateau("val/score", patience=2), [0.5, 0.5, 0.4, 0.4, 0.4, 0.1], [24, 40]),
        (Plateau("val/score", patience=2, mode="min"), [0.5, 0.6, 0.4, 0.4, 0.4, 0.1], [40]),
    ],
)
def test_regrows_at_the_validation_that_meets_the_condition(when, scores, steps):
    events, prunes = Events(), pruning()
    fit(
        Scored([9.0, *scores]),  # the first number is the sanity check's
        events,
        prunes,
        Regrow(when=when, count=3),
        val=loader(),
        max_epochs=6,
        num_sanity_val_steps=1,
    )
    assert events.steps == [2, *steps]
    assert all(entry["cause"] == str(when) for entry in prunes.history[1:])


def test_a_resumed_condition_fires_at_the_same_step(tmp_path):
    found = []
    for path in (None, tmp_path / "epoch=2.ckpt"):
        prunes = pruning()
        saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        scores = [0.5, 0.6, 0.45, 0.45, 0.3, 0.9]
        module = Scored(scores if path is None else scores[3:])
        grows = Regrow(when=Drop("val/score", by=0.1), count=3)
        fit(
            module,
            prunes,
            saves,
            grows,
            val=loader(),
            ckpt_path=path,
            max_epochs=6,
            enable_checkpointing=True,
        )
        found.append(prunes.history)
    assert found[0] == found[1]
    assert [entry["step"] for entry in found[0]] == [2, 24, 40]


def test_nan_is_one_drop_and_never_an_improvement():
    nan = float("nan")
    seen, fell = Drop("m").update(nan, TriggerState(0.5))
    assert fell
    assert Drop("m").update(0.1, seen) == (TriggerState(0.1), False)
    assert Plateau("m", patience=1).update(nan, TriggerState(0.5))[1]


def test_a_metric_that_is_not_logged_raises():
    with pytest.raises(ConfigError, match=r"'val/scor' is not logged: did you mean 'val/score'"):
        fit(Scored([0.5] * 9), pruning(), Regrow(when=Drop("val/scor"), count=3), val=loader())
    with pytest.raises(ConfigError, match="this fit has none"):
        fit(Net(), pruning(), Regrow(when=Drop("val/loss"), count=3))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "Regrow never acts"),
        ({"at": "5it"}, "one of the two"),
        ({"at": "5it", "fraction": 0.1, "count": 3}, "one of the two"),
        ({"at": 5, "fraction": 0.1}, "has no unit"),
        ({"at": ["5it", "x"], "fraction": 0.1}, "must be a time"),
        ({"at": "5it", "fraction": 10}, "write 0.1 for 10 %"),
        ({"at": "5it", "count": 0.5}, "whole number"),
        ({"at": "5it", "fraction": 0.1, "by": "gradeint"}, "did you mean 'gradient'"),
        ({"at": "5it", "fraction": 0.1, "init": "xaver"}, "did you mean 'xavier'"),
        ({"at": "5it", "fraction": 0.1, "names": [3]}, "names must be layer patterns"),
        ({"at": "5it", "fraction": 0.1, "train": 3}, "train must be"),
        ({"when": "val/loss", "fraction": 0.1}, "must be a condition"),
        ({"at": "5it", "fraction": 0.1, "on_change": "kepe"}, "did you mean 'keep'"),
    ],
)
def test_invalid_settings_raise_at_construction(given, words):
    with pytest.raises(ConfigError, match=words):
        Regrow(**given)


@pytest.mark.parametrize(
    ("condition", "given", "words"),
    [
        (Drop, {"by": -1}, "by must be"),
        (Drop, {"mode": "mxa"}, "did you mean 'max'"),
        (Plateau, {"patience": 0}, "whole number of at least 1"),
    ],
)
def test_invalid_conditions_raise(condition, given, words):
    with pytest.raises(ConfigError, match=words):
        condition("val/loss", **given)


@pytest.mark.parametrize(
    ("given", "prunes", "words"),
    [
        ({"at": "99it"}, {}, "step 99 is never reached, the fit ends before step 16"),
        ({"at": "5it", "names": "fc"}, {}, "matches no parameter"),
        ({"at": "5it", "train": "fc"}, {}, "neither 'all' nor 'regrown'"),
        ({"at": "5it", "by": "removed"}, {"keep_removed": False}, "write keep_removed=True in Mag"),
        ({"at": "5it", "init": "removed"}, {"keep_removed": False}, "write keep_removed=True"),
        ({"at": "5it", "by": "momentum"}, {}, "DynamicSparseTraining"),
        ({"at": "5it"}, {"soft": True}, "leave Regrow out"),
    ],
)
def test_settings_that_do_not_fit_the_model_raise_before_the_first_step(given, prunes, words):
    module = Net()
    with pytest.raises(ConfigError, match=words):
        fit(module, pruning(**prunes), Regrow(fraction=0.1, **given))
    assert module.trained == 0
    with pytest.raises(ConfigError, match="needs a pruning callback"):
        fit(module, Regrow(at="5it", fraction=0.1))
