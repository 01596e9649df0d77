# SPDX-License-Identifier: MIT
"""A network, its learning-rate schedule and a pruner for the tests of rewinding."""

from functools import partial

from lightning.pytorch import Callback
from tiny_fits import BATCHES, SGD, WEIGHTS, Net, copied
from torch import nn, optim

from regrow import Exponential, MagnitudePruning

ROUNDS = partial(Exponential, rate=0.5, every="1ep")  # 50, 75, 87.5 %
KEPT = [round(s * WEIGHTS) for s in (0.5, 0.75, 0.875)]
BACK = 3


class Normed(Net):
    """With batch normalisation, and a schedule over one round of eight steps."""

    def __init__(self, make=SGD, steps=BATCHES):
        super().__init__(make)
        self.body.insert(1, nn.BatchNorm1d(16))
        self.steps = steps

    def configure_optimizers(self):
        optimizer = self.make(self.parameters())
        scheduler = optim.lr_scheduler.LambdaLR(optimizer, partial(falling, self.steps))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def falling(total, step):
    return max(0.0, 1 - step / total)


def pruning(rewind=f"{BACK}it", **kw):
    return MagnitudePruning(0.875, schedule=ROUNDS(), rewind=rewind, **kw)


class Looks(Callback):
    """The module's state after each event and before the step that is rewound to."""

    def __init__(self, back=BACK):
        self.back, self.start, self.after = back, None, []

    def on_train_batch_start(self, trainer, pl_module, *_):
        if trainer.global_step == self.back:
            self.start = copied(pl_module)
        if trainer.global_step and trainer.global_step % BATCHES == 0:
            self.after.append(copied(pl_module))
