# SPDX-License-Identifier: MIT
"""SparseModelCheckpoint and SparseEarlyStopping wait for the target sparsity."""

import shutil

import pytest
import torch
from installed_versions import LIGHTNING_25
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import ADAM, BATCHES, WEIGHTS, Net, fit, loader, read, trainer

from regrow import (
    ConfigError,
    Cyclic,
    MagnitudePruning,
    OneShot,
    SparseEarlyStopping,
    SparseModelCheckpoint,
    Table,
)

LEVELS = Table({"1ep": 0.4, "3ep": 0.8})


class Scored(Net):
    """Its validation score is given, epoch by epoch."""

    scores = ()

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.log("score", self.scores[self.trainer.current_epoch])


def scored(*scores):
    module = Scored(ADAM)
    module.scores = [float(score) for score in scores]
    return module


def pruned(path):
    weights = [w for w in read(path)["state_dict"].values() if w.dim() > 1]
    return sum(int((w == 0).sum()) for w in weights)


def test_best_checkpoint_is_never_dense(tmp_path):
    """The dense model scores best by far; the best of the sparse ones is the second of them."""
    saves = SparseModelCheckpoint(tmp_path, filename="{epoch}", monitor="score", mode="max")
    module = scored(100, 90, 80, 5, 7, 6)
    fit(module, MagnitudePruning(0.8, schedule=LEVELS), saves, val=loader(), max_epochs=6,
        enable_checkpointing=True)  # fmt: skip
    assert saves.best_model_path == str(tmp_path / "epoch=4.ckpt")
    assert float(saves.best_model_score) == 7
    assert {p.name for p in tmp_path.iterdir()} == {"epoch=4.ckpt", "last.ckpt"}
    assert pruned(saves.best_model_path) == round(0.8 * WEIGHTS)


@pytest.mark.parametrize("top", [2, -1, 0])
def test_top_k_ranks_sparse_models_only(top, tmp_path):
    saves = SparseModelCheckpoint(
        tmp_path, filename="{epoch}", monitor="score", mode="min", save_top_k=top
    )
    module = scored(0, 0, 0, 5, 7, 6)
    fit(module, MagnitudePruning(0.8, schedule=LEVELS), saves, val=loader(), max_epochs=6,
        enable_checkpointing=True)  # fmt: skip
    expected = {2: {3, 5}, -1: {3, 4, 5}, 0: set()}[top]
    names = {f"epoch={epoch}.ckpt" for epoch in expected} | {"last.ckpt"}
    assert {p.name for p in tmp_path.iterdir()} == names


class Lasts(Callback):
    """Reads last.ckpt at each epoch's beginning."""

    def __init__(self, path):
        self.path, self.seen = path, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.path.exists():
            self.seen.append((trainer.global_step, read(self.path)["global_step"]))


@pytest.mark.parametrize(
    ("when", "every"),
    [({}, 8), ({"every_n_train_steps": 3}, 3), ({"every_n_epochs": 2}, 16)],
)
@pytest.mark.parametrize("monitor", ["score", None])
@pytest.mark.parametrize("weights_only", [False, True])
def test_last_ckpt_is_always_written_and_resumable(when, every, monitor, weights_only, tmp_path):
    saves = SparseModelCheckpoint(
        tmp_path, filename="{step}", monitor=monitor, mode="max", save_weights_only=weights_only,
        **when,
    )  # fmt: skip
    lasts = Lasts(tmp_path / "last.ckpt")
    pruning = MagnitudePruning(0.8, schedule=LEVELS)
    fit(scored(*[1] * 6), pruning, saves, lasts, val=loader(), max_epochs=6,
        enable_checkpointing=True)  # fmt: skip
    # Lightning 2.5 also writes it at the end of each epoch, after validation
    due = [s for s in range(1, 49) if s % every == 0 or (LIGHTNING_25 and s % BATCHES == 0)]
    latest = [(step, max(s for s in due if s <= step)) for step in range(due[0], 48)]
    assert lasts.seen == latest
    again = MagnitudePruning(0.8, schedule=LEVELS)
    fit(scored(*[1] * 6), again, ckpt_path=tmp_path / "last.ckpt", max_epochs=6)
    for path in tmp_path.glob("step*.ckpt"):
        assert pruned(path) == round(0.8 * WEIGHTS)
        assert ("optimizer_states" in read(path)) != weights_only


def test_a_misspelt_monitor_raises(tmp_path):
    module = scored(*[1] * 6)
    saves = SparseModelCheckpoint(tmp_path, monitor="scores")
    with pytest.raises(Exception, match="scores"):
        fit(module, MagnitudePruning(0.8, schedule=OneShot(0)), saves, val=loader(), max_epochs=6,
            enable_checkpointing=True)  # fmt: skip


@pytest.mark.parametrize("first", [True, False])
def test_last_sparse_phase_is_ranked_in_a_cycle_that_ends_dense(first, tmp_path):
    """Sparse in epochs 1 and 3, dense in 2 and from 4 on, where it scores best."""
    saves = SparseModelCheckpoint(
        tmp_path, filename="{epoch}", monitor="score", mode="max", save_top_k=-1
    )
    stops = SparseEarlyStopping("score", mode="max", patience=1)
    pruning = MagnitudePruning(0.8, schedule=Cyclic("1ep", "4ep", "1ep", last="dense"))
    made = fit(scored(9, 1, 9, 2, 9, 8, 7), *((stops, pruning) if first else (pruning, stops)),
        saves, val=loader(), max_epochs=7, enable_checkpointing=True)  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == {"epoch=3.ckpt", "last.ckpt"}
    assert pruned(saves.best_model_path) == round(0.8 * WEIGHTS)
    assert pruned(tmp_path / "last.ckpt") == 0
    assert made.current_epoch == 6, "early stopping waits for the end of the plan: 9, then 8"


def test_cyclic_ranks_nothing_before_its_last_phase(tmp_path):
    saves = SparseModelCheckpoint(
        tmp_path, filename="{epoch}", monitor="score", mode="max", save_top_k=-1
    )
    pruning = MagnitudePruning(0.8, schedule=Cyclic("1ep", "3ep", "1ep"))
    fit(scored(*[1] * 5), pruning, saves, val=loader(), max_epochs=5, enable_checkpointing=True)
    assert {p.name for p in tmp_path.iterdir()} == {"epoch=3.ckpt", "epoch=4.ckpt", "last.ckpt"}


def test_ranking_waits_for_both_pruning_callbacks(tmp_path):
    saves = SparseModelCheckpoint(
        tmp_path, filename="{epoch}", monitor="score", mode="max", save_top_k=-1
    )
    both = [
        MagnitudePruning(0.8, schedule=OneShot(at), include=layer)
        for at, layer in [("1ep", "body.0"), ("3ep", "body.2")]
    ]
    fit(scored(*[1] * 4), *both, saves, val=loader(), max_epochs=4, enable_checkpointing=True)
    assert {p.name for p in tmp_path.iterdir()} == {"epoch=3.ckpt", "last.ckpt"}


def test_ranking_continues_after_a_resume(tmp_path):
    def run(epochs, **kw):
        saves = SparseModelCheckpoint(tmp_path, filename="{epoch}", monitor="score", mode="max")
        fit(scored(100, 90, 80, 7, 5, 6), MagnitudePruning(0.8, schedule=Table({"8it": 0.4,
            "24it": 0.8})), saves, val=loader(), max_epochs=epochs, enable_checkpointing=True,
            **kw)  # fmt: skip
        return saves

    run(5)
    saves = run(6, ckpt_path=tmp_path / "last.ckpt")
    assert saves.best_model_path == str(tmp_path / "epoch=3.ckpt")
    assert {p.name for p in tmp_path.iterdir()} == {"epoch=3.ckpt", "last.ckpt"}


class Keep(Callback):
    """Copies last.ckpt as it stands at each batch's beginning."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_start(self, trainer, *_):
        if (last := self.folder / "last.ckpt").exists():
            shutil.copy(last, self.folder / f"at{trainer.global_step}.ckpt")


def test_run_resumed_twice_from_epoch_ends_loses_no_batch(tmp_path):
    """Lightning's own checkpoints of that step repeat batches when resumed twice."""

    def run(folder, ckpt_path=None):
        saves = SparseModelCheckpoint(folder, monitor="score", every_n_train_steps=2)
        made = fit(scored(*[1] * 3), MagnitudePruning(0.8, schedule=OneShot("3it")), saves,
                   Keep(folder), val=loader(), max_epochs=3, enable_checkpointing=True,
                   ckpt_path=ckpt_path)  # fmt: skip
        return made.global_step

    assert run(tmp_path / "0") == 24
    for cut in (8, 9, 15, 16):
        assert run(tmp_path / f"1 {cut}", tmp_path / "0" / f"at{cut}.ckpt") == 24
        for again in (19, 22):
            resumed = tmp_path / f"1 {cut}" / f"at{again}.ckpt"
            assert run(tmp_path / f"2 {cut} {again}", resumed) == 24


def test_checkpoint_files_are_never_partial(tmp_path, monkeypatch):
    """Killed while Lightning copies from the temporary folder of another file system."""
    saves = SparseModelCheckpoint(tmp_path, monitor="score", mode="max", every_n_train_steps=2)
    pruning = MagnitudePruning(0.8, schedule=LEVELS)
    count = 0

    def cut_short(source, target, **_):
        nonlocal count
        count += 1
        if count < 3:
            return shutil.copyfile(source, target)
        with open(source, "rb") as file, open(target, "wb") as half:
            half.write(file.read(1000))
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "move", cut_short)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(scored(*[1] * 4), pruning, saves, val=loader(), max_epochs=4, enable_checkpointing=True)
    monkeypatch.undo()
    assert read(tmp_path / "last.ckpt")["global_step"] == 4


def test_save_last_false_raises():
    with pytest.raises(ConfigError, match="save_last=False"):
        SparseModelCheckpoint(monitor="score", save_last=False)


@pytest.mark.parametrize("callback", [SparseModelCheckpoint(), SparseEarlyStopping("score")])
def test_without_a_pruning_callback_they_raise(callback):
    module = scored(1, 1)
    with pytest.raises(ConfigError, match="needs a pruning callback"):
        fit(module, callback, val=loader(), enable_checkpointing=True)
    assert module.trained == 0
    made = trainer(callback, enable_checkpointing=True)
    made.validate(module, loader(), verbose=False)


def test_early_stopping_waits_for_the_target():
    """The score falls all the time; patience counts from the target on."""
    stop = SparseEarlyStopping("score", mode="max", patience=2)
    module = scored(100, 90, 80, 7, 6, 5, 4, 3)
    made = fit(module, MagnitudePruning(0.8, schedule=LEVELS), stop, val=loader(), max_epochs=8)
    assert made.current_epoch == 6
    assert stop.stopped_epoch == 5
    assert float(stop.best_score) == 7


def test_early_stopping_with_a_threshold_the_dense_model_meets():
    stop = SparseEarlyStopping("score", mode="max", stopping_threshold=50)
    module = scored(100, 90, 80, 7, 60, 5)
    made = fit(module, MagnitudePruning(0.8, schedule=LEVELS), stop, val=loader(), max_epochs=6)
    assert made.current_epoch == 5


@pytest.mark.parametrize("at_train_end", [True, False])
def test_early_stopping_works_at_the_end_of_training_or_validation(at_train_end):
    stop = SparseEarlyStopping(
        "score", mode="max", patience=1, check_on_train_epoch_end=at_train_end
    )
    module = scored(9, 8, 7, 6, 5, 4)
    made = fit(module, MagnitudePruning(0.8, schedule=LEVELS), stop, val=loader(), max_epochs=6)
    assert made.current_epoch == 5


def test_sparsity_zero_stops_like_plain_early_stopping():
    stop = SparseEarlyStopping("score", mode="max", patience=1)
    made = fit(scored(9, 8, 7, 6), MagnitudePruning(0), stop, val=loader(), max_epochs=4)
    assert made.current_epoch == 2
    assert torch.count_nonzero(made.lightning_module.body[0].weight) == 96


def test_unknown_monitor_raises_after_the_first_validation(tmp_path):
    keep = SparseModelCheckpoint(dirpath=tmp_path, monitor="val/los")
    pruning = MagnitudePruning(0.5, schedule=Table({f"{4 * BATCHES}it": 0.5}))
    job = trainer(pruning, keep, max_epochs=6, enable_checkpointing=True)
    with pytest.raises(Exception, match="val/los"):
        job.fit(Net(), loader(), loader(2))
    assert job.current_epoch < 3


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*.ckpt")}


class Slashed(Net):
    """Logs its epoch as `val/acc`."""

    def on_validation_epoch_end(self):
        self.log("val/acc", float(self.trainer.current_epoch))


def slashed(folder, *saves, epochs=3, **kw):
    pruning = MagnitudePruning(0.8, schedule=OneShot("1ep"))
    fit(Slashed(ADAM), pruning, *saves, val=loader(), max_epochs=epochs, enable_checkpointing=True,
        default_root_dir=folder, **kw)  # fmt: skip


def sparse(folder, **kw):
    return SparseModelCheckpoint(folder, **({"monitor": "val/acc", "mode": "max"} | kw))


@pytest.mark.parametrize(
    ("filename", "inserts", "name"),
    [
        ("{val/acc:.2f}", True, "val_acc=2.00.ckpt"),
        ("{epoch}-{val/acc}", True, "epoch=2-val_acc=2.0.ckpt"),
        ("{val/acc:.1f}-{val/accuracy}", True, "val_acc=2.0-val_accuracy=0.ckpt"),
        ("acc={val/acc:.2f}", False, "acc=2.00.ckpt"),
        ("best/{epoch}", True, "best/epoch=2.ckpt"),
    ],
)
def test_a_metric_with_a_slash_makes_no_folder(filename, inserts, name, tmp_path):
    saves = sparse(tmp_path, filename=filename, auto_insert_metric_name=inserts)
    slashed(tmp_path, saves)
    assert files(tmp_path) == {name, "last.ckpt"}
    assert saves.best_model_path == str(tmp_path / name)


def test_several_checkpoint_callbacks_share_one_last_ckpt(tmp_path):
    both = [sparse(tmp_path), sparse(tmp_path, mode="min", every_n_train_steps=3)]
    slashed(tmp_path, *both)
    assert {name for name in files(tmp_path) if name.startswith("last")} == {"last.ckpt"}
    assert {saves.last_model_path for saves in both} == {str(tmp_path / "last.ckpt")}
    assert read(tmp_path / "last.ckpt")["global_step"] == 3 * BATCHES


def test_last_ckpt_of_a_plain_model_checkpoint_is_shared(tmp_path):
    slashed(tmp_path, ModelCheckpoint(tmp_path, save_last=True), sparse(tmp_path))
    assert {name for name in files(tmp_path) if name.startswith("last")} == {"last.ckpt"}


@pytest.mark.parametrize("saved", ["last.ckpt", "epoch=1-step=16.ckpt"])
@pytest.mark.parametrize("top", [1, 2])
def test_resumed_run_overwrites_its_last_ckpt(saved, top, tmp_path):
    slashed(tmp_path, sparse(tmp_path), epochs=2)
    slashed(tmp_path, sparse(tmp_path, save_top_k=top), ckpt_path=tmp_path / saved)
    assert {name for name in files(tmp_path) if name.startswith("last")} == {"last.ckpt"}
    assert read(tmp_path / "last.ckpt")["global_step"] == 3 * BATCHES


def test_moved_folder_keeps_one_last_ckpt(tmp_path):
    slashed(tmp_path, sparse(tmp_path / "a"), epochs=2)
    (tmp_path / "a").rename(tmp_path / "b")
    slashed(tmp_path, sparse(tmp_path / "b"), ckpt_path=tmp_path / "b" / "last.ckpt")
    assert {n for n in files(tmp_path) if "last" in n} == {"b/last.ckpt"}


def test_checkpoint_of_another_run_in_the_folder_causes_a_warning(tmp_path):
    """The earlier run's file stays, and the warning says which is this run's."""
    slashed(tmp_path, sparse(tmp_path), epochs=2)
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.warns(UserWarning, match=r"last\.ckpt.*earlier run.*last-v1\.ckpt"):
        slashed(tmp_path, sparse(tmp_path))
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert read(tmp_path / "last-v1.ckpt")["global_step"] == 3 * BATCHES


def test_without_a_version_counter_last_ckpt_is_overwritten(tmp_path):
    for _ in range(2):
        slashed(tmp_path, sparse(tmp_path, enable_version_counter=False))
    assert files(tmp_path) == {"last.ckpt", "epoch=2-step=24.ckpt"}
