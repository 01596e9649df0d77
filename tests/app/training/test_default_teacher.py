# SPDX-License-Identifier: MIT
"""The default teacher is the run's dense baseline; alternating phases are configured by name."""

import json

import pytest
import torch

from regrow.app.config.hashing import config_hash
from regrow.app.experiment.dense_baseline import train_dense_baseline
from regrow.app.experiment.run import train
from regrow.app.models.digits_cnn import DigitsCNN
from regrow.app.training.build import build_pruning, with_teacher, without_teacher
from regrow.callbacks.support.teacher import digest
from regrow.utils.errors import ConfigError

GMP = ("recipe=digits/gmp", "pruning.every=0.1")
TAUGHT = (*GMP, "callbacks=distill")


def test_default_teacher_is_the_shared_dense_baseline(job, tmp_path):
    cfg = job(*TAUGHT)
    control = train_dense_baseline(job(*GMP, folder="plain"))
    result = train(job(*TAUGHT))
    assert train_dense_baseline(cfg).checkpoint == control.checkpoint
    assert len([*(tmp_path / "outputs" / "controls").glob("*/result.json")]) == 1
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    dense = torch.load(control.checkpoint, weights_only=True)["state_dict"]
    wise = DigitsCNN()
    wise.load_state_dict({n.removeprefix("network."): v for n, v in dense.items()})
    assert state["callbacks"]["Distill"]["teacher"] == digest(wise)
    assert "teacher" not in "".join(state["state_dict"])
    assert result["sparsity"] == pytest.approx(0.9, abs=1e-4)
    settings = json.loads((tmp_path / "run" / "result.json").read_text())["settings"]
    assert settings["callbacks"]["distill"]["teacher"] is None


def test_distilled_run_has_another_hash(job):
    assert config_hash(job(*GMP)) != config_hash(job(*TAUGHT))


def test_given_teacher_is_kept(job):
    cfg = job(*TAUGHT, "callbacks.distill.teacher=mine.ckpt")
    assert with_teacher(cfg, "other.ckpt") is cfg
    assert "distill" not in without_teacher(cfg).callbacks
    assert "distill" in cfg.callbacks
    with pytest.raises(ConfigError, match=r"teacher='mine.ckpt' does not exist"):
        train(cfg)


def test_plan_trains_no_dense_baseline(job, tmp_path):
    from regrow.app.training.preflight import set_up

    cfg = job(*TAUGHT)
    set_up(cfg, build_pruning(cfg))
    assert not (tmp_path / "outputs").exists()


def test_alternating_phases_share_the_dense_baseline(job):
    keys = [
        config_hash(without_teacher(job(*GMP, *w)))
        for w in ((), ["callbacks=alternating_phases"], ["callbacks=distill"])
    ]
    assert len({*keys}) == 1


@pytest.mark.slow
def test_alternating_phases_are_selected_by_name(job):
    words = (
        "recipe=digits/gmp",
        "pruning=acdc",
        "callbacks=alternating_phases",
        "pruning.every=0.15",
    )
    result = train(job(*words))
    assert [e["phase"] for e in result["history"]][-2:] == ["dense", "sparse"]
    assert result["sparsity"] == pytest.approx(0.9, abs=1e-4)
