# SPDX-License-Identifier: MIT
"""The method that docs/how_to/extending.md adds: its code against NumPy, and resumed in mid-fit."""

import importlib.util
import re
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from hydra.utils import instantiate
from tiny_fits import Net, fit, samples

from regrow import SparsityMonitor
from regrow.data.tensor_loader import BatchLoader

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how_to" / "extending.md"


def blocks(language):
    """The code blocks of the page."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.fixture
def my_app(tmp_path, monkeypatch):
    """The page's Python code as a module `my_app`."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_app.py"
    path.write_text("\n".join(blocks("python")))
    spec = importlib.util.spec_from_file_location("my_app", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "my_app", module)
    spec.loader.exec_module(module)
    return module


def resumable():
    return BatchLoader(*samples().tensors, batch_size=4)


class Weights(pl.Callback):
    """Keeps a copy of all weights before each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        weights = {n: p.detach().numpy().copy() for n, p in pl_module.named_parameters()}
        self.steps.append(weights)


def test_the_method_is_short():
    lines = [line for block in blocks("python") for line in block.splitlines() if line.strip()]
    assert len(lines) < 80


def test_masks_are_the_lowest_averages_of_numpy(my_app):
    """One event: the averages of all steps up to it, ranked over all layers together."""
    pruning = my_app.EmaMagnitudePruning(0.5, decay=0.9, begin="5it", end="5it", every="5it")
    watch = Weights()
    fit(Net(), watch, pruning, max_epochs=2)
    at = pruning.history[0]["step"]
    averages = {}
    for weights in watch.steps[: at + 1]:
        for name in pruning.masks:
            new = np.abs(weights[name])
            old = averages.get(name, new)
            averages[name] = old + np.float32(0.1) * (new - old)
    names = list(pruning.masks)
    flat = np.concatenate([averages[name].ravel() for name in names])
    kept = np.ones(len(flat), bool)
    kept[np.argsort(flat, kind="stable")[: round(0.5 * len(flat))]] = False
    found = np.concatenate([pruning.masks[name].numpy().ravel() for name in names])
    np.testing.assert_array_equal(found, kept)


def test_a_resumed_fit_is_the_uninterrupted_one(my_app, tmp_path):
    def make():
        torch.manual_seed(0)
        return Net(), my_app.EmaMagnitudePruning(0.8, begin="2it", end="20it", every="3it")

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 11:
                trainer.save_checkpoint(tmp_path / "cut.ckpt")
                raise KeyboardInterrupt

    whole, pruning = make()
    fit(whole, pruning, data=resumable(), max_epochs=4)
    with pytest.raises(SystemExit):
        fit(*make(), Stop(), data=resumable(), max_epochs=4)
    again, resumed = make()
    fit(again, resumed, data=resumable(), max_epochs=4, ckpt_path=tmp_path / "cut.ckpt")
    assert resumed.sparsity == pruning.sparsity == pytest.approx(0.8, abs=0.01)
    assert resumed.history == pruning.history
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True)
    )


def test_the_configuration_file_builds_it(my_app):
    [text] = blocks("yaml")
    pruning = instantiate(yaml.safe_load(text))
    assert isinstance(pruning, my_app.EmaMagnitudePruning)
    made = fit(Net(), pruning, SparsityMonitor(), max_epochs=4)
    assert made.callback_metrics["pruning/sparsity"] == pytest.approx(0.9, abs=0.01)
