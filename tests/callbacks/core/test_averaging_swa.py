# SPDX-License-Identifier: MIT
"""Stochastic weight averaging: per epoch, swapped in at the end, with a batch-norm epoch."""

import pytest
import torch
from averaging_reference import Mirror, arrays, copy_of, mean, nothing, placed, same, zeros_of
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging
from rewinding_fits import Normed
from tiny_fits import ADAM, BATCHES, SGD, WEIGHTS, Events, Net, fit, loader

from regrow import (
    AccuracyBudget,
    DynamicSparseTraining,
    Exponential,
    Linear,
    MagnitudePruning,
    Regrow,
    Rewind,
    Table,
)
from regrow.utils.errors import ConfigError

ORDERS = pytest.mark.parametrize("order", ["before", "behind"])
EPOCHS = 6


def swa(start=2, **kw):
    return StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=start, annealing_epochs=1, **kw)


class ByEpoch(Mirror):
    """Lightning's callback averages when an epoch starts; what it saves is its own state."""

    def __init__(self, averaging, start=1):
        super().__init__(averaging, mean, lambda step: False)
        self.start = start

    def on_train_epoch_start(self, trainer, pl_module):
        if self.start <= trainer.current_epoch < EPOCHS:
            self.update(arrays(pl_module))
        self.compare()

    def on_validation_batch_start(self, trainer, pl_module, *_):
        for name, pruned in self.pattern.items():  # the module stays what it is
            assert not dict(pl_module.named_parameters())[name].detach().numpy()[pruned].any()
        self.looks += 1

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        state = checkpoint["callbacks"]["StochasticWeightAveraging"]["average_model_state"]
        assert same({n: state[n].numpy() for n in self.average}, self.average)
        self.saved += 1


WAYS = {
    "gradual": lambda: (MagnitudePruning(0.8, schedule=Table({"2ep": 0.3, "30it": 0.8})),),
    "soft": lambda: (
        MagnitudePruning(schedule=Table({"20it": 0.3, "30it": 0.32, "41it": 0.33}), soft=True),
    ),
    "rigl": lambda: (DynamicSparseTraining(0.7, every="5it", end=1.0, init="he"),),
    "regrow": lambda: (
        MagnitudePruning(schedule=Table({"10it": 0.7})),
        Regrow(at="25it", fraction=0.4),
    ),
}


@ORDERS
@pytest.mark.parametrize("way", WAYS)
def test_the_average_equals_a_numpy_reference(way, order, tmp_path):
    averaging, module = swa(), Net(SGD)
    mirror = ByEpoch(averaging)
    pruning = WAYS[way]()
    made = fit(
        module, *placed(order, averaging, *pruning), mirror, val=loader(2), max_epochs=EPOCHS
    )
    assert mirror.events > 1
    assert mirror.looks > 4
    assert mirror.count == EPOCHS - 1
    assert (mirror.back > 0) == (way != "gradual")
    assert same(arrays(module), mirror.average)  # Lightning has swapped it in
    assert zeros_of(module) == round(pruning[0].sparsity * WEIGHTS)
    made.save_checkpoint(tmp_path / "end.ckpt")
    assert mirror.saved == 1


class LastEpoch(Callback):
    """The module when the epoch of the batch norms begins, and which epochs there were."""

    def __init__(self):
        self.epochs, self.weights = [], {}

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append(trainer.current_epoch)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == EPOCHS and batch_idx == 0:
            self.weights = arrays(pl_module)


@ORDERS
def test_batch_norm_epoch_uses_the_masked_average(order):
    """The weights of that epoch are the average; fractions are those of the trained epochs."""
    averaging, module = swa(), Normed(ADAM, steps=1000)
    mirror, last, events = ByEpoch(averaging), LastEpoch(), Events()
    pruning = MagnitudePruning(0.8, schedule=Linear(0.25, 0.75, 0.25))
    fit(module, *placed(order, averaging, pruning), mirror, last, events, max_epochs=EPOCHS)
    assert last.epochs == [*range(EPOCHS + 1)]
    assert same(last.weights, mirror.average)
    assert zeros_of(module) >= round(0.8 * WEIGHTS)
    for name, kept in pruning.masks.items():
        assert (nothing(arrays(module)[name]) == ~kept.numpy()).all()
    plain = Events()
    again = MagnitudePruning(0.8, schedule=Linear(0.25, 0.75, 0.25))
    fit(Normed(ADAM, steps=1000), again, plain, max_epochs=EPOCHS)
    assert events.seen == plain.seen
    assert events.steps == [24, 36]


def test_average_not_swapped_in_is_masked():
    averaging, module = swa(), Net(SGD)
    mirror = ByEpoch(averaging)
    pruning = MagnitudePruning(0.8, schedule=Table({"10it": 0.8}))
    fit(module, averaging, pruning, mirror, max_epochs=EPOCHS, max_steps=3 * BATCHES)
    assert zeros_of(module) == zeros_of(copy_of(averaging)) == round(0.8 * WEIGHTS)
    assert not same(arrays(module), arrays(copy_of(averaging)))


@ORDERS
@pytest.mark.parametrize(
    ("other", "name"),
    [
        (lambda: AccuracyBudget("val/loss", 0.1, mode="min", recover="1it"), "AccuracyBudget"),
        (lambda: Rewind("1it"), "Rewind"),
    ],
)
def test_callbacks_that_restore_weights_raise(other, name, order):
    """Lightning's callback puts a schedule of its own in place, and counts epochs."""
    module = Net()
    pruning = MagnitudePruning(0.75, schedule=Exponential(0.5, every="1ep"))
    message = f"{name} restores earlier weights.*write WeightAveraging"
    with pytest.raises(ConfigError, match=message):
        fit(module, *placed(order, swa(), pruning, other()), val=loader(2), max_epochs=EPOCHS)
    assert module.trained == 0


def test_layers_created_after_the_copy_raise():
    class Late(Net):
        def configure_model(self):
            if len(self.body) == 3:
                self.body.append(torch.nn.Linear(3, 3))

    module = Late()
    with pytest.raises(ConfigError, match=r"copied the module before body\.3\.weight was"):
        fit(module, swa(), MagnitudePruning(0.5, schedule=Table({"1it": 0.5})))
    assert module.trained == 0
