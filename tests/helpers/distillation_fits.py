# SPDX-License-Identifier: MIT
"""Students, a teacher and a `Distill` callback for tests of distillation in fits."""

import torch
from tiny_fits import Net
from torch import nn

from regrow import Distill

TEMPERATURE, WEIGHT = 3.0, 0.7


class Called(Net):
    """Calls itself, as most modules do."""

    def forward(self, inputs):
        return self.body(inputs)

    def loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class Says(Net):
    """Returns its logits beside the loss."""

    def training_step(self, batch, batch_idx):
        logits = self.body(batch[0])
        return {"loss": nn.functional.cross_entropy(logits, batch[1]), "out": logits, "n": 1}


def teacher():
    return Net(seed=5).body


def distill(given=None, **kw):
    return Distill(
        teacher() if given is None else given, temperature=TEMPERATURE, weight=WEIGHT, **kw
    )


def assert_weights_close(module, expected, tolerance=1e-6):
    for name, value in expected.items():
        torch.testing.assert_close(module.state_dict()[name], value, atol=tolerance, rtol=0)
