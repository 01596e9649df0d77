# SPDX-License-Identifier: MIT
"""Networks that the tests of exported files write and read."""

import torch
from torch import nn


class Net(nn.Module):
    """Convolutions with batch norm whose statistics are not the fresh ones."""

    def __init__(self, width=16):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


class Tied(nn.Module):
    """Attention over token ids, and one weight under two names."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids, weight=None):
        x = self.layer(self.embed(ids)) * weight[..., None]
        return {"logits": self.head(x), "hidden": x}


def trained_net():
    """A `Net` whose batch norm has seen three batches."""
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 6, 6) + 1)
    return model


def expected(model, *args, **kwargs):
    model.eval()
    with torch.no_grad():
        return model(*args, **kwargs)
