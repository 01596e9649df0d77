# SPDX-License-Identifier: MIT
"""`regrow doctor` shows the runtimes that a checkpoint suits."""

import pytest
import torch
from omegaconf import OmegaConf

import regrow
from regrow import channels
from regrow.app.cli.doctor_command import show_diagnosis
from regrow.app.training.build import build_data, build_module
from regrow.io.checkpoints import KEY
from regrow.utils.errors import ConfigError

GMP = "recipe=digits/gmp"


@pytest.fixture
def saved(job, tmp_path, monkeypatch):
    """A function that changes the network of a run and saves it as a checkpoint of that run."""
    monkeypatch.setenv("COLUMNS", "120")
    cfg = job(GMP)
    for name in (".hydra", "checkpoints"):
        (tmp_path / "run" / name).mkdir(parents=True)
    OmegaConf.save(cfg, tmp_path / "run" / ".hydra" / "config.yaml")

    def save(change):
        module = build_module(cfg, build_data(cfg))
        content = change(module) or {}
        path = tmp_path / "run" / "checkpoints" / "last.ckpt"
        torch.save({"state_dict": module.state_dict(), **content}, path)
        return path

    return save


def rows(shown, label):
    found = [line.split("│")[1:-1] for line in shown.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in found if row[0].strip() == label]


def test_zeros_of_a_checkpoint_are_shown(saved, capsys):
    """Of one convolution: enough for the Neural Engine; torch has no sparse kernel for it."""

    def prune(module):
        regrow.prune(module, 0.75, include=["features.3"])

    show_diagnosis(saved(prune))
    shown = capsys.readouterr().out
    [[_, zeros, _, fits]] = rows(shown, "features.3.weight")
    assert (zeros, fits) == ("75.0%", "tensor cores, Core ML")
    [[_, zeros, _, fits]] = rows(shown, "features.7.weight")
    assert (zeros, fits) == ("0.0%", "tensor cores")
    assert rows(shown, "PyTorch CPU") == [
        ["PyTorch CPU", "0.0%", "regrow.accelerate", "no sparse kernel: remove channels"]
    ]


def test_channels_of_a_cut_checkpoint_are_those_that_are_left(saved, capsys):
    for round_to, advice in ((1, "channels: round_to=8 in"), (8, "all layers fit")):

        def cut(module, round_to=round_to):
            x = torch.randn(2, 1, 8, 8)
            return {KEY: channels.prune(module, x, 0.3, round_to=round_to).state_dict()}

        show_diagnosis(saved(cut))
        assert rows(capsys.readouterr().out, "tensor cores")[0][3].endswith(advice)


def test_a_checkpoint_of_another_program_is_refused_with_the_function(tmp_path):
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(2, 2)}}, path)
    with pytest.raises(ConfigError, match=r"regrow.diagnose\(model, example_input\) takes any"):
        show_diagnosis(path)
