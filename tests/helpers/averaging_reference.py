# SPDX-License-Identifier: MIT
"""A NumPy reference for averaged weights, updated alongside Lightning's callbacks."""

import numpy as np
import pytest
from torch.optim.swa_utils import AveragedModel

from regrow.callbacks.core.base import Callback

DECAY = 0.9
F32 = np.float32


def ema(average, weight, count):
    return F32(DECAY) * average + F32(1 - DECAY) * weight


def mean(average, weight, count):
    return average + (weight - average) / F32(count + 1)


def averages():
    """Lightning's module of averages, which 2.5 lacks: there, tests of them are skipped."""
    return pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")


def exponential(decay=DECAY, **kw):
    return averages().EMAWeightAveraging(decay=decay, **kw)


def arrays(module):
    """Its parameters as NumPy copies, by name."""
    return {name: p.detach().numpy().copy() for name, p in module.named_parameters()}


def same(one, other):
    """Whether two sets of arrays are exactly equal, +0.0 and -0.0 being different."""
    assert one.keys() == other.keys()
    return all((one[n].view(np.int32) == other[n].view(np.int32)).all() for n in one)


def copy_of(averaging):
    held = averaging._average_model
    return held.module if isinstance(held, AveragedModel) else held


def nothing(weight):
    return weight.view(np.int32) == 0


class Mirror(Callback):
    """Averages by itself and compares, after each batch, at validation and in each checkpoint.

    Where an event makes a weight +0.0, or no longer +0.0, the average takes what the model has.
    Goes last into the list, so that all others have acted.

    Args:
        averaging: Lightning's callback.
        rule: (average, weight, how many before) -> average.
        updates: (step that was made) -> whether that one counts.
    """

    def __init__(self, averaging, rule=ema, updates=lambda step: True):
        super().__init__()
        self.averaging, self.rule, self.updates = averaging, rule, updates
        self.average, self.pattern, self.count, self.last = {}, {}, 0, 0
        self.events, self.looks, self.saved, self.back = 0, 0, 0, 0

    def on_train_start(self, trainer, pl_module):
        self.last = trainer.global_step
        self.average = arrays(copy_of(self.averaging))
        self.note(pl_module)

    def on_prune_event(self, trainer, pl_module, event):
        self.events += 1
        weights, before = arrays(pl_module), self.pattern
        self.note(pl_module)
        for name, weight in weights.items():
            changed = before[name] != self.pattern[name]
            self.back += int((changed & before[name]).sum())
            self.average[name][changed] = weight[changed]
        self.compare()

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step > self.last and self.updates(self.last):
            self.update(arrays(pl_module))
        self.last = trainer.global_step
        self.note(pl_module)  # what came back at zero has moved
        self.compare()

    def update(self, weights):
        for name, weight in weights.items():
            old = self.average[name]
            self.average[name] = self.rule(old, weight, self.count) if self.count else weight
        self.count += 1

    def on_validation_batch_start(self, trainer, pl_module, *_):
        if not trainer.sanity_checking:
            assert same(arrays(pl_module), self.average)
            self.looks += 1

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        saved = {name: checkpoint["state_dict"][name].numpy() for name in self.average}
        assert same(saved, self.average)
        live = checkpoint["current_model_state"]
        for name, pruned in self.pattern.items():
            assert not live[name].numpy()[pruned].view(np.int32).any()
        self.saved += 1

    def compare(self):
        found = arrays(copy_of(self.averaging))
        assert same(found, self.average)
        for name, pruned in self.pattern.items():
            assert not found[name][pruned].view(np.int32).any()

    def note(self, module):
        """Which weights are +0.0 now: biases begin somewhere else, and no kept weight is."""
        self.pattern = {name: nothing(weight) for name, weight in arrays(module).items()}


def placed(order, averaging, *pruning):
    """The averaging callback before or behind the others."""
    return (averaging, *pruning) if order == "before" else (*pruning, averaging)


def zeros_of(module):
    return sum(int(nothing(a).sum()) for n, a in arrays(module).items() if n.endswith("weight"))
