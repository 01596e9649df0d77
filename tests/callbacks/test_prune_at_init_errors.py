# SPDX-License-Identifier: MIT
"""Pruning before the first step: errors, and networks that are hard to score."""

import threading
from typing import ClassVar

import pytest
import torch
import torchmetrics
from compiled_modules import WAYS, Whole
from overflowing_fits import scaled
from tiny_fits import ADAM, WEIGHTS, Net, copied, equal, fit, loader, zeros
from torch import optim

from regrow import ConfigError, MagnitudePruning, PruneAtInit, StateError

GRADIENTS = ["snip", "grasp"]


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def forward(self, inputs):
        return self.body(inputs)

    def training_step(self, batch, batch_idx):
        self.optimizers().zero_grad()
        self.manual_backward(self.loss(batch))
        self.optimizers().step()


class Measured(Net):
    """With a metric of its own, and a loss in a dict; without a batch number."""

    def __init__(self):
        super().__init__(ADAM)
        self.mean = torchmetrics.MeanMetric()
        self.logged.clear()

    logged: ClassVar = []  # by all copies of it

    def log(self, name, *args, **kwargs):
        self.logged.append(name)
        super().log(name, *args, **kwargs)

    def training_step(self, batch):
        loss = self.loss(batch)
        self.mean(loss.detach())
        self.log("train/mean", self.mean, on_epoch=True, on_step=False)
        self.log_dict({"a": loss.detach(), "b": loss.detach()})
        return {"loss": loss, "step": self.trainer.global_step}


class Locked(Net):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Without(Net):
    def training_step(self, batch, batch_idx):
        return None


class InPairs(Net):
    def loss(self, batch):
        return super().loss(batch[0])


class Cut:
    """A loader that cannot be copied."""

    def __init__(self):
        self.lock = threading.Lock()

    def __iter__(self):
        return iter(loader())

    def __len__(self):
        return 8


def test_metrics_and_logs_count_each_batch_once():
    module, pruning = Measured(), PruneAtInit(0.5, batches=2)
    made = fit(module, pruning, max_epochs=1)
    assert sorted(module.logged) == sorted(["train/mean", "a", "b"] * made.global_step)
    assert {*made.callback_metrics} == {"train/mean", "a", "b"}
    plain = Measured()
    other = fit(plain, PruneAtInit(0.5, method="random"), max_epochs=1)
    assert module.mean._update_count == plain.mean._update_count
    assert {*other.callback_metrics} == {*made.callback_metrics}


@pytest.mark.parametrize("method", GRADIENTS)
@pytest.mark.parametrize("way", WAYS)
def test_compiled_networks_have_the_scores_of_plain_ones(method, way):
    """A compiled backward pass has no second derivative."""
    torch._dynamo.reset()
    module, wrapper = WAYS[way]("aot_eager")
    pruning, plain = PruneAtInit(0.7, method=method), PruneAtInit(0.7, method=method)
    fit(module if wrapper is None else wrapper, pruning, max_epochs=1)
    fit(Whole(ADAM), plain, max_epochs=1)
    torch._dynamo.reset()
    assert equal(dict(pruning.masks), dict(plain.masks))
    assert zeros(module) == round(0.7 * WEIGHTS)


@pytest.mark.parametrize("method", GRADIENTS)
def test_half_precision_with_a_scaler_scores_in_float32(method):
    pruning, plain = PruneAtInit(0.7, method=method), PruneAtInit(0.7, method=method)
    fit(Net(), pruning, **scaled(2.0**20))
    fit(Net(), plain)
    assert equal(dict(pruning.masks), dict(plain.masks))


@pytest.mark.parametrize("method", GRADIENTS)
def test_lbfgs_is_supported(method):
    module, pruning = Net(optim.LBFGS), PruneAtInit(0.7, method=method)
    fit(module, pruning)
    assert zeros(module) == round(0.7 * WEIGHTS)


@pytest.mark.parametrize("method", ["synflow", "random"])
def test_manual_optimisation_works_with_methods_that_need_no_loss(method):
    module, pruning = Manual(), PruneAtInit(0.7, method=method)
    fit(module, pruning)
    assert zeros(module) == round(0.7 * WEIGHTS)


def test_works_beside_another_pruner():
    module = Net()
    first = PruneAtInit(0.5, method="snip")
    fit(module, first, MagnitudePruning(0.9, begin=0.2, include=["body.2"]))
    assert first.sparsity == 0.5
    assert zeros(module) >= 0.5 * WEIGHTS


def test_manual_pruning_raises_and_unprune_works():
    module, pruning = Net(), PruneAtInit(0.5)
    fit(module, pruning)
    with pytest.raises(StateError, match=r"by snip once, at the fit's first step.*Magnitude"):
        pruning.prune_to(0.9)
    assert pruning.sparsity == 0.5
    pruning.unprune()
    assert zeros(module) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "sinp"}, "did you mean 'snip'"),
        ({"sparsity": 90}, "write 0.9 for 90 %"),
        ({"batches": 0}, "batches must be"),
        ({"batches": True}, "batches must be"),
        ({"method": "random", "batches": 2}, "looks at no data: leave batches=2 out"),
        ({"method": "synflow", "batches": 2}, "looks at no data: leave batches=2 out"),
        ({"method": "snip", "rounds": 2}, "scores once: leave rounds=2 out"),
        ({"method": "synflow", "rounds": 0}, "rounds must be"),
        ({"method": "snip", "temperature": 200}, "temperature=200 is of method='grasp'"),
        ({"method": "grasp", "temperature": 0}, "temperature must be a number above 0"),
        ({"method": "grasp", "logits": "body"}, "logits='body' is what temperature divides"),
        ({"distribution": "lamp"}, "distribution must be one of"),
        ({"keep_removed": "all"}, "keep_removed must be"),
    ],
)
def test_invalid_settings_raise_at_construction(settings, words):
    with pytest.raises(ConfigError, match=words):
        PruneAtInit(**settings)


@pytest.mark.parametrize(
    ("module", "settings", "words"),
    [
        (Manual, {"method": "snip"}, "manual.*write method='synflow' or 'random'"),
        (Manual, {"method": "grasp"}, "manual.*write method='synflow' or 'random'"),
        (Locked, {}, r"copy of Locked.*cannot be copied.*lock"),
        (Without, {}, "it returned None"),
        (Net, {"batches": 9}, r"batches=9 is more than the train loader has \(8\)"),
        (
            Net,
            {"method": "grasp", "temperature": 200, "logits": "bdy"},
            "logits='bdy' is no submodule.*did you mean 'body'",
        ),
        (
            Net,
            {"method": "grasp", "temperature": 200},
            "training_step did not call the module itself.*write logits=",
        ),
        (Net, {"method": "synflow"}, r"forward\(\), which Net does not have"),
    ],
)
def test_unscorable_modules_raise_before_the_first_step(module, settings, words):
    made, pruning = module(), PruneAtInit(0.5, **settings)
    before = copied(made)
    with pytest.raises((ConfigError, StateError), match=words):
        fit(made, pruning)
    assert equal(before, copied(made))
    assert pruning.sparsity == 0


def test_loaders_that_cannot_be_copied_raise():
    with pytest.raises(StateError, match=r"Cut cannot be copied.*write batches=1"):
        fit(Net(), PruneAtInit(0.5, batches=2), data=Cut())
    fit(Net(), PruneAtInit(0.5, batches=1), data=Cut())
    with pytest.raises(ConfigError, match="reads ahead, which goes with one train loader"):
        fit(InPairs(), PruneAtInit(0.5, batches=2), data=[loader(), loader()])
    fit(InPairs(), PruneAtInit(0.5, batches=1), data=[loader(), loader()])
