# SPDX-License-Identifier: MIT
"""Pruned weights are zero in `Trainer.fit`, for every optimizer of torch."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import WEIGHTS, Net, Watch, fit, loader, zeros
from torch import optim

from regrow import MagnitudePruning, OneShot, Table

PLAIN = {
    name: partial(kind, lr=0.01)
    for name, kind in vars(optim).items()
    if isinstance(kind, type)
    and issubclass(kind, optim.Optimizer)
    and kind not in (optim.Optimizer, optim.SparseAdam)
}
VARIANTS = {
    "SGD momentum": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "SGD nesterov foreach": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "SGD fused": partial(optim.SGD, lr=0.1, momentum=0.9, fused=True),
    "Adam foreach": partial(optim.Adam, lr=0.01, foreach=True, amsgrad=True, weight_decay=0.1),
    "Adam fused": partial(optim.Adam, lr=0.01, fused=True),
    "AdamW fused": partial(optim.AdamW, lr=0.01, fused=True, amsgrad=True),
    "RMSprop": partial(optim.RMSprop, lr=0.01, momentum=0.9, centered=True, weight_decay=0.1),
    "RMSprop foreach": partial(optim.RMSprop, lr=0.01, momentum=0.9, foreach=True),
    "NAdam decoupled": partial(optim.NAdam, weight_decay=0.1, decoupled_weight_decay=True),
    "Rprop foreach": partial(optim.Rprop, foreach=True),
    "Adagrad filled": partial(optim.Adagrad, initial_accumulator_value=0.1, fused=True),
    "LBFGS wolfe": partial(optim.LBFGS, max_iter=3, line_search_fn="strong_wolfe"),
}


def matrices(make, parameters):
    return make([p for p in parameters if p.dim() == 2])


@pytest.mark.parametrize("name", [*PLAIN, *VARIANTS])
def test_pruned_weights_stay_zero_under_every_optimizer(name, tmp_path):
    make = (PLAIN | VARIANTS)[name]
    if name == "Muon":
        make = partial(matrices, make)
    watch, pruning = Watch(), MagnitudePruning(0.8, schedule=Table({"3it": 0.5, "11it": 0.8}))
    module, saved = Net(make), ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    before = module.body[0].bias.detach().clone()
    fit(module, watch, pruning, saved, val=loader(), enable_checkpointing=True)
    assert watch.steps == [3, 11]
    assert zeros(module) == round(0.8 * WEIGHTS)
    assert watch.looks > 16 * 2
    assert len(list(tmp_path.glob("*.ckpt"))) == 8
    assert name == "Muon" or not torch.equal(module.body[0].bias, before), "it trains"


@pytest.mark.parametrize("name", ["SGD momentum", "Adam fused", "AdamW", "RMSprop foreach"])
@pytest.mark.parametrize("how", ["norm", "value"])
def test_pruned_weights_stay_zero_with_accumulation_and_clipping(name, how):
    watch, pruning = Watch(), MagnitudePruning(0.8, schedule=OneShot("2it"))
    module = Net((PLAIN | VARIANTS)[name])
    fit(
        module,
        watch,
        pruning,
        accumulate_grad_batches=3,
        gradient_clip_val=0.1,
        gradient_clip_algorithm=how,
        max_epochs=3,
    )
    assert watch.seen == [(2, round(round(0.8 * WEIGHTS) / WEIGHTS, 6))]
    assert zeros(module) == round(0.8 * WEIGHTS)
