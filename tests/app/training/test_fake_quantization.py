# SPDX-License-Identifier: MIT
"""callbacks=int8: weights and inputs of Linear layers are rounded while a recipe trains."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from short_recipe_fits import job as one_job
from short_recipe_fits import short_fit
from tiny_fits import copied, equal
from torch.nn.functional import linear

from regrow.app.config.hashing import config_hash
from regrow.app.training.build import (
    build_callbacks,
    build_data,
    build_module,
    build_pruning,
    without_teacher,
)
from regrow.app.training.preflight import set_up
from regrow.utils.errors import ConfigError

pytest.importorskip("torchao")
pytestmark = pytest.mark.filterwarnings("ignore:.*")
INT8 = ("recipe=digits/int8", "data.batch_size=8", "pruning.begin=2it", "pruning.end=8it")


def rounded(x, weight, bias):
    """Weights to `s round(w / s)` by row, inputs to `t (round(x / t) + z)`: Jacob et al. 2018."""
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    step = ((high - low) / 255).clamp(min=1e-12)
    offset = (-128 - (low / step).round()).clamp(-128, 127)
    inputs = (((x / step).round() + offset).clamp(-128, 127) - offset) * step
    scale = weight.abs().amax(1, keepdim=True) / 127.5
    return linear(inputs, (weight / scale).round().clamp(-128, 127) * scale, bias)


class Watch(Callback):
    """Compares each layer of each training step with `rounded`, and masks with zeros."""

    def __init__(self):
        self.seen = 0

    def on_train_start(self, trainer, pl_module):
        for layer in (m for m in pl_module.modules() if isinstance(m, torch.nn.Linear)):
            layer.register_forward_hook(self.compare)

    def compare(self, layer, args, out):
        with torch.no_grad():
            expected = rounded(args[0], layer.weight, layer.bias)
        # a few inputs are half-way between two steps
        assert (out - expected).abs().max() < 0.02 * expected.abs().max()
        assert (out - expected).abs().median() < 1e-5
        assert not torch.allclose(out, linear(args[0], layer.weight, layer.bias), rtol=0, atol=1e-6)
        self.seen += 1

    def on_train_batch_end(self, trainer, pl_module, *args):
        masks = trainer.callbacks[0].masks
        assert all(not pl_module.get_parameter(n)[~mask].any() for n, mask in masks.items())


def run(folder, *more, **given):
    """Ten steps of the recipe with further callbacks; returns the Trainer."""
    cfg = one_job(*INT8)
    pruning, data = build_pruning(cfg), build_data(cfg)
    callbacks = [*build_callbacks(cfg, pruning), *more]
    settings = {"logger": False, "enable_progress_bar": False, "max_steps": 10}
    trainer = Trainer(accelerator="cpu", callbacks=callbacks, default_root_dir=folder, **settings)
    trainer.fit(build_module(cfg, data), datamodule=data, **given)
    return trainer


def test_the_recipe_trains_rounded_layers_whose_masked_weights_stay_zero(tmp_path):
    watch = Watch()
    trainer = run(tmp_path, watch)
    assert watch.seen >= 3 * 10
    assert trainer.callbacks[0].sparsity == pytest.approx(0.9, abs=1e-3)


def test_a_resumed_fit_is_the_uninterrupted_one(tmp_path):
    saved = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    whole = run(tmp_path, saved)
    again = run(tmp_path, ckpt_path=tmp_path / "step=5.ckpt")
    assert equal(copied(whole.lightning_module), copied(again.lightning_module))


def test_checkpoints_are_those_of_the_float_network(tmp_path):
    cfg = one_job(*INT8)
    trainer, _ = short_fit(cfg, tmp_path)
    trained = trainer.lightning_module.state_dict()
    assert {*trained} == {*build_module(cfg, build_data(cfg)).state_dict()}


def test_the_dense_baseline_is_that_of_the_float_recipe(job):
    of_int8, of_float = (
        without_teacher(job(f"recipe=fashion_mnist/lenet5_{name}")) for name in ("int8", "gmp")
    )
    assert "int8" not in of_int8.callbacks
    assert config_hash(of_int8) == config_hash(of_float)


def test_a_network_without_linear_layers_is_refused_before_it_trains(job):
    cfg = job("recipe=digits/gmp", "callbacks=int8")
    layers = [
        {"_target_": "torch.nn.Conv2d", "_args_": [1, 10, 8]},
        {"_target_": "torch.nn.Flatten"},
    ]
    cfg.model = {"_target_": "torch.nn.Sequential", "_args_": layers}
    with pytest.raises(ConfigError, match="the network has none: write callbacks=default"):
        set_up(cfg, build_pruning(cfg))


def test_torchao_is_asked_for_before_the_dense_network_trains(job, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cfg = job("recipe=digits/gmp", "callbacks=int8")
    with pytest.raises(ConfigError, match=r'needs torchao: pip install "regrow\[int8\]"'):
        set_up(cfg, build_pruning(cfg))
