# SPDX-License-Identifier: MIT
"""Distillation within a fit equals a training loop written by hand, and leaves nothing behind."""

import copy
import pickle
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from distillation_fits import (
    TEMPERATURE,
    WEIGHT,
    Called,
    Says,
    assert_weights_close,
    distill,
    teacher,
)
from lightning.pytorch.plugins import MixedPrecision
from tiny_fits import ADAM, SGD, Net, copied, equal, fit, loader, read, trainer
from torch import nn

from regrow import Distill, MagnitudePruning, Table


class Headed(Called):
    """Gives more than logits, which its head makes."""

    def forward(self, inputs):
        features = self.body[1](self.body[0](inputs))
        return {"logits": self.body[2](features), "features": features}

    def loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0])["logits"], batch[1])


def by_hand(make=SGD, epochs=2, every=1, context=None):
    """The student after the fit, with torch alone."""
    student, wise = Net(make), teacher().eval()
    optimizer = make(student.parameters())
    for _ in range(epochs):
        for index, (inputs, labels) in enumerate(loader()):
            with context() if context else torch.enable_grad():
                logits = student.body(inputs)
                own = nn.functional.cross_entropy(logits, labels)
                with torch.no_grad():
                    p = (wise(inputs).float() / TEMPERATURE).softmax(1)
            q = (logits.float() / TEMPERATURE).softmax(1)
            soft = TEMPERATURE**2 * (p * (p.log() - q.log())).sum(1).mean()
            (((1 - WEIGHT) * own + WEIGHT * soft) / every).backward()
            if (index + 1) % every == 0:
                optimizer.step()
                optimizer.zero_grad()
    return student.state_dict()


def moved(module, make=SGD):
    """The distance from a fit without a teacher, to show that the test is sensitive."""
    plain = Net(make)
    fit(plain)
    return max(float((plain.state_dict()[n] - v).abs().max()) for n, v in by_hand(make).items())


WAYS = {
    "forward": (Called, {}),
    "network": (Net, {"network": "body"}),
    "key": (Says, {"network": "body", "logits": "out"}),
    "submodule": (Headed, {"logits": "body.2"}),
    "dict": (Headed, {}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [SGD, ADAM])
def test_equals_a_manual_training_loop(way, make):
    kind, words = WAYS[way]
    module = kind(make)
    fit(module, distill(**words))
    assert moved(module, make) > 1e-2
    assert_weights_close(module, by_hand(make))


def test_accumulation_divides_both_terms():
    module = Called()
    fit(module, distill(), accumulate_grad_batches=4)
    assert_weights_close(module, by_hand(every=4))


def test_teacher_runs_under_the_same_bf16_autocast():
    module = Called()
    fit(module, distill(), precision="bf16-mixed")
    assert_weights_close(
        module, by_hand(context=partial(torch.autocast, "cpu", torch.bfloat16)), 1e-5
    )


def test_a_scaler_scales_both_terms():
    module = Called()
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    fit(module, distill(), plugins=plugin)
    assert_weights_close(module, by_hand(), 3e-2)
    assert moved(module) > 6e-2


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_true_half_precisions_train(precision):
    module = Called()
    fit(module, distill(), precision=precision)
    assert all(p.isfinite().all() for p in module.parameters())
    if precision == "64-true":
        assert_weights_close(module.float(), by_hand(), 1e-5)


def test_lbfgs_uses_the_teacher_at_each_closure():
    losses = []

    class Seen(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            losses.append(float(trainer.callback_metrics["distill/loss"]))

    module = Called(partial(torch.optim.LBFGS, max_iter=4, lr=0.5))
    fit(module, Distill(teacher(), weight=1.0), Seen(), data=loader(1, 64), max_epochs=8)
    assert losses[-1] < losses[0] / 2


def test_skipped_step_changes_nothing():
    class Skips(Called):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    module = Skips()
    fit(module, distill())
    assert module.trained == 8


def test_other_outputs_of_the_training_step_are_kept():
    seen = []

    class Outputs(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, *_):
            seen.append({*outputs})

    fit(Says(), distill(network="body", logits="out"), Outputs())
    assert seen[0] == {"loss", "out", "n"}


class Untouched(pl.Callback):
    """Check the module in the middle of a fit."""

    def __init__(self, callback):
        self.callback, self.looks = callback, 0

    def on_train_batch_end(self, trainer, module, *_):
        self.looks += 1
        taught = {id(p) for p in self.callback.teacher.parameters()}
        assert not taught & {id(p) for p in module.parameters()}
        groups = [g for o in trainer.optimizers for g in o.param_groups]
        assert not taught & {id(p) for g in groups for p in g["params"]}
        assert not any(m.training for m in self.callback.teacher.modules())
        assert not any(
            p.requires_grad or p.grad is not None for p in self.callback.teacher.parameters()
        )
        assert [*module.state_dict()] == [*Net().state_dict()]
        twin = copy.deepcopy(module)
        assert equal(copied(twin), copied(module))
        pickle.loads(pickle.dumps(module.body))


def test_teacher_is_not_part_of_the_module_and_is_unchanged():
    given = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))
    before, module = copied(given), Called()
    made = distill(given)
    look = Untouched(made)
    fit(module, max_epochs=0)  # Lightning itself adds an attribute
    attributes = {*module.__dict__}
    done = fit(module, made, look, gradient_clip_val=0.5)
    assert look.looks == 16
    assert equal(copied(given), before)
    assert equal(copied(made.teacher), before)
    assert given.training
    assert all(p.requires_grad for p in given.parameters())
    assert {*module.__dict__} == attributes
    assert not any(m._forward_hooks for m in module.modules())
    assert "training_step" not in done.strategy.__dict__


def test_error_leaves_no_hook_behind():
    class Fails(Called):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise RuntimeError("no")
            return super().training_step(batch, batch_idx)

    module, made = Fails(), trainer(distill())
    with pytest.raises(RuntimeError, match="no"):
        made.fit(module, loader())
    assert "training_step" not in made.strategy.__dict__
    assert not any(m._forward_hooks for m in module.modules())


def test_checkpoint_holds_a_hash_of_the_teacher_only(tmp_path):
    made = fit(Called(), distill(), MagnitudePruning(0.5, schedule=Table({"3it": 0.5})))
    made.save_checkpoint(tmp_path / "a.ckpt")
    saved = read(tmp_path / "a.ckpt")
    assert [*saved["state_dict"]] == [*Net().state_dict()]
    state = saved["callbacks"]["Distill"]
    assert {k: type(v) for k, v in state.items()} == {
        "format": int, "teacher": str, "temperature": float, "weight": float,
    }  # fmt: skip


def test_predict_and_test_do_not_call_the_teacher():
    module = Called()
    found = fit(module, distill()).test(module, loader(2), verbose=False)[0]["test/loss"]
    with torch.no_grad():
        expected = sum(float(module.loss(batch)) for batch in loader(2)) / 2
    assert found == pytest.approx(expected, rel=1e-6)
