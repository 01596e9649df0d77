# SPDX-License-Identifier: MIT
"""Several pruning callbacks in one fit: each enforces its own masks, so the zeros add up."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import (
    ADAM,
    WEIGHTS,
    Net,
    copied,
    fit,
    loader,
    prune_at_start,
    trainer,
    weights,
    zeros,
)

from regrow import AccuracyBudget, ConfigError, MagnitudePruning, OneShot, SparsityMonitor, Table


def test_pruners_of_disjoint_selections_both_reach_their_targets():
    first = MagnitudePruning(0.5, schedule=OneShot("2it"), include="body.0")
    second = MagnitudePruning(
        0.75, schedule=Table({"3it": 0.5, "9it": 0.75}), include="body.2", criterion="taylor"
    )
    module = Net(ADAM)
    fit(module, first, second, SparsityMonitor(), val=loader())
    assert [int((layer.weight == 0).sum()) for layer in module.body[::2]] == [48, 36]
    assert list(first.masks) == ["body.0.weight"]
    assert list(second.masks) == ["body.2.weight"]
    alone = Net(ADAM)
    fit(alone, MagnitudePruning(0.5, schedule=OneShot("2it"), include="body.0"), max_steps=3)
    assert torch.equal(alone.body[0].weight == 0, ~first.masks["body.0.weight"])


def test_zeros_of_overlapping_selections_add_up():
    small = MagnitudePruning(0.5, schedule=OneShot("2it"))
    chance = MagnitudePruning(
        0.5, schedule=OneShot("4it"), criterion="random", include=["body.0", "body.2"]
    )
    module, monitor = Net(ADAM), SparsityMonitor()
    made = fit(module, small, chance, monitor)
    either = sum(int((~(small.masks[n] & chance.masks[n])).sum()) for n in small.masks)
    assert either > WEIGHTS // 2
    assert zeros(module) == either
    assert made.callback_metrics["pruning/sparsity"].item() == pytest.approx(either / WEIGHTS)


def test_equal_selections_raise():
    with pytest.raises(RuntimeError, match="MagnitudePruning"):
        fit(Net(), MagnitudePruning(0.5), MagnitudePruning(0.6, criterion="random"))


def test_both_are_resumed(tmp_path):
    def pair():
        return (
            MagnitudePruning(0.5, schedule=OneShot("2it"), include="body.0"),
            MagnitudePruning(0.75, schedule=Table({"3it": 0.5, "11it": 0.75}), include="body.2"),
        )

    whole = Net(ADAM)
    fit(whole, *pair())
    saved = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(Net(ADAM), *pair(), saved, enable_checkpointing=True)
    resumed = Net(ADAM)
    fit(resumed, *pair(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert all(torch.equal(a, copied(whole)[key]) for key, a in copied(resumed).items())


@pytest.mark.parametrize("first", [True, False])
def test_soft_masks_on_weights_of_another_pruner_raise(first):
    """Weight decay would make moments of the dense values, where the other's say zero."""
    soft = MagnitudePruning(0.5, schedule=OneShot("2it"), soft=True, include="body.0")
    hard = MagnitudePruning(0.5, schedule=OneShot("2it"))
    module = Net(ADAM)
    with pytest.raises(ConfigError, match=r"body\.0\.weight, which another pruning callback"):
        fit(module, *((soft, hard) if first else (hard, soft)))
    assert module.trained == 0
    budget = AccuracyBudget("val/loss", 9.0, mode="min", reference=1.0, recover="1it")
    fit(Net(ADAM), MagnitudePruning(0.5, schedule=OneShot(0), soft=True), budget, val=loader())
    apart = MagnitudePruning(0.5, schedule=OneShot("2it"), include="body.2")
    fit(Net(ADAM), soft := MagnitudePruning(0.5, soft=True, include="body.0"), apart)
    assert (soft.masks.pruned, apart.masks.pruned) == (48, 24)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_unprune_of_both_restores_shared_weights(order):
    module = Net(lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    before = {name: tensor.clone() for name, tensor in weights(module).items()}
    both = [prune_at_start(0.5, include=["body.0"]), prune_at_start(0.5)]
    trainer(*both, max_epochs=1).fit(module, loader())
    for index in order:
        both[index].unprune()
    for name, tensor in weights(module).items():
        assert torch.equal(tensor, before[name])


def test_unprune_of_one_keeps_the_zeros_of_the_other():
    seen = []

    class At(Callback):
        def on_validation_start(self, trainer, module):
            one.unprune()
            mask = other.masks["body.0.weight"]
            seen.append(int(module.body[0].weight[~mask].count_nonzero()))

    one, other = prune_at_start(0.5, include=["body.0"]), prune_at_start(0.5)
    trainer(one, other, At(), max_epochs=1).fit(Net(), loader(), loader(2))
    assert seen == [0]
