# SPDX-License-Identifier: MIT
"""ModelCheckpoint in every mode: each file is masked, weights-only and resumes exactly."""

from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from slow_cases import mark_rest_slow
from tiny_fits import ADAM, WEIGHTS, Net, copied, equal, fit, loader, read, samples

from regrow import DynamicSparseTraining, MagnitudePruning, SparseModelCheckpoint, Table
from regrow.data.tensor_loader import BatchLoader
from regrow.masks.masks import Masks

LEVELS = Table({"3it": 0.5, "8it": 0.6, "13it": 0.8})
AT = {3: 0.5, 8: 0.6, 13: 0.8}
MODES = {
    "every step": {"every_n_train_steps": 1},
    "every third step": {"every_n_train_steps": 3},
    "top k by steps": {"every_n_train_steps": 2, "monitor": "loss", "save_top_k": 2},
    "by time": {"train_time_interval": timedelta(microseconds=1)},
    "every epoch": {"every_n_epochs": 1},
    "every second epoch": {"every_n_epochs": 2},
    "at the training epoch's end": {"save_on_train_epoch_end": True},
    "at the validation's end": {"save_on_train_epoch_end": False},
    "best by validation": {"monitor": "val/loss", "save_top_k": 1},
    "worst by validation": {"monitor": "val/loss", "mode": "max", "save_top_k": 2},
    "last one alone": {"save_top_k": 0, "save_last": True},
    "last one too": {"every_n_train_steps": 5, "save_last": True},
    "last one as a link": {"every_n_train_steps": 5, "save_last": "link"},
    "weights too": {"every_n_epochs": 1, "save_weights_only": False},
}


class Logs(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


def data():
    return BatchLoader(*samples().tensors, batch_size=4, shuffle=True, seed=3)


def run(*callbacks, module=None, **kw):
    module, pruning = module or Logs(ADAM), MagnitudePruning(0.8, schedule=LEVELS)
    made = fit(module, pruning, *callbacks, data=data(), val=loader(), max_epochs=3, **kw)
    [optimizer] = made.optimizers
    state = pruning.pruner.state_dict(), optimizer.state_dict()["state"]
    return made.global_step, copied(module), *state


def check(path):
    """The file, loaded safely; what must be zero is worked out from the step it was saved at."""
    saved = read(path)
    done = [sparsity for step, sparsity in AT.items() if step < saved["global_step"]]
    [state] = (v for k, v in saved["callbacks"].items() if k.startswith("MagnitudePruning"))
    masks = Masks.unpack(state["pruner"]["masks"])
    assert masks.pruned == round((done or [0])[-1] * WEIGHTS)
    named = {name: w for name, w in saved["state_dict"].items() if name in masks}
    assert len(named) == len(masks)
    moments = saved["optimizer_states"][0]["state"]
    for number, (name, weight) in enumerate(saved["state_dict"].items()):
        if name in masks:
            gone = ~masks[name]
            assert torch.equal(weight == 0, gone), "neither more nor less is zero"
            assert not moments[number]["exp_avg"][gone].any()
    return saved


SPARSE = pytest.param(SparseModelCheckpoint, marks=pytest.mark.slow)


OFTEN = ("every third step", "top k by steps", "by time", "every epoch")
OFTEN += ("best by validation", "last one alone", "last one as a link")


@pytest.mark.parametrize("kind", [ModelCheckpoint, SPARSE])
@pytest.mark.parametrize("mode", mark_rest_slow(MODES, OFTEN))
def test_every_checkpoint_mode_resumes(mode, kind, tmp_path):
    settings = {"save_top_k": -1, "filename": "{epoch}-{step}"} | MODES[mode]
    half = {"val_check_interval": 4} if "validation" in mode else {}
    saves = kind(tmp_path, **settings)
    whole = run(saves, enable_checkpointing=True, **half)
    assert equal(whole, run(**half)), "saving changes nothing"
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert paths
    steps = {check(path)["global_step"]: path for path in paths}
    if kind is SparseModelCheckpoint:
        assert all(step > 13 for step, path in steps.items() if path.name != "last.ckpt")
    for path in [*steps.values()][:: max(1, len(steps) // 3)]:
        assert equal(whole, run(module=Logs(ADAM, seed=1), ckpt_path=path, **half)), path.name


def test_weights_only_checkpoints_are_sparse_but_do_not_resume(tmp_path):
    saves = ModelCheckpoint(tmp_path, save_top_k=-1, save_weights_only=True, filename="{epoch}")
    whole = run(saves, enable_checkpointing=True)
    for epoch, sparsity in enumerate((0.5, 0.8, 0.8)):
        saved = read(tmp_path / f"epoch={epoch}.ckpt")
        zero = sum(int((w == 0).sum()) for w in saved["state_dict"].values() if w.dim() > 1)
        assert zero == round(sparsity * WEIGHTS)
        assert "callbacks" not in saved
    plain = Net()
    plain.load_state_dict(saved["state_dict"])
    assert equal(copied(plain), whole[1])
    fresh = Net(ADAM)
    with pytest.raises(Exception, match="weights"):
        run(module=fresh, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert fresh.trained == 0


def test_checkpoint_saved_manually_during_a_fit_resumes(tmp_path):
    class Saves(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step in (7, 13, 14):
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

        def on_validation_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"val{trainer.current_epoch}.ckpt")

    whole = run(Saves())
    for name in ("7", "13", "14", "val0", "val1"):
        check(tmp_path / f"{name}.ckpt")
        assert equal(whole, run(module=Logs(ADAM, seed=1), ckpt_path=tmp_path / f"{name}.ckpt"))


def test_checkpoint_saved_on_an_exception_resumes(tmp_path):
    """Lightning counts the failed batch as started: a resumed run continues after it."""

    class Fails(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 10:
                raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run(OnExceptionCheckpoint(tmp_path, "cut"), Fails(), enable_checkpointing=True)
    assert check(tmp_path / "cut.ckpt")["global_step"] == 10
    step, weights, state, _ = run(module=Logs(ADAM, seed=1), ckpt_path=tmp_path / "cut.ckpt")
    assert step == 23
    assert [entry["step"] for entry in state["history"]] == [*AT]
    assert sum(int((w == 0).sum()) for w in weights.values()) == round(0.8 * WEIGHTS)


PRUNERS = {
    "gradual": lambda **kw: MagnitudePruning(0.8, schedule=LEVELS, **kw),
    "soft": lambda **kw: MagnitudePruning(0.8, schedule=LEVELS, soft=True, **kw),
    "movement": lambda **kw: MagnitudePruning(0.8, schedule=LEVELS, criterion="movement", **kw),
    "rewound": lambda **kw: MagnitudePruning(0.8, schedule=LEVELS, rewind="1it", **kw),
    "sparse training": lambda **kw: DynamicSparseTraining(0.8, every="4it", **kw),
}


@pytest.mark.parametrize("name", PRUNERS)
def test_resuming_a_finished_run_restores_its_masks(name, tmp_path):
    """Lightning trains nothing then, and calls no hook of training."""
    pruning, module = PRUNERS[name](), Net(ADAM)
    fit(module, pruning, data=data()).save_checkpoint(tmp_path / "end.ckpt")
    again, other = PRUNERS[name](), Net(ADAM, seed=1)
    made = fit(other, again, data=data(), ckpt_path=tmp_path / "end.ckpt")
    assert other.trained == 0
    assert again.reached
    assert equal(again.state_dict(), pruning.state_dict())
    made.save_checkpoint(tmp_path / "copy.ckpt")
    for one in (module, other):
        made = fit(one, pruning if one is module else again, data=data(), max_epochs=1)
    assert equal(copied(other), copied(module)), "another fit goes on alike"
    assert equal(dict(again.masks), dict(pruning.masks))
    ends = [read(tmp_path / f"{name}.ckpt") for name in ("end", "copy")]
    assert equal(ends[0]["callbacks"], ends[1]["callbacks"])
