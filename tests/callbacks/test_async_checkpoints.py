# SPDX-License-Identifier: MIT
"""Asynchronously written checkpoints hold the state at the time of saving."""

import copy
import threading
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import AsyncCheckpointIO, TorchCheckpointIO
from tiny_fits import ADAM, Net, copied, equal, fit, loader, read, samples
from torch.distributed.checkpoint import FileSystemWriter, format_utils
from torch.distributed.checkpoint import save as save_shards
from torch.utils._pytree import tree_flatten, tree_unflatten

from regrow import (
    AccuracyBudget,
    DynamicSparseTraining,
    MagnitudePruning,
    RandomState,
    Regrow,
    Rewind,
    SparseModelCheckpoint,
    Table,
)
from regrow.data.tensor_loader import BatchLoader

LEVELS = Table({"3it": 0.4, "7it": 0.6, "11it": 0.8})


def data():
    return BatchLoader(*samples().tensors, batch_size=4)


class Held(TorchCheckpointIO):
    """Delay writing until released, or for some training steps."""

    def __init__(self, wait=lambda: time.sleep(0.02)):
        self.wait, self.threads = wait, set()

    def save_checkpoint(self, *args, **kw):
        self.wait()
        self.threads.add(threading.get_ident())
        super().save_checkpoint(*args, **kw)


class Sharded(TorchCheckpointIO):
    """Write a checkpoint as a folder: tensors as torch.distributed shards, and the rest."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        path = Path(path)
        leaves, spec = tree_flatten(checkpoint)
        tensors = {str(k): leaf for k, leaf in enumerate(leaves) if torch.is_tensor(leaf)}
        save_shards(tensors, storage_writer=FileSystemWriter(path), no_dist=True)
        rest = [None if torch.is_tensor(leaf) else leaf for leaf in leaves]
        torch.save((rest, spec), path / "rest.pt")

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        path = Path(path)
        format_utils.dcp_to_torch_save(path, path / "tensors.pt")
        tensors = torch.load(path / "tensors.pt", weights_only=True)
        leaves, spec = torch.load(path / "rest.pt", weights_only=False)
        for k, tensor in tensors.items():
            leaves[int(k)] = tensor
        return tree_unflatten(leaves, spec)


def run(saves=None, plugin=None, **kw):
    module, pruning = Net(ADAM), MagnitudePruning(0.8, schedule=LEVELS, criterion="movement")
    callbacks = [pruning, RandomState(), *([saves] if saves else [])]
    plugins = [plugin] if plugin else None
    fit(module, *callbacks, data=data(), plugins=plugins, enable_checkpointing=bool(saves), **kw)
    return copied(module), pruning.state_dict()


@pytest.mark.parametrize("kind", [ModelCheckpoint, SparseModelCheckpoint])
def test_async_files_equal_synchronous_ones(kind, tmp_path):
    held = Held()
    for name, plugin in (("now", TorchCheckpointIO()), ("later", AsyncCheckpointIO(held))):
        saves = kind(tmp_path / name, filename="{step}", every_n_train_steps=2, save_top_k=-1)
        whole = run(saves, plugin)
    names = sorted(path.name for path in (tmp_path / "now").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "later").iterdir())
    assert held.threads
    assert threading.get_ident() not in held.threads
    for name in names:
        now, later = (read(tmp_path / folder / name) for folder in ("now", "later"))
        for state in (now, later):
            state["callbacks"] = {
                key: value
                for key, value in state["callbacks"].items()
                if key.startswith("MagnitudePruning")
            }
        assert now["callbacks"]
        assert equal(now, later), name
        path = tmp_path / "later" / name
        assert equal(whole, run(plugin=AsyncCheckpointIO(Held()), ckpt_path=path)), name


def test_files_written_after_training_hold_the_state_of_their_step(tmp_path):
    """The first file is written after the fit's end: the queue holds every state."""
    end = threading.Event()

    class Ends(Callback):
        def on_train_end(self, *_):
            end.set()

    saves = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    pruning = MagnitudePruning(0.8, schedule=LEVELS)
    plugin = AsyncCheckpointIO(Held(lambda: end.wait(60)))
    fit(Net(ADAM), pruning, Ends(), saves, data=data(), plugins=[plugin], enable_checkpointing=True)
    for step, sparsity in ((5, 0.4), (10, 0.6), (15, 0.8)):
        saved = read(tmp_path / f"step={step}.ckpt")
        found = sum(int((w == 0).sum()) for w in saved["state_dict"].values() if w.dim() > 1)
        assert found == round(sparsity * 144)


@pytest.mark.parametrize("kind", [ModelCheckpoint, SparseModelCheckpoint])
def test_checkpoint_plugin_that_writes_folders_resumes(kind, tmp_path):
    saves = kind(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    whole = run(saves, Sharded())
    paths = [path for path in tmp_path.iterdir() if path.suffix == ".ckpt"]
    assert all(path.is_dir() for path in paths)
    assert paths
    for path in paths:
        assert equal(whole, run(plugin=Sharded(), ckpt_path=path)), path.name


class Frozen(Callback):
    """Record the state of every callback at each step, and a copy of it."""

    def __init__(self):
        self.taken = []

    def on_train_batch_end(self, trainer, *_):
        for callback in trainer.callbacks:
            state = callback.state_dict()
            self.taken.append(
                (trainer.global_step, callback.state_key, state, copy.deepcopy(state))
            )


SUITES = {
    "movement": lambda: [MagnitudePruning(0.8, schedule=LEVELS, criterion="movement")],
    "moments": lambda: [MagnitudePruning(0.8, schedule=LEVELS, keep_removed="moments")],
    "soft": lambda: [MagnitudePruning(0.8, schedule=LEVELS, soft=True)],
    "rewound": lambda: [
        MagnitudePruning(0.8, schedule=LEVELS),
        Rewind("2it", what=["weights", "lr", "optimizer"]),
    ],
    "rigl": lambda: [DynamicSparseTraining(0.8, every="3it")],
    "momentum": lambda: [DynamicSparseTraining(0.8, every="3it", grow="momentum")],
    "regrown": lambda: [
        MagnitudePruning(0.8, schedule=LEVELS),
        Regrow(at="12it", fraction=0.5, init="original", train="regrown"),
        RandomState(),
    ],
    "budget": lambda: [
        MagnitudePruning(0.8, schedule=Table({"1ep": 0.4, "2ep": 0.8})),
        AccuracyBudget("val/loss", 1e-6, mode="min", recover="2it"),
    ],
}


@pytest.mark.parametrize("name", SUITES)
def test_a_returned_state_never_changes(name):
    """So that a plugin's thread that writes it later writes the state of its step."""
    frozen, suite = Frozen(), SUITES[name]()
    fit(Net(ADAM), *suite, frozen, data=data(), val=loader(), max_epochs=4)
    assert len(frozen.taken) >= 16 * len(suite)
    for step, key, state, then in frozen.taken:
        assert equal(state, then), f"{key} of step {step}"
