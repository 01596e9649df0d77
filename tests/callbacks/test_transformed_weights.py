# SPDX-License-Identifier: MIT
"""Layers that compute the weight they use, so that zeros of the parameter are not used as zeros."""

import warnings

import pytest
import torch
from lightning.pytorch import LightningModule
from tiny_fits import fit
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from regrow import MagnitudePruning, OneShot


class StandardizedConv(nn.Conv2d):
    """Weight standardisation (Qiao et al. 2019): the kernel used has mean 0 and variance 1."""

    def forward(self, inputs):
        weight = self.weight
        mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(inputs, (weight - mean) / (std + 1e-5), self.bias, self.stride, 1)


class ScaledConv(nn.Conv2d):
    """A computed weight that is zero where the parameter is."""

    def forward(self, inputs):
        return F.conv2d(inputs, self.weight * 2, self.bias, self.stride, 1)


class PlainSubclass(nn.Conv2d):
    def forward(self, inputs):
        return super().forward(inputs)


class FoldedIntoOneCall(nn.Conv2d):
    """Uses the parameter in another shape, so that no place can be compared."""

    def forward(self, inputs):
        doubled = torch.cat([self.weight, self.weight - self.weight.mean()])
        return F.conv2d(inputs, doubled, None, self.stride, 1)[:, : self.out_channels]


class Net(LightningModule):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = kind(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, inputs):
        return self.head(self.second(self.first(inputs).relu()).mean((2, 3)))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def on_train_epoch_end(self):
        if self.current_epoch == 0:
            self.first_epoch = {n: p.detach().clone() for n, p in self.named_parameters()}

    def configure_optimizers(self):
        return optim.SGD(self.parameters(), lr=0.1)


def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 2, 4, 4, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(16) % 2), batch_size=4)


def texts_of(kind, **kw):
    module = Net(kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, MagnitudePruning(0.5, schedule=OneShot(0.5), **kw), data=data(), max_epochs=2)
    return module, [str(w.message) for w in caught if "computes the weight" in str(w.message)]


@pytest.mark.parametrize("kind", [StandardizedConv, FoldedIntoOneCall])
def test_layers_whose_forward_fills_zeros_are_named_once(kind):
    _, texts = texts_of(kind)
    assert len(texts) == 1
    assert "second.weight" in texts[0]
    assert kind.__name__ in texts[0]
    assert "exclude=['second.weight']" in texts[0]


@pytest.mark.parametrize("kind", [nn.Conv2d, PlainSubclass, ScaledConv])
def test_layers_that_use_weights_unchanged_are_not_named(kind):
    assert texts_of(kind)[1] == []


def test_following_the_advice_silences_it():
    assert texts_of(StandardizedConv, exclude=["second.weight"])[1] == []


@pytest.mark.parametrize("kind", [StandardizedConv, PlainSubclass])
def test_checking_does_not_change_training(kind):
    """The same fit without the check: a dense network in a manual loop."""
    module = Net(kind)
    masks = MagnitudePruning(0.5, schedule=OneShot("1ep"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(module, masks, data=data(), max_epochs=2)
    by_hand = Net(kind)
    optimizer = by_hand.configure_optimizers()
    for batch in data():
        optimizer.zero_grad()
        by_hand.training_step(batch, 0).backward()
        optimizer.step()
    for name, theirs in by_hand.named_parameters():
        assert torch.equal(module.first_epoch[name], theirs), name
    assert not module.second._forward_hooks
    assert not module.second._forward_pre_hooks
