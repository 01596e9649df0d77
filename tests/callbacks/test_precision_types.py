# SPDX-License-Identifier: MIT
"""Fits with other dtypes than float32: one for all, or several in one model."""

import copy
from functools import partial

import pytest
import torch
from float_watch import AnyWatch, pruned
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import ADAM, SGD, WEIGHTS, Events, Net, copied, equal, fit, loader, read, weights
from torch import nn, optim

from regrow import AccuracyBudget, DynamicSparseTraining, MagnitudePruning, Regrow, Rewind, Table

EVENTS = Table({"3it": 0.5, "11it": 0.8})
PRECISIONS = {
    "bf16-mixed": torch.float32,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
    "64-true": torch.float64,
}
MAKES = {
    "sgd": SGD,
    "adam": partial(optim.Adam, lr=0.01, eps=1e-4),  # 1e-8 is 0 in float16
    "fused": partial(optim.AdamW, lr=0.01, eps=1e-4, fused=True),
    "nadam": partial(optim.NAdam, lr=0.01, eps=1e-4),
    "factors": partial(optim.Adafactor, lr=0.05),
}


class Mixed(Net):
    """The first layer is of one type, the last of another; activations are cast between them."""

    types = (torch.bfloat16, torch.float64)

    def __init__(self, make=ADAM):
        super().__init__(make)
        for layer, dtype in zip((self.body[0], self.body[2]), self.types, strict=True):
            layer.to(dtype)

    def loss(self, batch):
        hidden = self.body[:2](batch[0].to(self.types[0]))
        return nn.functional.cross_entropy(self.body[2](hidden.to(self.types[1])), batch[1])


class Half(Mixed):
    types = (torch.float32, torch.float16)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("make", ["sgd", "fused", "factors"])
def test_pruned_weights_are_zero_in_every_dtype(precision, make, tmp_path):
    watch, module = AnyWatch(), Net(MAKES[make])
    saved = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    pruning = MagnitudePruning(0.8, schedule=EVENTS)
    fit(
        module, watch, pruning, saved, val=loader(2), precision=precision, enable_checkpointing=True
    )
    assert watch.steps == [3, 11]
    assert pruned(module) == round(0.8 * WEIGHTS)
    assert {p.dtype for p in weights(module).values()} == {PRECISIONS[precision]}
    for path in tmp_path.glob("*.ckpt"):
        assert read(path)["state_dict"]["body.0.weight"].dtype == PRECISIONS[precision]


@pytest.mark.parametrize("net", [Mixed, Half])
@pytest.mark.parametrize("make", ["sgd", "fused", "factors"])
def test_layers_may_have_different_dtypes(net, make):
    """One ranking over both: NumPy's, on the exact values."""
    watch, module = AnyWatch(), net(MAKES[make])
    pruning = MagnitudePruning(0.8, schedule=EVENTS)
    fit(module, watch, pruning, val=loader(2))
    assert watch.steps == [3, 11]
    assert pruned(module) == round(0.8 * WEIGHTS)
    assert [p.dtype for p in weights(module).values()] == [*net.types]


OTHERS = {
    "soft": lambda: [MagnitudePruning(0.8, schedule=EVENTS, soft=True)],
    "taylor": lambda: [MagnitudePruning(0.8, schedule=EVENTS, criterion="taylor")],
    "movement": lambda: [MagnitudePruning(0.8, schedule=EVENTS, criterion="movement")],
    "rigl": lambda: [DynamicSparseTraining(0.8, every="3it", end=0.9)],
    "snfs": lambda: [DynamicSparseTraining(0.8, every="3it", end=0.9, grow="momentum")],
    "regrow": lambda: [MagnitudePruning(0.8, schedule=EVENTS), Regrow("6it", 0.2, by="gradient")],
    "rewind": lambda: [MagnitudePruning(0.8, schedule=EVENTS), Rewind("2it")],
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize(
    ("net", "precision"),
    [
        (Mixed, "32-true"),
        pytest.param(Net, "bf16-true", marks=pytest.mark.slow),
        pytest.param(Net, "16-true", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(kind, net, precision, tmp_path):
    """All stored values keep their dtype through a checkpoint."""
    make = partial(optim.SGD, lr=0.05, momentum=0.9)
    whole, callbacks = net(make), OTHERS[kind]()
    saved = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    fit(whole, *callbacks, saved, enable_checkpointing=True, precision=precision)
    again, others = net(make), OTHERS[kind]()
    fit(again, *others, ckpt_path=tmp_path / "step=8.ckpt", precision=precision)
    assert equal(copied(again), copied(whole))
    assert equal(dict(others[0].masks), dict(callbacks[0].masks))
    assert callbacks[0].pruner.pruned == round(0.8 * WEIGHTS)
    for name, mask in others[0].masks.items():
        gone = weights(again)[name][~mask]
        assert not gone.any()
        assert not gone.signbit().any()


@pytest.mark.parametrize("make", ["adam", "nadam"])
def test_a_budget_rolls_back_low_precision_bit_exactly(make):
    """Scalars of the optimizer are float32 beside bfloat16 weights, and stay so."""
    held = {}

    class Look(Events):
        def on_train_batch_start(self, trainer, pl_module, *_):
            state = trainer.optimizers[0].state_dict()["state"]
            held[trainer.global_step] = copied(pl_module), copy.deepcopy(state)

    pruning = MagnitudePruning(0.9, schedule=Table({"8it": 0.9}))
    budget = AccuracyBudget("val/loss", 1e-9, mode="min", reference=-1.0)
    module = Net(MAKES[make])
    fit(module, Look(), budget, pruning, val=loader(2), max_epochs=3, precision="bf16-true")
    assert pruning.history[0]["kind"] == "rollback"
    assert equal(held[8], held[16])
    assert not equal(held[8], held[15])


@pytest.mark.parametrize("precisions", [("32-true", "bf16-true"), ("bf16-true", "64-true")])
def test_second_fit_in_another_precision_keeps_the_masks(precisions):
    module, pruning = Net(ADAM), MagnitudePruning(0.8, schedule=Table({"3it": 0.8}))
    fit(module, pruning, max_epochs=1, precision=precisions[0])
    masks = {name: mask.clone() for name, mask in pruning.masks.items()}
    fit(module, pruning, max_epochs=1, precision=precisions[1])
    assert equal(dict(pruning.masks), masks)
    assert pruned(module) == round(0.8 * WEIGHTS)
    pruning.unprune()
    assert pruned(module) == 0
