# SPDX-License-Identifier: MIT
"""Pruning while torchao's fake quantization trains: Linear layers, and exported convolutions."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import ADAM, Net, copied, equal, fit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from regrow import MagnitudePruning, Table

quantization = pytest.importorskip("torchao.quantization")
qat = pytest.importorskip("torchao.quantization.qat")
pt2e = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
LEVELS = Table({"3it": 0.5, "11it": 0.8})
IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Linear(Net):
    """Weights in int8 for each output, inputs in int8 for each example."""

    data = None

    def __init__(self):
        super().__init__(ADAM)
        inputs = qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
        weights = qat.IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True)
        config = qat.QATConfig(activation_config=inputs, weight_config=weights, step="prepare")
        quantization.quantize_(self.body, config)

    def pruning(self):
        return MagnitudePruning(0.8, schedule=LEVELS)

    def convert(self):
        base = quantization.Int8DynamicActivationInt8WeightConfig()
        quantization.quantize_(self.body, qat.QATConfig(base, step="convert"))
        return {f"body.{i}.weight": self.body[i].weight.qdata for i in (0, 2)}


class Convolutional(Net):
    """Convolutions with batch norm and a Linear layer, traced and prepared by pt2e."""

    data = DataLoader(TensorDataset(IMAGES, torch.arange(32) % 3), batch_size=4)

    def __init__(self):
        super().__init__(ADAM)
        from torchao.quantization.pt2e import allow_exported_model_train_eval
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        first = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        second = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        net = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(64, 3))
        batch = ({0: torch.export.Dim("batch")},)
        traced = torch.export.export(net, (IMAGES[:4],), dynamic_shapes=batch).module()
        config = x86.get_default_x86_inductor_quantization_config(is_qat=True)
        self.body = pt2e.prepare_qat_pt2e(traced, x86.X86InductorQuantizer().set_global(config))
        allow_exported_model_train_eval(self.body)

    def pruning(self):
        """Modules of the traced network are not layers, so that weights are named."""
        return MagnitudePruning(0.8, schedule=LEVELS, include=["0.weight", "3.weight", "7.weight"])

    def convert(self):
        tensors = pt2e.convert_pt2e(self.eval().body).state_dict().values()
        by_shape = {t.shape: t for t in tensors if t.dtype == torch.int8}
        return {
            f"body.{i}.weight": by_shape[self.get_parameter(f"body.{i}.weight").shape]
            for i in (0, 3, 7)
        }


KINDS = [Linear, pytest.param(Convolutional, marks=pytest.mark.slow)]


class ZeroAfterEveryStep(Callback):
    steps = 0

    def __init__(self, pruning):
        self.pruning = pruning

    def on_train_batch_end(self, trainer, pl_module, *args):
        for name, mask in self.pruning.masks.items():
            assert not pl_module.get_parameter(name)[~mask].any()
            self.steps += 1


@pytest.mark.parametrize("kind", KINDS)
def test_masks_hold_under_fake_quantization_and_zeros_are_zero_in_int8(kind):
    module = kind()
    pruning = module.pruning()
    watch = ZeroAfterEveryStep(pruning)
    fit(module, pruning, watch, data=module.data)
    assert watch.steps
    assert pruning.sparsity == pytest.approx(0.8, abs=0.01)
    masks = {name: mask.clone() for name, mask in pruning.masks.items()}
    found = module.convert()
    assert {*masks} == {*found}
    for name, mask in masks.items():
        assert found[name].dtype == torch.int8
        assert not found[name][~mask].any()
        assert found[name][mask].any()


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_fit_with_fake_quantization_is_the_uninterrupted_one(kind, tmp_path):
    whole = kind()
    saved = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=8, save_top_k=-1)
    fit(whole, whole.pruning(), saved, data=whole.data, enable_checkpointing=True)
    resumed = kind()
    fit(resumed, resumed.pruning(), data=resumed.data, ckpt_path=tmp_path / "step=8.ckpt")
    assert equal(copied(whole), copied(resumed))
