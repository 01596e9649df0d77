# SPDX-License-Identifier: MIT
"""A run that prunes channels: the network on disk is really smaller."""

import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import regrow
from regrow.app.cli.inspect_command import inspect
from regrow.app.data.digits import Digits
from regrow.app.experiment.plan import plan
from regrow.app.experiment.run import train
from regrow.app.models.digits_cnn import DigitsCNN
from regrow.io.checkpoints import KEY

CHANNEL = ("recipe=digits/channel", "pruning.begin=0", "pruning.end=0.5", "pruning.every=0.25")


def small_network(path: Path) -> DigitsCNN:
    """The network of a checkpoint, loaded without Lightning and Hydra."""
    checkpoint = torch.load(path, weights_only=True)
    inside = "network."
    plan = {
        part: {name.removeprefix(inside): value for name, value in checkpoint[KEY][part].items()}
        for part in ("kept", "shapes")
    }
    for part in ("attributes", "before"):
        plan[part] = [[p.removeprefix(inside), *rest] for p, *rest in checkpoint[KEY][part]]
    weights = {n.removeprefix(inside): t for n, t in checkpoint["state_dict"].items()}
    given = {"state_dict": weights, KEY: checkpoint[KEY] | plan}
    network = regrow.load(DigitsCNN, given)
    assert isinstance(network, DigitsCNN)
    return network.eval()


@pytest.mark.parametrize("compact", ["end", "event"])
def test_result_measures_the_smaller_network(job, tmp_path, compact, capsys):
    cfg = job(*CHANNEL, f"pruning.compact={compact}")
    result = train(cfg)
    network = small_network(tmp_path / "run" / result["checkpoint"])
    params = sum(parameter.numel() for parameter in network.parameters())
    assert result["pruned"]["params"] == params < result["dense"]["params"] == 14_458
    assert result["sparsity_total"] == 1 - params / 14_458
    assert result["of"] == "macs"
    saved = 1 - result["pruned"]["macs"] / result["dense"]["macs"]
    assert result["sparsity"] == pytest.approx(saved)
    assert 0.5 <= saved < 0.6
    data = Digits(batch_size=64)
    data.setup()
    with torch.no_grad():
        right = [(network(x).argmax(1) == y).float() for x, y in data.test_dataloader()]
    assert torch.cat(right).mean().item() == pytest.approx(result["pruned"]["accuracy"])
    assert result["levels"][-1]["sparsity"] == result["sparsity"]
    assert result["channels"]["removed"]
    assert result["excluded"]["network.fc"] == "the network's output"
    (tmp_path / "run" / ".hydra").mkdir()  # the command writes it
    OmegaConf.save(cfg, tmp_path / "run" / ".hydra" / "config.yaml")
    inspect(tmp_path / "run" / result["checkpoint"])
    shown = capsys.readouterr().out
    assert "not prunable" in shown
    assert "target 0.5000 of the macs" in shown
    assert re.search(r"channels\W+cut\W+members", shown)
    if compact == "end":  # the checkpoint of the fit has masked channels
        inspect(tmp_path / "run" / "checkpoints" / "best.ckpt")
        [table] = re.findall(r" channels  .*?┡(.*?)└", capsys.readouterr().out, re.DOTALL)
        rows = re.findall(r"│ *(\d+) *│ *(\d+) *│", table)
        assert sum(int(masked) for _, masked in rows) == sum(result["channels"]["removed"].values())


def test_finished_job_is_not_run_again(job):
    first = train(job(*CHANNEL))
    assert train(job(*CHANNEL)) == first


def test_compact_none_only_masks_channels(job, tmp_path):
    result = train(job(*CHANNEL, "pruning.compact=null"))
    checkpoint = torch.load(tmp_path / "run" / result["checkpoint"], weights_only=True)
    assert KEY not in checkpoint
    assert result["dense"]["macs"] > result["pruned"]["macs"]


def test_one_shot_without_training_cuts_channels(job, tmp_path):
    result = train(job(*CHANNEL, "start=null", "dense_epochs=1", "trainer.max_epochs=0"))
    network = small_network(tmp_path / "run" / result["checkpoint"])
    assert sum(parameter.numel() for parameter in network.parameters()) < 14_458


def test_plan_shows_events_and_groups_that_cannot_be_cut(job, capsys):
    plan(job(*CHANNEL))
    shown = " ".join(capsys.readouterr().out.split())
    assert "not prunable: the" in shown
    assert "events" in shown
