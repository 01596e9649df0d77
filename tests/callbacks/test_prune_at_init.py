# SPDX-License-Identifier: MIT
"""Pruning before the first step: masks by independent scores; scoring does not change the fit."""

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from slow_cases import mark_rest_slow
from tiny_fits import (
    ADAM,
    SGD,
    WEIGHTS,
    Events,
    Net,
    copied,
    equal,
    fit,
    loader,
    magnitude_masks,
    samples,
    trainer,
    weights,
    zeros,
)
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

from regrow import PruneAtInit, RandomState, enforce
from regrow.callbacks.core.base import Callback
from regrow.criteria.saliency import grasp
from regrow.data.tensor_loader import BatchLoader

METHODS = {
    "snip": {"method": "snip"},
    "grasp": {"method": "grasp"},
    "synflow": {"method": "synflow", "rounds": 10},
    "random": {"method": "random"},
}
AHEAD = {f"{name}, five batches": METHODS[name] | {"batches": 5} for name in ("snip", "grasp")}
SOURCES = ["in order", "global generator", "own generator", "stateful"]


class Full(Net):
    """A forward pass for SynFlow, dropout, batch norm, a counter and logging."""

    def __init__(self, make=SGD, seed=0):
        super().__init__(make, seed)
        self.body.insert(1, nn.BatchNorm1d(16))
        self.body.insert(3, nn.Dropout(0.3))
        self.losses = []

    def forward(self, inputs):
        return self.body(inputs)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss, on_step=True)
        self.losses.append(float(loss))
        return loss


class Stopped(Callback):
    """Record the module's weights, buffers and generators right after the event."""

    def on_prune_event(self, trainer, pl_module, event):
        self.state, self.drawn = copied(pl_module), torch.get_rng_state()
        self.steps = [s for o in trainer.optimizers for s in o.state.values()]
        self.grads = [p.grad for p in pl_module.parameters()]
        self.trained = pl_module.trained


def run(module, *callbacks, data=None, **kw):
    torch.manual_seed(7)
    np.random.seed(7)
    made = fit(module, *callbacks, data=data, **kw)
    return made, torch.rand(1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparsity", mark_rest_slow([0.5, 0.9], [0.9]))
def test_prunes_once_to_the_exact_target_before_the_first_step(method, sparsity):
    module, pruning, events, seen = (
        Full(),
        PruneAtInit(sparsity, **METHODS[method]),
        Events(),
        Stopped(),
    )
    run(module, pruning, events, seen)
    assert events.seen == [(0, round(round(sparsity * WEIGHTS) / WEIGHTS, 6))]
    assert zeros(module) == round(sparsity * WEIGHTS)
    assert not seen.steps
    assert seen.trained == 0
    assert seen.grads == [None] * 6
    assert pruning.reached


@pytest.mark.parametrize("batches", [1, 3])
def test_snip_scores_use_the_first_batches(batches):
    """Gradients by a plain backward pass over the same batches, in one."""
    module, pruning = Net(), PruneAtInit(0.7, method="snip", batches=batches)
    twin, rows = Net(), 4 * batches
    inputs, labels = samples().tensors
    twin.loss((inputs[:rows], labels[:rows])).backward()
    scores = {name: (p * dict(twin.named_parameters())[name].grad).abs().detach()
              for name, p in weights(twin).items()}  # fmt: skip
    fit(module, pruning, max_epochs=1)
    wanted = magnitude_masks(scores, round(0.7 * WEIGHTS))
    assert all(torch.equal(pruning.masks[name], mask) for name, mask in wanted.items())


@pytest.mark.parametrize(
    ("settings", "source"),
    [
        *((METHODS[method], "global generator") for method in METHODS),
        *((AHEAD["snip, five batches"], source) for source in SOURCES),
        *(
            pytest.param(AHEAD["grasp, five batches"], source, marks=pytest.mark.slow)
            for source in SOURCES
        ),
    ],
)
def test_fit_equals_one_started_with_the_same_masks(settings, source):
    """Weights, losses, buffers and generators of a run that took the masks without scoring."""

    def data():
        if source == "stateful":
            return BatchLoader(*samples().tensors, batch_size=4, shuffle=True, seed=3)
        if source == "own generator":
            generator = torch.Generator().manual_seed(4)
            return DataLoader(samples(), 4, sampler=RandomSampler(samples(), generator=generator))
        return DataLoader(samples(), 4, shuffle=source == "global generator")

    pruning = PruneAtInit(0.8, **settings)
    module, watch = Full(ADAM), Stopped()
    made, drawn = run(module, pruning, watch, data=data())

    class Given(Callback):
        """The same masks by the functions for plain PyTorch."""

        def on_train_start(self, trainer, pl_module):
            self.handle = enforce(pl_module, pruning.masks, trainer.optimizers)

    plain = Full(ADAM)
    other, plainly = run(plain, Given(), data=data())
    assert module.losses == plain.losses
    assert equal(copied(module), copied(plain))
    assert equal(drawn, plainly)
    assert module.trained == plain.trained == made.global_step == other.global_step
    assert made.logged_metrics == other.logged_metrics
    fresh = Full(ADAM).state_dict()
    assert all(equal(watch.state[n], t) for n, t in fresh.items() if "body.1." in n), "batch norm"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cut", [1, 11])
def test_resumed_run_is_the_uninterrupted_run(method, cut, tmp_path):
    def go(folder, steps, ckpt_path=None):
        module, pruning = Full(ADAM), PruneAtInit(0.8, **METHODS[method])
        saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=cut, save_top_k=-1)
        torch.manual_seed(3)
        made = fit(
            module,
            RandomState(),
            pruning,
            saver,
            data=BatchLoader(*samples().tensors, batch_size=4, shuffle=True),
            max_steps=steps,
            max_epochs=-1,
            enable_checkpointing=True,
            ckpt_path=ckpt_path,
        )
        return made, copied(module), pruning.state_dict()

    whole = go(tmp_path / "whole", 16)
    go(tmp_path / "part", 16)
    resumed = go(tmp_path / "rest", 16, tmp_path / "part" / f"step={cut}.ckpt")
    assert resumed[0].global_step == whole[0].global_step == 16
    assert equal(resumed[1:], whole[1:])


@pytest.mark.parametrize("method", METHODS)
def test_resuming_before_the_event_gives_the_same_masks(method, tmp_path):
    class Early(Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "early.ckpt")

    one, other = PruneAtInit(0.8, **METHODS[method]), PruneAtInit(0.8, **METHODS[method])
    first = Full()
    run(first, RandomState(), one, Early())
    second = Full(seed=5)
    fit(second, RandomState(), other, ckpt_path=tmp_path / "early.ckpt")
    assert equal(dict(one.masks), dict(other.masks))
    assert equal(copied(first), copied(second))


@pytest.mark.parametrize("method", METHODS)
def test_a_second_fit_does_not_prune_again(method):
    module, pruning, events = Full(), PruneAtInit(0.8, **METHODS[method]), Events()
    fit(module, pruning, events)
    masks = dict(pruning.masks)
    fit(module, pruning, events)
    assert len(events.seen) == 1
    assert equal(masks, dict(pruning.masks))
    assert zeros(module) == round(0.8 * WEIGHTS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", mark_rest_slow(["bf16-mixed", "bf16-true"], ["bf16-true"]))
def test_scoring_uses_single_precision(method, precision):
    module, pruning = Full(), PruneAtInit(0.8, **METHODS[method])
    fit(module, pruning, precision=precision)
    plain = PruneAtInit(0.8, **METHODS[method])
    fit(Full(), plain)
    kept = sum(int((a & plain.masks[name]).sum()) for name, a in pruning.masks.items())
    assert pruning.masks.pruned == round(0.8 * WEIGHTS)
    same = precision == "bf16-mixed" or method == "random"
    assert kept == (WEIGHTS - round(0.8 * WEIGHTS)) if same else kept > 10


def test_accumulation_scores_single_batches():
    one, other = PruneAtInit(0.8, batches=2), PruneAtInit(0.8, batches=2)
    made = fit(Net(), one, accumulate_grad_batches=4)
    fit(Net(), other)
    assert made.global_step == 4
    assert equal(dict(one.masks), dict(other.masks))


def test_dry_run_scores_one_batch():
    pruning = PruneAtInit(0.8, batches=100)
    made = trainer(pruning, fast_dev_run=True)
    made.fit(Net(), loader())
    assert pruning.masks.pruned == round(0.8 * WEIGHTS)


class Called(Full):
    """Calls itself for its logits, as most modules do."""

    def loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.parametrize(("made", "logits"), [(Called, None), (Full, "body"), (Net, "body")])
def test_grasp_with_temperature_uses_divided_logits(made, logits):
    """Hessian times gradient of cross-entropy(logits / T), written out, on the same batches."""

    def loss(body, batch):
        return nn.functional.cross_entropy(body(batch[0]) / 200, batch[1])

    settings = {"method": "grasp", "batches": 3, "temperature": 200, "logits": logits}
    module, plain, twin = made(), made(), made()
    for net in (module, plain, twin):
        for part in net.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0
    batches = [batch for _, batch in zip(range(3), loader(), strict=False)]
    scores = grasp(twin.body, batches, loss)
    wanted = magnitude_masks(
        {f"body.{n}": s - min(v.min() for v in scores.values()) for n, s in scores.items()},
        round(0.7 * WEIGHTS),
    )
    pruning, other = PruneAtInit(0.7, **settings), PruneAtInit(0.7, method="grasp", batches=3)
    fit(module, pruning)
    fit(plain, other)
    assert all(torch.equal(pruning.masks[name], mask) for name, mask in wanted.items())
    assert any(not torch.equal(other.masks[name], mask) for name, mask in wanted.items())
    assert not module._forward_hooks
    assert not module.body._forward_hooks


def test_logits_module_of_a_compiled_network_has_its_plain_name():
    """Its last layer is what the loss sees, so all three say the same."""
    masks = []
    for logits in ("body", "body.4", None):
        module = Called()
        module.body = module.body[::2]  # without batch norm and dropout
        if logits is not None:
            module.body = torch.compile(module.body, backend="eager")
        pruning = PruneAtInit(0.7, method="grasp", temperature=200, logits=logits)
        fit(module, pruning, limit_train_batches=1)
        masks.append(list(pruning.masks.values()))
    assert all(equal(masks[0], other) for other in masks[1:])
