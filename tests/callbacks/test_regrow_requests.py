# SPDX-License-Identifier: MIT
"""Regrowth on a metric's condition and on request; what Regrow refuses."""

import json

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import WEIGHTS, Events, Net, equal, fit, loader

from regrow import ConfigError, Drop, MagnitudePruning, OneShot, Plateau, Regrow
from regrow.schedules.triggers import TriggerState

PRUNED = round(0.8 * WEIGHTS)


def pruning(sparsity=0.8, **kw):
    return MagnitudePruning(sparsity, **({"schedule": OneShot("2it")} | kw))


class Steps(Callback):
    """All parameters at each batch's beginning."""

    def __init__(self):
        self.at = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.at[trainer.global_step] = {n: p.clone() for n, p in pl_module.named_parameters()}


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
def test_conditions(when, scores, steps):
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


def test_a_condition_is_resumed(tmp_path):
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


def test_not_a_number_is_a_drop_once_and_no_improvement():
    nan = float("nan")
    seen, fell = Drop("m").update(nan, TriggerState(0.5))
    assert fell
    assert Drop("m").update(0.1, seen) == (TriggerState(0.1), False)
    assert Plateau("m", patience=1).update(nan, TriggerState(0.5))[1]


def test_metrics_that_are_not_there():
    with pytest.raises(ConfigError, match=r"'val/scor' is not logged: did you mean 'val/score'"):
        fit(Scored([0.5] * 9), pruning(), Regrow(when=Drop("val/scor"), count=3), val=loader())
    with pytest.raises(ConfigError, match="this fit has none"):
        fit(Net(), pruning(), Regrow(when=Drop("val/loss"), count=3))


class Writes(Callback):
    """Leaves a request in the run's folder at one step's end."""

    def __init__(self, path, request, step=5):
        self.path, self.request, self.step = path, request, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            text = self.request if isinstance(self.request, str) else json.dumps(self.request)
            self.path.write_text(text)


@pytest.mark.parametrize("by", ["random", "gradient"])
def test_requests(tmp_path, by):
    path = tmp_path / "regrow.json"
    request = {"fraction": 0.5, "by": by, "init": "he", "names": None, "train": "body.0"}
    prunes, module, steps = pruning(), Net(), Steps()
    grows = Regrow(request="regrow.json")
    fit(module, steps, Writes(path, request), prunes, grows, default_root_dir=tmp_path)
    entry = prunes.history[-1]
    assert (entry["step"], entry["by"], entry["cause"]) == (5, by, "request")
    assert entry["count"] == round(0.5 * PRUNED)
    assert not path.exists()
    assert json.loads((tmp_path / "regrow.json.done").read_text()) == request
    assert torch.equal(steps.at[6]["body.2.bias"], module.body[2].bias), "held"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "must be an object"),
        ({"fractoin": 0.1}, "did you mean 'fraction'"),
        ({}, "one of the two"),
        ({"fraction": 50}, "write 0.5 for 50 %"),
        ({"fraction": 0.1, "init": "heh"}, "did you mean"),
        ({"fraction": 0.1, "init": "original"}, r"call remember()"),
        ({"fraction": 0.1, "by": "momentum"}, "DynamicSparseTraining"),
        ({"fraction": 0.1, "by": 3}, "a name or a callable"),
        ({"fraction": 0.1, "names": ["fc"]}, "matches no parameter"),
        ({"fraction": 0.1, "train": "fc"}, "matches no parameter"),
        ({"count": 10**6}, "more than all"),
        ({"count": WEIGHTS}, "cannot come back"),
    ],
)
def test_requests_that_are_refused(tmp_path, request_, words):
    """Training goes on, as if nobody had asked."""
    path, prunes, module, plain = tmp_path / "r.json", pruning(), Net(), Net()
    with pytest.warns(UserWarning, match="is refused"):
        fit(module, prunes, Writes(path, request_), Regrow(request=path))
    assert words in (tmp_path / "r.json.refused").read_text()
    assert not path.exists()
    assert [entry["kind"] for entry in prunes.history] == ["prune"]
    fit(plain, pruning())
    assert equal(dict(module.state_dict()), dict(plain.state_dict()))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "has no occasion"),
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
def test_mistakes_at_construction(given, words):
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
def test_mistakes_in_conditions(condition, given, words):
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
def test_mistakes_before_the_first_step(given, prunes, words):
    module = Net()
    with pytest.raises(ConfigError, match=words):
        fit(module, pruning(**prunes), Regrow(fraction=0.1, **given))
    assert module.trained == 0
    with pytest.raises(ConfigError, match="needs a pruning callback"):
        fit(module, Regrow(at="5it", fraction=0.1))
