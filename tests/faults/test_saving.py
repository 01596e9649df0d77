# SPDX-License-Identifier: MIT
"""A full disk or an unwritable folder keeps existing files and raises a clear error.

The limit is set by the operating system: no file of this process can grow beyond it.
"""

import errno
import os
import resource
import signal
from contextlib import contextmanager

import pytest
import torch
from fault_scenarios import SCENARIOS
from interrupted_fits import run
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import Net, equal, read
from torch import nn

import regrow
from regrow import SparseModelCheckpoint, StateError
from regrow.callbacks.sparse_model_checkpoint import AtomicCheckpoint
from regrow.channels.latency_budget import LatencyTable
from regrow.io.files import write_atomic, write_json


@contextmanager
def full_disk(size):
    """No file can grow beyond `size` bytes."""
    signals = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, signals)


class Fills(Callback):
    """Make the disk full from a step on."""

    def __init__(self, step):
        self.step, self.disk = step, full_disk(2000)

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            self.disk.__enter__()

    def on_exception(self, *_):
        self.disk.__exit__(None, None, None)


KINDS = {
    "ours": (lambda d: SparseModelCheckpoint(d, monitor="train/loss", every_n_train_steps=1),
             StateError, r"last\.ckpt could not be written \(.*File too large.*file is unchanged"),
    "dense": (lambda d: AtomicCheckpoint(d, "last", every_n_train_steps=1,
                                        enable_version_counter=False),
              StateError, r"last\.ckpt could not be written \(.*File too large.*file is unchanged"),
    "lightning": (lambda d: ModelCheckpoint(d, "last", every_n_train_steps=1,
                                            enable_version_counter=False),
                  OSError, "File too large"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_full_disk_keeps_the_previous_checkpoint(kind, tmp_path):
    make, error, words = KINDS[kind]
    whole = run(tmp_path / "whole.ckpt", *SCENARIOS["gradual"]()[0])
    folder = tmp_path / "run"
    pruning, saving = SCENARIOS["gradual"]()[0], make(folder)
    with pytest.raises(error, match=words):
        run(folder / "end.ckpt", *pruning, Fills(6), saving, enable_checkpointing=True)
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert read(folder / "last.ckpt")["global_step"] == 6
    again = run(folder / "end.ckpt", *SCENARIOS["gradual"]()[0], ckpt_path=folder / "last.ckpt")
    assert equal(again, whole)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3))


def a_table(path):
    LatencyTable({f"layer{i}": [(1, 1, 2.0)] for i in range(200)}, device="cpu", batch=1).save(path)


WRITERS = {
    "json": ("a.json", lambda path: write_json(path, list(range(2000)))),
    "bytes": ("a.bin", lambda path: write_atomic(path, lambda file: file.write(b"x" * 9000))),
    "weights": ("a.pt", lambda path: write_atomic(path, lambda f: torch.save(net(), f))),
    "table": ("a.json", a_table),
    "export": ("a.safetensors", lambda path: regrow.export(net(), path)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_full_disk_keeps_the_previous_file(kind, tmp_path):
    name, write = WRITERS[kind]
    path = tmp_path / name
    path.write_text("what was there")
    with full_disk(3000), pytest.raises(StateError, match=r"could not be written"):
        write(path)
    assert path.read_text() == "what was there"
    assert [p.name for p in tmp_path.iterdir()] == [name]
    write(path)  # there is room again
    assert path.stat().st_size > 3000


@pytest.mark.parametrize("kind", WRITERS)
def test_file_in_place_of_a_folder_raises(kind, tmp_path):
    name, write = WRITERS[kind]
    (tmp_path / "place").write_text("a file")
    with pytest.raises((StateError, regrow.ConfigError), match=r"(could not|cannot) be written"):
        write(tmp_path / "place" / name)
    assert (tmp_path / "place").read_text() == "a file"


@pytest.mark.parametrize("kind", WRITERS)
def test_read_only_folder_raises(kind, tmp_path, monkeypatch):
    """The folder becomes read-only between writing the temporary file and renaming it."""
    name, write = WRITERS[kind]
    path = tmp_path / name
    path.write_text("what was there")

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        patch.setattr("pathlib.Path.replace", refuse)
        with pytest.raises(StateError, match=r"could not be written.*Read-only file system"):
            write(path)
    assert path.read_text() == "what was there"
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_checkpoint_folder_that_cannot_be_made_raises(tmp_path):
    (tmp_path / "place").write_text("a file")
    saving = SparseModelCheckpoint(tmp_path / "place", monitor="train/loss", every_n_train_steps=1)
    with pytest.raises((OSError, StateError), match="place"):
        run(tmp_path / "end.ckpt", *SCENARIOS["gradual"]()[0], saving, enable_checkpointing=True)
    assert (tmp_path / "place").read_text() == "a file"


def test_model_is_unchanged_after_a_failed_export(tmp_path):
    module = Net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with full_disk(100), pytest.raises(StateError):
        regrow.export(module.body, tmp_path / "a.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
