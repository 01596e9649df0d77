# SPDX-License-Identifier: MIT
"""Whole runs of LightningModules and data of others: template style, both distributions, resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import template_style
import torch

from regrow.app.cli.main import main

MODULE = """
about: {data: images, model: MLP, method: GMP, published: null, source: null}
defaults:
  - override /pruning: gmp
start: scratch
model:
  _target_: mnist_files.MNISTLitModule
  net: {_target_: mnist_files.SimpleDenseNet, width: 16}
  optimizer: {_target_: torch.optim.Adam, _partial_: true, lr: 0.01}
  scheduler:
    _target_: torch.optim.lr_scheduler.ReduceLROnPlateau
    _partial_: true
    patience: 1
  compile: false
data: {_target_: mnist_files.MNISTDataModule, batch_size: 50}
monitor: val/acc
"""
RESUMED = '''
import os, signal
import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import Dataset


class Images(Dataset):
    """Augmented by draws from torch's global generator."""

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % 3
        self.images = torch.randn(count, 6, generator=generator) + self.labels[:, None]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index] + 0.3 * torch.randn(6), self.labels[index]


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 3)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        if self.global_step == int(os.environ.get("KILL_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]
'''
QUICK = [
    *("latency.repeats=3", "~callbacks.progress", "+trainer.enable_progress_bar=false"),
    *("trainer.accelerator=cpu", "logger=none", "trainer.max_epochs=3", "pruning.every=0.1"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which commands are started, and whose files can be imported."""
    source = Path(template_style.__file__).read_text()
    (tmp_path / "mnist_files.py").write_text(source)
    (tmp_path / "mnist.yaml").write_text(MODULE)
    (tmp_path / "resumed_files.py").write_text(RESUMED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("mnist_files", "resumed_files"):
        sys.modules.pop(name, None)


def result_of(root="outputs"):
    """The only result below a folder that is no dense baseline."""
    [file] = [f for f in Path(root).rglob("result.json") if "controls" not in f.parts]
    return json.loads(file.read_text()), file.parent


def last(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def kill(words, at):
    """Run the command in a process that is killed at an optimizer step."""
    environ = os.environ | {"KILL_AT": str(at)}
    command = [sys.executable, "-m", "regrow.app.cli.main", *words]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_files_in_the_style_of_templates_work_unchanged(folder, package, capsys):
    file = folder / "mnist_files.py"
    file.write_text(file.read_text().replace("lightning.pytorch as pl", f"{package} as pl"))
    assert main(["train", "recipe=mnist.yaml", *QUICK]) == 0
    result, job = result_of()
    assert (result["metric"], result["split"]) == ("acc", "test")
    assert result["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert result["dense"]["acc"] > 0.3
    assert "does not save its position" in capsys.readouterr().out
    saved = last(job)
    assert "exp_avg" in saved["optimizer_states"][0]["state"][0]
    assert saved["hyper_parameters"] == {"compile": False}


def test_a_module_of_the_other_distribution_takes_datasets(folder):
    file = folder / "resumed_files.py"
    file.write_text(RESUMED.replace("lightning.pytorch as pl", "pytorch_lightning as pl"))
    assert main(["train", *WORDS, *QUICK]) == 0
    assert result_of()[0]["metric"] == "loss"


WORDS = [
    *("model._target_=resumed_files.Module", "monitor=val_loss", "monitor_mode=min"),
    *("data=datasets", "data.num_workers=2", "data.batch_size=16", "pruning=gmp", "start=scratch"),
    *("data.train._target_=resumed_files.Images", "data.train.count=120", "data.train.seed=0"),
    *("data.val._target_=resumed_files.Images", "data.val.count=30", "data.val.seed=1"),
    "+trainer.val_check_interval=0.5",
]


@pytest.mark.slow
@pytest.mark.guard
def test_killed_in_mid_epoch_a_foreign_dataset_resumes_to_the_bit(folder, monkeypatch):
    """Shuffled, with dropout, augmentation, two workers, and a OneCycle schedule."""
    words = ["train", *WORDS, *QUICK]
    assert main([*words, "hydra.run.dir=whole"]) == 0
    whole, job = result_of("whole")
    cut = [*words, "hydra.run.dir=cut"]  # the dense baseline is there already
    kill(cut, at=14)  # 8 steps an epoch; the last checkpoint is of step 12
    assert last(Path("cut"))["global_step"] == 12
    assert main(cut) == 0
    again, _ = result_of("cut")
    for name in ("mse", "loss", "params"):
        assert again["pruned"].get(name) == whole["pruned"].get(name)
    assert again["history"] == whole["history"]
    assert again["levels"] == whole["levels"]
    one, other = last(job), last(Path("cut"))
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, other["state_dict"][name]), name
    states = [saved["optimizer_states"][0]["state"] for saved in (one, other)]
    for index, state in states[0].items():
        assert torch.equal(state["momentum_buffer"], states[1][index]["momentum_buffer"])


def test_inspect_export_and_start_take_runs_of_own_modules(folder, capsys):
    words = [word for word in WORDS if not word.startswith(("start", "data.num_workers"))]
    assert main(["train", *words, "start=scratch", *QUICK]) == 0
    _, job = result_of()
    best = job / "checkpoints" / "best.ckpt"
    assert main(["inspect", str(best)]) == 0
    assert "MACs kept" in capsys.readouterr().out
    assert main(["export", str(best), "--to", "safetensors"]) == 0
    assert best.with_suffix(".safetensors").is_file()
    assert main(["plan", *words, "start=scratch", *QUICK]) == 0
    assert "net.0.weight" in capsys.readouterr().out
    assert main(["sensitivity", str(best)]) == 1
    assert "is no classification of the command" in capsys.readouterr().err
    assert main(["train", *words, f"start={job}", *QUICK, "hydra.run.dir=again"]) == 0
    assert result_of("again")[0]["sparsity"] == pytest.approx(0.9, abs=1e-2)
