# SPDX-License-Identifier: MIT
"""LBFGS, which runs the network several times a step and keeps flat vectors of its history."""

from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import (
    BATCHES,
    WEIGHTS,
    Net,
    Watch,
    copied,
    equal,
    fit,
    magnitude_masks,
    read,
    samples,
    zeros,
)
from tiny_fits import weights as prunable
from torch import nn, optim

from regrow import MagnitudePruning, OneShot, Table
from regrow.data.tensor_loader import BatchLoader

SEARCHES = [None, "strong_wolfe"]


def lbfgs(search=None):
    return partial(optim.LBFGS, lr=0.1, max_iter=4, history_size=3, line_search_fn=search)


def data():
    return BatchLoader(*samples().tensors, batch_size=4)


@pytest.mark.parametrize("search", SEARCHES)
def test_equals_lbfgs_on_the_masked_function(search):
    """The reference multiplies weights by 0 and 1 in its forward pass."""
    module, pruning = Net(lbfgs(search)), MagnitudePruning(0.8, schedule=OneShot(0))
    fit(module, pruning, data=data(), max_epochs=2)
    plain = Net()
    masks = magnitude_masks({n: w.clone() for n, w in prunable(plain).items()}, 115)
    assert equal(masks, dict(pruning.masks))
    for name, w in prunable(plain).items():
        w.mul_(masks[name])
    optimizer, layers = lbfgs(search)(plain.parameters()), plain.body

    def loss(batch):
        hidden = batch[0]
        for k in (0, 2):
            weight = layers[k].weight * masks[f"body.{k}.weight"]
            hidden = nn.functional.linear(hidden, weight, layers[k].bias)
            hidden = hidden.tanh() if k == 0 else hidden
        return nn.functional.cross_entropy(hidden, batch[1])

    def closure(batch):
        optimizer.zero_grad()
        value = loss(batch)
        value.backward()
        return value

    for _ in range(2):
        for batch in data():
            optimizer.step(partial(closure, batch))
    for name, p in module.named_parameters():
        torch.testing.assert_close(p, dict(plain.named_parameters())[name], rtol=1e-5, atol=1e-6)


PAIRS = [(None, "movement"), ("strong_wolfe", "magnitude"), ("strong_wolfe", "movement")]
MORE = [pytest.param(*pair, marks=pytest.mark.slow) for pair in [*PAIRS, (None, "taylor")]]


@pytest.mark.parametrize(
    ("search", "criterion"), [(None, "magnitude"), ("strong_wolfe", "taylor"), *MORE]
)
def test_resumed_run_is_the_uninterrupted_run(search, criterion, tmp_path):
    def run(*callbacks, **kw):
        pruning = MagnitudePruning(
            0.8, schedule=Table({"3it": 0.4, "11it": 0.8}), criterion=criterion
        )
        module = Net(lbfgs(search))
        made = fit(module, pruning, *callbacks, data=data(), max_epochs=3, **kw)
        assert zeros(module) == round(0.8 * WEIGHTS)
        made.save_checkpoint(tmp_path / "end.ckpt")
        end = read(tmp_path / "end.ckpt")
        return end["state_dict"], end["optimizer_states"], end["callbacks"][pruning.state_key]

    saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = run(saves, enable_checkpointing=True)
    for step in (2, 3, 6, BATCHES, 11, 20):
        assert equal(whole, run(ckpt_path=tmp_path / f"step={step}.ckpt")), step


@pytest.mark.parametrize("search", SEARCHES)
def test_taylor_ranks_the_gradients_of_the_first_closure(search):
    """At the first of a step's closures the weights are those from before it."""

    class Seen(Watch):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if not self.seen:
                self.dense = {
                    name: (p.detach() * p.grad).abs() for name, p in pl_module.named_parameters()
                }

        def on_prune_event(self, trainer, pl_module, event):
            self.seen.append(event.step)
            scores = {name: self.dense[name] for name in prunable(pl_module)}
            self.kept = magnitude_masks(scores, round(event.after * WEIGHTS))

    seen, module = Seen(), Net(lbfgs(search))
    pruning = MagnitudePruning(0.5, schedule=OneShot("5it"), criterion="taylor")
    before = copied(module)
    fit(module, seen, pruning, data=data())
    assert equal(dict(pruning.masks), seen.kept)
    assert seen.looks > 2 * BATCHES
    assert not equal(before["body.0.bias"], module.body[0].bias.detach())
