# SPDX-License-Identifier: MIT
"""Hypothesis strategies for small networks of unusual shapes, and a module that trains them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from torch import nn

NORMS = ("none", "batch", "layer")


@dataclass(frozen=True)
class Dense:
    """Linear layers, one a width; tied ones share a square weight, a last one may be wider."""

    inputs: int
    widths: tuple[int, ...]
    bias: bool = True
    norm: str = "none"
    tied: bool = False
    double: bool = False  # one layer in float64
    embedding: bool = False

    @property
    def shape(self):
        return (self.inputs,)

    def layers(self):
        made, before = [], self.inputs
        if self.embedding:
            made += [_Lookup(nn.Embedding(4, before))]
        for number, width in enumerate(self.widths):
            made.append(nn.Linear(before, width, bias=self.bias))
            if self.norm == "batch":
                made.append(nn.BatchNorm1d(width))
            elif self.norm == "layer":
                made.append(nn.LayerNorm(width))
            made.append(nn.Tanh())
            if self.tied and number == 0:
                one, other = nn.Linear(width, width), nn.Linear(width, width)
                other.weight = one.weight
                made += [one, nn.Tanh(), other]
            before = width
        last = nn.Linear(before, 3)
        return [*made, last.double() if self.double else last]


@dataclass(frozen=True)
class Conv:
    """Convolutions (grouped, depthwise, transposed), then a linear layer."""

    channels: tuple[int, ...]  # multiples of `groups`
    kernel: tuple[int, int]
    groups: int = 1
    bias: bool = True
    norm: str = "none"
    transposed: bool = False
    depthwise: bool = False
    channels_last: bool = False

    @property
    def shape(self):
        return (self.channels[0], 5, 4)

    def layers(self):
        made = []
        for before, width in zip(self.channels, self.channels[1:], strict=False):
            made.append(nn.Conv2d(before, width, self.kernel, groups=self.groups, bias=self.bias))
            if self.norm == "batch":
                made.append(nn.BatchNorm2d(width))
            elif self.norm == "layer":
                made.append(nn.GroupNorm(1, width))
            made.append(nn.ReLU())
            if self.depthwise:
                made.append(nn.Conv2d(width, width, 1, groups=width, bias=self.bias))
            if self.transposed:
                made.append(nn.ConvTranspose2d(width, width, self.kernel, groups=self.groups))
        return [*made, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.channels[-1], 3)]


class _Lookup(nn.Module):
    """Adds a looked-up row, so that an embedding trains beside dense inputs."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, x):
        return x + self.table((x[:, 0] > 0).long()).to(x.dtype)


class Body(nn.Sequential):
    """Layers in turn, each in its own number format."""

    def forward(self, x):
        for layer in self:
            weight = next(layer.parameters(), None)
            x = layer(x if weight is None or torch.is_autocast_enabled("cpu") else x.to(weight))
        return x


class Net(LightningModule):
    """Train a network on three classes, with the same initial weights every time."""

    def __init__(self, shape, make):
        super().__init__()
        torch.manual_seed(0)
        self.body = Body(*shape.layers())
        if getattr(shape, "channels_last", False):
            self.body.to(memory_format=torch.channels_last)
        self.make = make
        self.trained = 0
        self.example_input_array = torch.zeros(2, *shape.shape)

    def forward(self, x):
        return self.body(x)

    def loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]).float(), batch[1])

    def training_step(self, batch, batch_idx):
        self.trained += 1
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self):
        return self.make(self)


_widths = st.integers(1, 9)
dense = st.builds(
    Dense,
    inputs=_widths,
    widths=st.lists(_widths, max_size=3).map(tuple),
    bias=st.booleans(),
    norm=st.sampled_from(NORMS),
    tied=st.booleans(),
    double=st.sampled_from([False, False, False, True]),
    embedding=st.sampled_from([False, False, True]),
)


@st.composite
def conv(draw):
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    sizes = draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
    kernels = [(1, 1), (2, 1), (1, 2)] if len(sizes) > 2 else [(1, 1), (2, 2), (3, 1), (3, 3)]
    return Conv(
        tuple(groups * size for size in sizes),
        draw(st.sampled_from(kernels)),
        groups,
        draw(st.booleans()),
        draw(st.sampled_from(NORMS)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
    )


networks = st.one_of(dense, conv())


def data(shape, batches, size=4):
    """Images and labels, the same every time."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batches * size, *shape.shape, generator=generator)
    return images, images.flatten(1).sum(1).mul(3).long().remainder(3)
