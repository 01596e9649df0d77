# SPDX-License-Identifier: MIT
"""A teacher beside pruning in any order, cut channels, compiled students and several ranks."""

import itertools

import gloo_ranks
import pytest
import tiny_channel_fits
import torch
from averaging_reference import exponential
from compiled_modules import inner, late, whole
from distillation_fits import Called, assert_weights_close, distill
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import ADAM, Net, Watch, copied, equal, fit, loader, zeros
from torch import nn

from regrow import Distill, DynamicSparseTraining, LearnedMasks, MagnitudePruning, Table

PRUNERS = {
    "gradual": lambda: MagnitudePruning(0.5, schedule=Table({"3it": 0.2, "9it": 0.5})),
    "taylor": lambda: MagnitudePruning(0.5, schedule=Table({"3it": 0.5}), criterion="taylor"),
    "soft": lambda: MagnitudePruning(0.5, schedule=Table({"3it": 0.5}), soft=True),
    "rigl": lambda: DynamicSparseTraining(0.5, every="2it", end=0.9),
    "learned": lambda: LearnedMasks("cs", 0.5),
}


@pytest.mark.parametrize("name", PRUNERS)
def test_order_of_callbacks_does_not_change_the_result(name):
    found = []
    for order in itertools.permutations([lambda: distill(), PRUNERS[name]]):
        module = Called(ADAM)
        callbacks = [make() for make in order]
        fit(module, *callbacks)
        assert zeros(module) == 72
        found.append(copied(module))
    assert equal(*found)


def test_pruned_weights_stay_zero_under_distillation():
    watch = Watch()
    fit(
        Called(ADAM),
        watch,
        distill(),
        PRUNERS["gradual"](),
        accumulate_grad_batches=2,
        max_epochs=4,
    )
    assert watch.looks > 16


@pytest.mark.parametrize("compact", ["event", "end"])
def test_channels_are_removed_from_the_student_only(compact, tmp_path):
    student, wise = tiny_channel_fits.Net(), tiny_channel_fits.Net(seed=4)
    callback = Distill(wise, weight=0.5)
    pruning = tiny_channel_fits.pruning(compact=compact)
    tiny_channel_fits.run(student, callback, pruning)
    assert tiny_channel_fits.left(student) == 8
    assert tiny_channel_fits.left(callback.teacher) == 20
    assert equal(copied(callback.teacher), copied(wise))


def test_cut_student_resumes_with_an_uncut_teacher(tmp_path):
    def run(*callbacks, **kw):
        student = tiny_channel_fits.Net()
        pruning = tiny_channel_fits.pruning(compact="event")
        tiny_channel_fits.run(student, Distill("start", weight=0.5), pruning, *callbacks, **kw)
        return copied(student)

    saves = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=8)
    whole = run(saves, enable_checkpointing=True)
    assert equal(run(ckpt_path=tmp_path / "step=16.ckpt"), whole)


def test_average_contains_the_student_only():
    module = Called(ADAM)
    fit(module, exponential(decay=0.999), distill(), PRUNERS["gradual"]())
    assert zeros(module) == 72


COMPILED = {
    "inner": (inner, {"network": "body"}),
    "late": (late, {"network": "body"}),
    "whole": (whole, {"network": "body"}),
}


@pytest.mark.parametrize("way", COMPILED)
def test_compiled_students_learn_the_same(way):
    plain = Net(ADAM)
    fit(plain, distill(network="body"))
    make, words = COMPILED[way]
    module, compiled = make("eager")
    fit(module if compiled is None else compiled, distill(**words))
    named = {k.replace("_orig_mod.", ""): v for k, v in module.state_dict().items()}
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(named[name], value, atol=1e-6, rtol=0)
    assert not any(m._forward_hooks for m in module.modules())


class Plain(Called):
    def training_step(self, batch, batch_idx):
        return self.loss(batch)


@pytest.mark.parametrize("given", ["module", "start"])
def test_compiled_modules_can_be_teacher_and_student(given):
    def make():
        module = Plain(ADAM, seed=3)
        return module, torch.compile(module, backend="eager")

    wise = Plain(seed=5)
    plain, (module, compiled) = Plain(ADAM, seed=3), make()
    fit(plain, distill(wise if given == "module" else "start"))
    chosen = torch.compile(wise, backend="eager") if given == "module" else "start"
    fit(compiled, distill(chosen))
    assert_weights_close(module, plain.state_dict())


SHARED = """
from regrow import Distill, MagnitudePruning, Table
from regrow.utils.errors import StateError
from torch import nn

class Called(Net):
    def forward(self, inputs):
        return self.body(inputs)
    def loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

def run(teacher, ddp=None, kind=Called, **words):
    module = kind(ADAM)
    distill = Distill(teacher, temperature=3.0, weight=0.7, **words)
    pruning = MagnitudePruning(0.5, schedule=Table({"3it": 0.5}))
    made = job(distill, pruning, ddp=ddp, use_distributed_sampler=False)
    own = torch.utils.data.Subset(samples(64), range(RANK, 64, WORLD))
    made.fit(module, DataLoader(own, 4))
    assert "training_step" not in made.strategy.__dict__
    return state(module)

said["forward"] = run(Net(seed=5).body)
said["network"] = run(Net(seed=5).body, network="body")
said["unused"] = run(Net(seed=5).body, {"find_unused_parameters": True})
said["static"] = run(Net(seed=5).body, {"static_graph": True})
try:
    run(Net(seed=5 + RANK).body)
    said["error"] = ""
except StateError as error:
    said["error"] = str(error)
"""


@pytest.mark.guard
@pytest.mark.slow
def test_ranks_have_the_same_teacher_and_equal_weights(tmp_path):
    first, second = gloo_ranks.run(SHARED, tmp_path)
    assert "teacher of rank 1 is not that of rank 0" in first["error"] == second["error"]
    for name in ("forward", "network", "unused", "static"):
        assert equal(first[name], second[name]), name
    # two ranks of four samples are one of eight, for a loss that is a mean over samples
    module = Called(ADAM)
    pruning = MagnitudePruning(0.5, schedule=Table({"3it": 0.5}))
    fit(module, distill(), pruning, data=loader(8, 8))
    for name in ("forward", "network", "unused", "static"):
        assert_weights_close(module, first[name], 1e-5)


def test_teacher_may_have_another_architecture():
    module = Called(ADAM)
    wise = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 3))
    fit(module, Distill(wise, weight=1.0, temperature=1.0), max_epochs=40)
    inputs = torch.randn(64, 6)
    with torch.no_grad():
        before = nn.functional.kl_div(
            Called()(inputs).log_softmax(1), wise(inputs).log_softmax(1),
            log_target=True, reduction="batchmean",
        )  # fmt: skip
        after = nn.functional.kl_div(
            module(inputs).log_softmax(1), wise(inputs).log_softmax(1),
            log_target=True, reduction="batchmean",
        )  # fmt: skip
    assert after < before / 3
