# SPDX-License-Identifier: MIT
"""A resumed run equals the uninterrupted run exactly, wherever it was interrupted."""

import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from slow_cases import mark_rest_slow
from tiny_fits import ADAM, BATCHES, SGD, Net, equal, fit, loader, read, samples
from torch import nn, optim

from regrow import Cubic, Cyclic, MagnitudePruning, OneShot, RandomState, Table
from regrow.data.tensor_loader import BatchLoader

STEPS = 3 * BATCHES
LEVELS = Table({"3it": 0.3, "11it": 0.6, "18it": 0.8})


def shuffled():
    return BatchLoader(*samples().tensors, batch_size=4, shuffle=True, seed=3)


class Noisy(Net):
    """With dropout, so that the generators count."""

    def loss(self, batch):
        return super().loss((nn.functional.dropout(batch[0], 0.3, self.training), batch[1]))


def run(make, pruning, *callbacks, seed=0, **kw):
    """A run of three epochs: what its last checkpoint says of it."""
    torch.manual_seed(seed)
    module, end = Noisy(make, seed), Path("end.ckpt")
    made = fit(
        module,
        RandomState(),
        pruning,
        *callbacks,
        data=kw.pop("data", None) or shuffled(),
        max_epochs=3,
        enable_checkpointing=bool(callbacks),
        **kw,
    )
    made.save_checkpoint(end)
    saved = read(end)
    assert saved["global_step"] == kw.get("max_steps", made.global_step)
    states = {k: v for k, v in saved["callbacks"].items() if k.startswith("MagnitudePruning")}
    return {"weights": saved["state_dict"], "optimizers": saved["optimizer_states"]} | states


def everywhere(folder):
    """Saves after every step, and at every epoch's end."""
    return (
        ModelCheckpoint(folder, filename="step{step}", every_n_train_steps=1, save_top_k=-1,
                        auto_insert_metric_name=False),
        ModelCheckpoint(folder, filename="epoch{epoch}", every_n_epochs=1, save_top_k=-1,
                        auto_insert_metric_name=False),
    )  # fmt: skip


CASES = {
    "sgd": (SGD, partial(MagnitudePruning, 0.8, schedule=LEVELS)),
    "adam": (ADAM, partial(MagnitudePruning, 0.8, schedule=LEVELS)),
    "lbfgs": (
        partial(optim.LBFGS, lr=0.1, max_iter=3),
        partial(MagnitudePruning, 0.8, schedule=LEVELS),
    ),
    "movement": (
        ADAM,
        partial(MagnitudePruning, 0.8, schedule=LEVELS, criterion="movement"),
    ),
    "taylor": (SGD, partial(MagnitudePruning, 0.8, schedule=LEVELS, criterion="taylor")),
    "random": (SGD, partial(MagnitudePruning, 0.8, schedule=LEVELS, criterion="random")),
    "cyclic": (
        ADAM,
        partial(MagnitudePruning, 0.8, schedule=Cyclic("3it", "19it", "8it")),
    ),
    "at every step": (ADAM, partial(MagnitudePruning, 0.8, schedule=Cubic(0, 0.9, "1it"))),
    "own layers": (
        SGD,
        partial(MagnitudePruning, 0.8, schedule=LEVELS, layers={"body.2": 0.5}),
    ),
    "nothing kept": (ADAM, partial(MagnitudePruning, 0.8, schedule=LEVELS, keep_removed=False)),
    "epochs": (ADAM, partial(MagnitudePruning, 0.8, schedule=Table({"1ep": 0.5, "2ep": 0.8}))),
}
# before the first event, at it, between two, at the second, at an epoch's end, after the last
CUTS = ["step2", "step3", "step6", "step11", "epoch0", "step8", "epoch1", "step18", "step21"]


OFTEN = ("sgd", "adam", "lbfgs", "movement", "cyclic", "epochs")


@pytest.mark.parametrize("case", mark_rest_slow(CASES, OFTEN))
def test_resumed_run_is_the_uninterrupted_run(case, tmp_path):
    make, pruning = CASES[case]
    whole = run(make, pruning(), *everywhere(tmp_path / "cut"))
    assert whole.keys() == {"weights", "optimizers", pruning().state_key}
    for cut in CUTS if case in ("sgd", "adam") else CUTS[2::3]:
        resumed = run(make, pruning(), seed=1, ckpt_path=tmp_path / "cut" / f"{cut}.ckpt")
        for what in whole:
            assert equal(whole[what], resumed[what]), f"{what}, cut at {cut}"


@settings(max_examples=12)
@given(
    cut=st.integers(1, STEPS - 1),
    events=st.lists(st.integers(0, STEPS - 1), min_size=1, max_size=5, unique=True).map(sorted),
    window=st.sampled_from([1, 1, 2, 3]),
    granularity=st.sampled_from(["weight", "block:2x2"]),
    make=st.sampled_from([SGD, ADAM]),
)
def test_resumes_from_every_step(cut, events, window, granularity, make):
    steps = 3 * -(-BATCHES // window)
    cut = 1 + cut % (steps - 1)
    events = sorted({step % steps for step in events})
    table = {f"{step}it": 0.75 * (k + 1) / len(events) for k, step in enumerate(events)}
    pruning = partial(
        MagnitudePruning, table[f"{events[-1]}it"], schedule=Table(table),
        granularity=granularity, include=None if granularity == "weight" else "body.0",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        saves = everywhere(folder)
        whole = run(make, pruning(), *saves, accumulate_grad_batches=window)
        path = Path(folder) / f"step{cut}.ckpt"
        resumed = run(make, pruning(), seed=1, ckpt_path=path, accumulate_grad_batches=window)
    assert all(equal(whole[what], resumed[what]) for what in whole)


class Cut(Callback):
    """Ends the run with an error at a batch."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_resumes_after_an_exception(error, tmp_path):
    make, pruning = CASES["adam"]
    whole = run(make, pruning())
    saves = ModelCheckpoint(tmp_path, filename="cut", every_n_train_steps=5)
    with pytest.raises((error, SystemExit)):
        run(make, pruning(), saves, Cut(13, error))
    assert read(tmp_path / "cut.ckpt")["global_step"] == 10
    resumed = run(make, pruning(), seed=1, ckpt_path=tmp_path / "cut.ckpt")
    assert all(equal(whole[what], resumed[what]) for what in whole)


def test_checkpoint_saved_on_the_exception_resumes(tmp_path):
    make, pruning = CASES["adam"]
    saves = ModelCheckpoint(tmp_path, filename="cut", save_on_exception=True)
    with pytest.raises(RuntimeError):
        run(make, pruning(), saves, Cut(13, RuntimeError))
    [path] = tmp_path.glob("*.ckpt")
    state = read(path)["callbacks"]["MagnitudePruning{'include': None, 'exclude': None}"]
    assert state["progress"]["fired"] == 2
    assert [entry["step"] for entry in state["pruner"]["history"]] == [3, 11]


def test_run_interrupted_twice_resumes_exactly(tmp_path):
    make, pruning = CASES["adam"]
    whole = run(make, pruning())
    for number, (error_at, resume) in enumerate([(7, None), (15, "0.ckpt")]):
        saves = ModelCheckpoint(tmp_path, filename=str(number), every_n_train_steps=3)
        with pytest.raises(RuntimeError):
            run(
                make, pruning(), saves, Cut(error_at, RuntimeError), seed=number,
                ckpt_path=resume and tmp_path / resume,
            )  # fmt: skip
    resumed = run(make, pruning(), seed=2, ckpt_path=tmp_path / "1.ckpt")
    assert all(equal(whole[what], resumed[what]) for what in whole)


@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("soft", [False, True])
def test_the_same_callback_object_resumes_an_interrupted_fit(soft, sanity, tmp_path):
    """Its masks of the interrupted fit, which went further, do not touch the loaded weights."""
    make, pruning = ADAM, partial(MagnitudePruning, 0.8, schedule=LEVELS, soft=soft)
    usual = {"val": loader(), "num_sanity_val_steps": sanity}
    whole, callback = run(make, pruning(), **usual), pruning()
    saves = ModelCheckpoint(tmp_path, filename="cut")  # at the end of the first epoch
    module, usual = Noisy(make), {**usual, "max_epochs": 3}
    with pytest.raises(RuntimeError):
        fit(module, RandomState(), callback, saves, Cut(13, RuntimeError), data=shuffled(),
            enable_checkpointing=True, **usual)  # fmt: skip
    made = fit(module, RandomState(), callback, data=shuffled(),
               ckpt_path=tmp_path / "cut.ckpt", **usual)  # fmt: skip
    made.save_checkpoint("end.ckpt")
    saved = read("end.ckpt")
    assert equal(saved["state_dict"], whole["weights"])
    assert equal(saved["callbacks"][callback.state_key], whole[callback.state_key])


def test_second_fit_can_be_resumed(tmp_path):
    """Steps, epochs and fractions of the second fit's own, cut in its middle."""

    def second(made, module):
        made.fit_loop.max_epochs = 5
        made.fit(module, shuffled())

    make = ADAM
    pruning = MagnitudePruning(0.5, schedule=OneShot("1ep"))
    module = Noisy(make)
    made = fit(module, RandomState(), pruning, data=shuffled(), max_epochs=2)
    pruning.unprune()
    saves = ModelCheckpoint(tmp_path, filename="step{step}", every_n_train_steps=1, save_top_k=-1,
                            auto_insert_metric_name=False)  # fmt: skip
    made.callbacks.append(saves)
    second(made, module)
    assert [entry.get("step") for entry in pruning.history] == [8, None, 24]
    for step in (19, 24, 30):
        again, other = MagnitudePruning(0.5, schedule=OneShot("1ep")), Noisy(make, 1)
        ckpt = tmp_path / f"step{step}.ckpt"
        fit(other, RandomState(), again, data=shuffled(), max_epochs=5, ckpt_path=ckpt)
        assert equal(again.history, pruning.history)
        assert equal(dict(again.masks), dict(pruning.masks))
