# SPDX-License-Identifier: MIT
"""Unsupported modules raise, and a resumed fit has the same teacher."""

import pytest
import torch
from distillation_fits import Called, Says, distill, teacher
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import ADAM, Net, copied, equal, fit, loader, trainer
from torch import nn

from regrow import ConfigError, Distill, MagnitudePruning, RandomState, StateError, Table
from regrow.callbacks.rewind import Rewind


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"teacher": 3}, r"must be a module, a checkpoint's path or 'start', got 3"),
        ({"teacher": "start", "temperature": 0}, "temperature must be a number above 0"),
        ({"teacher": "start", "weight": 0}, "weight must be a number above 0"),
        ({"teacher": "start", "weight": 30}, r"weight must be in \(0, 1\], got 30: write 0.3"),
    ],
)
def test_invalid_settings_raise_at_construction(words, message):
    with pytest.raises(ConfigError, match=message):
        Distill(**words)


class Manual(Called):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Bare(Called):
    """Layers come late."""

    def __init__(self):
        super().__init__()
        self.late, self.body = self.body, None

    def configure_model(self):
        self.body = self.late


@pytest.mark.parametrize(
    ("module", "callback", "message"),
    [
        (Called, lambda: Distill(), r"no teacher: write teacher=MODULE.*teacher='start'"),
        (Called, lambda: Distill("nowhere.ckpt"), "'nowhere.ckpt' does not exist"),
        (Manual, lambda: distill(), "which manual optimization does not use"),
        (Net, lambda: distill(network="bdy"), "'bdy' is no submodule: did you mean 'body'"),
        (Called, lambda: Distill(nn.ReLU()), "teacher ReLU has no parameters"),
    ],
    ids=["none", "nowhere", "manual", "name", "empty"],
)
def test_unsupported_modules_raise_before_the_first_step(module, callback, message):
    made = module()
    with pytest.raises(ConfigError, match=message):
        fit(made, callback())
    assert made.trained == 0


class Twice(Called):
    def loss(self, batch):
        return self(batch[0]).logsumexp(1).mean() + super().loss(batch)


@pytest.mark.parametrize(
    ("module", "callback", "message"),
    [
        (Net, lambda: distill(), r"never called the module's own forward \(as self\(x\)"),
        (Twice, lambda: distill(), "called the module's own forward 2 times"),
        (Net, lambda: distill(network="body", logits="out"), "training_step returned no dict"),
        (Says, lambda: distill(network="body", logits="outs"), "the keys loss, out, n"),
        (Called, lambda: Distill(nn.Linear(16, 3), network="body.2"), "features of layers that"),
        (Called, lambda: Distill(nn.Linear(6, 4)), r"\(4, 3\), the teacher's \(4, 4\)"),
        (Called, lambda: Distill(nn.LSTM(6, 3)), "the teacher gave tuple instead of logits"),
    ],
    ids=["uncalled", "twice", "no dict", "no key", "features", "classes", "no tensor"],
)
def test_outputs_without_logits_raise_before_any_update(module, callback, message):
    made = module()
    before = copied(made)
    with pytest.raises(StateError, match=message):
        fit(made, callback())
    assert equal(copied(made), before)


def test_checkpoint_of_another_architecture_raises(tmp_path):
    torch.save({"state_dict": {"body.0.weight": torch.zeros(16, 7)}}, tmp_path / "t.ckpt")
    with pytest.raises(ConfigError, match=r"body.0.weight is \(16, 7\) instead of \(16, 6\)"):
        fit(Called(), Distill(tmp_path / "t.ckpt"))


@pytest.mark.parametrize("prefix", ["", "body.", "student.body."])
def test_teacher_from_a_checkpoint_equals_its_module(tmp_path, prefix):
    wise = teacher()
    weights = {f"{prefix}{name}": value for name, value in wise.state_dict().items()}
    torch.save({"state_dict": weights, "other": 3}, tmp_path / "t.ckpt")
    one, other = Net(), Net()
    fit(one, distill(network="body"))
    fit(other, distill(tmp_path / "t.ckpt", network="body"))
    assert equal(copied(one), copied(other))


def test_initial_student_can_be_the_teacher(tmp_path):
    one, other = Called(seed=3), Called(seed=3)
    fit(one, distill("start"), MagnitudePruning(0.5, schedule=Table({"2it": 0.5})))
    fit(other, distill(Net(seed=3).body), MagnitudePruning(0.5, schedule=Table({"2it": 0.5})))
    assert equal(copied(one), copied(other))


def pruned(folder=None, wise=None, **kw):
    pruning = MagnitudePruning(0.8, schedule=Table({"3it": 0.4, "9it": 0.8}))
    saves = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=5)
    words = {"max_epochs": 3, "enable_checkpointing": folder is not None} | kw
    module = Called(ADAM)
    given = [saves] if folder else []
    fit(module, RandomState(), *given, distill(wise), pruning, **words)
    return copied(module)


@pytest.mark.parametrize("step", [5, 10, 20])
@pytest.mark.parametrize("wise", [None, "start"])
def test_resumed_fit_is_the_uninterrupted_one(tmp_path, step, wise):
    # an epoch of five batches ends where a checkpoint is: the loader has no state
    whole = pruned(tmp_path, wise, data=loader(5), max_epochs=5)
    path = tmp_path / f"step={step}.ckpt"
    assert equal(pruned(None, wise, data=loader(5), max_epochs=5, ckpt_path=path), whole)


def test_resume_with_another_or_a_new_teacher_raises(tmp_path):
    pruned(tmp_path)
    path = tmp_path / "step=10.ckpt"
    with pytest.raises(StateError, match="trained with another teacher"):
        pruned(wise=Net(seed=6).body, ckpt_path=path)
    plain = trainer(MagnitudePruning(0.4, schedule=Table({"3it": 0.4})))
    plain.fit(Called(ADAM), loader())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(StateError, match="the checkpoint was trained without Distill"):
        pruned(ckpt_path=tmp_path / "plain.ckpt")


def test_resume_with_another_weight_raises(tmp_path):
    made = fit(Called(), Distill(teacher(), weight=0.5))
    made.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(StateError, match=r"trained with weight=0.5, now it is 0.6"):
        fit(Called(), Distill(teacher(), weight=0.6), max_epochs=3, ckpt_path=tmp_path / "a.ckpt")


def test_second_fit_keeps_the_teacher():
    module, callback = Called(), distill()
    fit(module, callback)
    before = copied(module)
    fit(module, callback)
    assert not equal(copied(module), before)


def test_distillation_continues_after_rewinding():
    module = Called(ADAM)
    pruning = MagnitudePruning(0.5, schedule=Table({"5it": 0.5}), rewind=Rewind("2it"))
    done = fit(module, distill(), pruning)
    assert pruning.sparsity == 0.5
    assert "distill/loss" in done.callback_metrics


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_logits_without_a_gradient_raise_before_any_update(weight):
    class Detached(Says):
        def training_step(self, batch, batch_idx):
            given = super().training_step(batch, batch_idx)
            return {**given, "out": given["out"].detach()}

    module = Detached()
    before = copied(module)
    with pytest.raises(StateError, match=r"training_step\['out'\] gave logits without a gradient"):
        fit(module, Distill(teacher(), network="body", logits="out", weight=weight))
    assert equal(before, module.state_dict())


def test_a_teacher_of_another_dtype_is_cast():
    one, other = Called(), Called()
    fit(one, distill(network="body"))
    fit(other, distill(teacher().double(), network="body"))
    assert equal(one.state_dict(), other.state_dict())
