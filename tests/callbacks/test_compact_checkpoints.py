# SPDX-License-Identifier: MIT
"""After a fit with channel pruning, a small checkpoint stands beside each full one."""

import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_channel_fits import Net, left, output, pruning, run, sizes
from tiny_fits import loader, read

from regrow import ChannelsMixin, SparseModelCheckpoint, Table, load
from regrow.callbacks.support.compact_checkpoints import compact_path


def fit(tmp_path, callback=None, saves=None, module=None, **kw):
    """Fit with checkpoints of the best and the last model; module, callback, trainer, saves."""
    callback = callback or pruning()
    saves = saves or SparseModelCheckpoint(tmp_path, monitor="val/loss")
    module = module or Net()
    trainer = run(module, callback, saves, enable_checkpointing=True, **kw)
    return module, callback, trainer, saves


def expected(path, module):
    """The outputs of a full checkpoint, in a network of the original shapes."""
    full = type(module)()
    full.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    return output(full)


@pytest.mark.parametrize("compact", ["end", "event"])
def test_small_files_compute_what_the_full_ones_do(tmp_path, compact):
    _, callback, _, saves = fit(tmp_path, pruning(compact=compact))
    for path in (saves.best_model_path, saves.last_model_path):
        small = load(Net, compact_path(path))
        assert left(small) == 8
        if compact == "end":
            assert (output(small) - expected(path, small)).abs().max() < 1e-5
        saved = torch.load(compact_path(path), weights_only=True)
        assert {"optimizer_states", "callbacks", "loops"}.isdisjoint(saved)
    assert callback.sparsity == 0.6


def test_small_files_do_not_change_model_and_callback(tmp_path):
    kw = {"monitor": "val/loss", "save_last": True, "filename": "a"}
    with_files = fit(tmp_path / "a", saves=ModelCheckpoint(tmp_path / "a", **kw))
    module, callback = Net(), pruning()
    run(module, callback)  # without checkpoints
    assert torch.equal(output(module), output(with_files[0]))
    assert sizes(module) == sizes(with_files[0])
    assert callback.history == with_files[1].history
    callback.expand()
    with_files[1].expand()
    assert all(map(torch.equal, module.parameters(), with_files[0].parameters()))


def test_weights_load_in_a_process_without_regrow(tmp_path):
    _, _, _, saves = fit(tmp_path)
    path = compact_path(saves.last_model_path)
    code = f"""
import sys, torch
from torch import nn
state = torch.load({str(path)!r}, weights_only=True)["state_dict"]
a, b = len(state["body.0.bias"]), len(state["body.3.bias"])
net = nn.Module()
net.body = nn.Sequential(nn.Linear(6, a), nn.BatchNorm1d(a), nn.Sigmoid(), nn.Linear(a, b),
                         nn.ReLU(), nn.Dropout(0.2), nn.Linear(b, 3))
print(net.load_state_dict(state), a + b, "regrow" in sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not printed.stderr, printed.stderr
    assert printed.stdout.split("\n")[0] == "<All keys matched successfully> 8 False"


class WithHyperparameters(ChannelsMixin, Net):
    def __init__(self, width=12):
        super().__init__()
        self.save_hyperparameters()


def test_load_from_checkpoint_takes_the_small_file(tmp_path):
    module, _, _, saves = fit(tmp_path, module=WithHyperparameters(width=12))
    path = compact_path(saves.last_model_path)
    again = WithHyperparameters.load_from_checkpoint(path)
    assert left(again) == 8
    assert again.hparams == {"width": 12}
    assert torch.equal(output(again), output(module))


@pytest.mark.parametrize("weights_only", [False, True])
def test_testing_best_leaves_small_shapes_and_best_weights(tmp_path, weights_only):
    saves = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, save_weights_only=weights_only)
    module, callback, trainer, _ = fit(tmp_path, saves=saves)
    best = saves.best_model_path
    reference = expected(best, module)
    for path in (best, compact_path(best)):
        trainer.test(module, loader(2), ckpt_path=str(path))
        assert left(module) == 8
        assert (output(module) - reference).abs().max() < 1e-5
        assert callback.sparsity == 0.6
        assert all(not len(masked) for masked in callback.pruner.removed.values())
    if not weights_only:
        callback.expand()
        assert sizes(module) == (12, 8)


def test_testing_a_larger_checkpoint_restores_the_final_network_afterwards(tmp_path):
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    module, callback, trainer, _ = fit(tmp_path, saves=saves)
    before, history = output(module), list(callback.history)
    early = str(tmp_path / "epoch=0.ckpt")  # 15 of 20 channels
    losses = trainer.test(module, loader(2), ckpt_path=early)
    assert left(module) == 8
    assert torch.equal(output(module), before)
    assert callback.history == history
    plain = Net()
    plain.load_state_dict(torch.load(early, weights_only=True)["state_dict"])
    [reference] = pl.Trainer(logger=False, accelerator="cpu").test(plain, loader(2))
    assert abs(losses[0]["test/loss"] - reference["test/loss"]) < 1e-6


def test_the_best_model_may_have_fewer_channels_removed_than_the_last(tmp_path):
    best = ModelCheckpoint(tmp_path, "early", every_n_epochs=1, save_top_k=1, monitor="first")

    class First(Net):
        def on_train_epoch_end(self):
            self.log("first", float(self.trainer.current_epoch))

    _, _, _, saves = fit(tmp_path, saves=best, module=First())
    small = load(Net, compact_path(saves.best_model_path))
    assert left(small) == 15
    assert (output(small) - expected(saves.best_model_path, small)).abs().max() < 1e-5


def test_batch_norm_statistics_are_recalibrated_in_small_files(tmp_path):
    module, _, _, saves = fit(tmp_path, pruning(recalibrate=4))
    small = load(Net, compact_path(saves.last_model_path))
    assert torch.equal(small.body[1].running_mean, module.body[1].running_mean)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_statistics_are_recalibrated_in_each_precision(tmp_path, precision):
    _, _, _, saves = fit(tmp_path, pruning(recalibrate=2), precision=precision)
    assert left(load(Net, compact_path(saves.last_model_path))) == 8


def test_recalibrate_acts_after_cuts_at_events():
    plain, recalibrated = Net(), Net()
    run(plain, pruning(compact="event"))
    run(recalibrated, pruning(compact="event", recalibrate=4))
    assert not torch.equal(plain.body[1].running_mean, recalibrated.body[1].running_mean)


def test_nothing_is_written_without_a_cut(tmp_path):
    fit(tmp_path / "masked", pruning(compact=None), ModelCheckpoint(tmp_path / "masked"))
    fit(tmp_path / "dense", pruning(0.0, schedule=Table({"3it": 0.0})),
        ModelCheckpoint(tmp_path / "dense"))  # fmt: skip
    assert not list(tmp_path.rglob("compact-*"))


def test_the_log_names_the_files(tmp_path, caplog):
    with caplog.at_level("INFO", logger=f"{pl.__name__}.utilities.rank_zero"):
        _, _, _, saves = fit(tmp_path)
    text = caplog.text
    assert str(compact_path(saves.best_model_path)) in text
    assert str(compact_path(saves.last_model_path)) in text


def test_resuming_by_name_does_not_take_a_small_file(tmp_path):
    fit(tmp_path)
    module, callback = Net(), pruning()
    again = SparseModelCheckpoint(tmp_path, monitor="val/loss")
    run(module, callback, again, enable_checkpointing=True, ckpt_path="last", max_epochs=3)
    assert callback.sparsity == 0.6


def test_damaged_checkpoint_causes_a_warning_and_the_fit_ends(tmp_path):
    class Damage(pl.Callback):
        def on_train_end(self, trainer, module):
            for path in Path(tmp_path).glob("*.ckpt"):
                path.write_bytes(path.read_bytes()[:-200])

    module = Net()
    with pytest.warns(UserWarning, match="no small checkpoint"):
        run(module, pruning(), Damage(), ModelCheckpoint(tmp_path), enable_checkpointing=True)
    assert left(module) == 8


def test_state_saved_by_the_module_is_in_the_small_file(tmp_path):
    class Words(Net):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["words"] = ["a", "b"]

    _, _, _, saves = fit(tmp_path, module=Words())
    assert read(compact_path(saves.last_model_path))["words"] == ["a", "b"]
