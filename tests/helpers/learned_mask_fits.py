# SPDX-License-Identifier: MIT
"""A wide network for learned masks, and a record of the state before hardening."""

import torch
from tiny_fits import ADAM, Events, Net, weights, zeros
from torch import nn


class Wide(Net):
    """6 x 300 + 300 x 20 + 20 x 3 weights: half a point of them is 39."""

    def __init__(self, make=ADAM):
        super().__init__(make)
        torch.manual_seed(0)
        sizes = nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 20), nn.Tanh(), nn.Linear(20, 3)
        self.body = nn.Sequential(*sizes)


TOTAL = 6 * 300 + 300 * 20 + 20 * 3


class Before(Events):
    """What was learned when the masks are about to be hardened."""

    def before_prune_event(self, trainer, pl_module, pruner):
        self.zeros = zeros(pl_module)
        learner = pruner.pruner.learner
        learner.update_penalty(trainer.global_step - 1)
        self.share, self.effective = learner.window.share, dict(weights(pl_module))
        self.effective = {name: weight.clone() for name, weight in self.effective.items()}
