# SPDX-License-Identifier: MIT
"""Layers that are only made in `configure_model`: there is nothing to see in `setup`."""

import pytest
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import ADAM, BATCHES, WEIGHTS, Net, copied, equal, fit, loader, samples, zeros
from torch import nn

from regrow import ConfigError, DynamicSparseTraining, MagnitudePruning, OneShot, Table
from regrow.data.tensor_loader import BatchLoader

LEVELS = Table({"3it": 0.5, "11it": 0.8})


class Later(Net):
    """The layers of `Net`, made by the Trainer."""

    def __init__(self):
        LightningModule.__init__(self)
        self.make, self.body, self.trained = ADAM, None, 0

    def configure_model(self):
        if self.body is None:
            self.body = Net().body


def pruners():
    return {
        "magnitude": MagnitudePruning(0.8, schedule=LEVELS),
        "taylor": MagnitudePruning(0.8, schedule=LEVELS, criterion="taylor"),
        "by name": MagnitudePruning(0.8, schedule=LEVELS, include=["body.0", "body.2"]),
        "rigl": DynamicSparseTraining(0.8, every="3it"),
        "tickets": MagnitudePruning(0.8, schedule=LEVELS, rewind="2it"),
    }


def run(module, name, *callbacks, **kw):
    data = BatchLoader(*samples().tensors, batch_size=4)
    pruning = pruners()[name]
    fit(module, pruning, *callbacks, data=data, **kw)
    return copied(module), dict(pruning.masks), pruning.history


@pytest.mark.parametrize("name", pruners())
def test_layers_created_in_configure_model_are_pruned_and_resumed(name, tmp_path):
    saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = run(Later(), name, saves, enable_checkpointing=True)
    assert equal(whole, run(Net(ADAM), name))
    for step in (2, 6, BATCHES, 12):
        assert equal(whole, run(Later(), name, ckpt_path=tmp_path / f"step={step}.ckpt")), step


def test_misspelt_layer_raises_before_training():
    module = Later()
    with pytest.raises(ConfigError, match=r"body\.0"):
        fit(module, MagnitudePruning(0.8, schedule=OneShot(0), include="bodi.0"))
    assert module.trained == 0


def test_layer_added_for_a_second_fit_stays_dense_unless_included():
    """Parameters are selected at the first fit; `attach` selects again."""

    class Growing(Later):
        wide = False

        def configure_model(self):
            super().configure_model()
            if self.wide and len(self.body) == 3:
                self.body.append(nn.Linear(3, 3))

    module, pruning = Growing(), MagnitudePruning(0.5, schedule=OneShot(0))
    fit(module, pruning)
    module.wide = True
    fit(module, pruning)
    assert list(pruning.masks) == ["body.0.weight", "body.2.weight"]
    assert zeros(module) == WEIGHTS // 2
    fresh = MagnitudePruning(0.75, schedule=OneShot(0))
    fit(module, fresh, val=loader())
    assert zeros(module) == round(0.75 * (WEIGHTS + 9))
