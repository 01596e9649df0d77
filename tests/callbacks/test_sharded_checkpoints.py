# SPDX-License-Identifier: MIT
"""Sharded checkpoints of FSDP2 contain removed values and all other per-weight state."""

from pathlib import Path

import gloo_ranks
import pytest
import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint
from sharded_fits import SETUP
from tiny_fits import ADAM, Net, trainer

from regrow import MagnitudePruning
from regrow.callbacks.core.checkpoint_files import save_atomic
from regrow.utils.errors import StateError


def between_ranks(test):
    return pytest.mark.slow(pytest.mark.guard(test))


SPY = """
class Spy(Callback):
    "The whole weights right before the one event, written down by hand."
    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == 2:
            self.before = whole(module)

def one_shot(**kw):
    return MagnitudePruning(0.6, schedule="one_shot", begin="2it", **kw)

def strategy(**kw):
    return ModelParallelStrategy(data_parallel_size=WORLD, tensor_parallel_size=1,
                                 process_group_backend="gloo", **kw)

def undone(pruning, module, before, name):
    "Un-prune: the 60 % smallest of the weights that were written down are back, bit by bit."
    weights = {key: before[key] for key in pruning.masks}
    magnitudes = torch.cat([value.abs().flatten() for value in weights.values()])
    limit = magnitudes.sort().values[round(0.6 * len(magnitudes)) - 1]
    present = whole(module)
    pruning.unprune()
    for key, value in whole(module).items():
        gone = before[key].abs() <= limit if key in weights else torch.zeros(value.shape).bool()
        assert not present[key][gone].any() and gone.any() == (key in weights), (name, key)
        bits = torch.where(gone, before[key], present[key]).view(torch.int32)
        assert torch.equal(value.view(torch.int32), bits), (name, key)
"""

SAVED = (
    SPY
    + """
spy, pruning, module = Spy(), one_shot(), Sharded(ADAM)
trainer(pruning, spy, saver("one"), devices=1, num_nodes=WORLD, strategy=strategy(), max_epochs=1,
        use_distributed_sampler=True, **KEPT).fit(module, data())
undone(pruning, module, spy.before, "in place")
said["before"] = spy.before

# the first rank has none of the values in its file, though all else
meta = read(OUT / "one" / "epoch=0.ckpt" / "meta.pt")
[state] = [value for key, value in meta["callbacks"].items() if "MagnitudePruning" in key]
said["elsewhere"] = {k: [v.is_meta, list(v.shape)] for k, v in
                     state["pruner"]["removed_weights"].items()}
"""
)

RESUMED = (
    SPY
    + """
before = torch.load(OUT / "before.pt")
path = str(OUT / "one" / "epoch=0.ckpt")
for name in ("validate", "fit"):
    pruning, module = one_shot(), Sharded(ADAM)
    made = trainer(pruning, devices=1, num_nodes=WORLD, strategy=strategy(), max_epochs=2,
                   use_distributed_sampler=True)
    if name == "fit":  # another epoch
        made.fit(module, data(), ckpt_path=path)
    else:
        made.validate(module, data(), ckpt_path=path)
    undone(pruning, module, before, name)
said["done"] = True
"""
)

METHODS = """
def fit_in_parts(name, make):
    straight, pruning = Sharded(ADAM), make()
    sharded(pruning, saver(name), parts=True, max_epochs=3, **KEPT).fit(straight, data())
    again, resumed = Sharded(ADAM), make()
    path = str(OUT / name / "epoch=0.ckpt")
    sharded(resumed, saver(name + "2"), parts=True, max_epochs=3, **KEPT).fit(
        again, data(), ckpt_path=path)
    assert resumed.history == pruning.history and len(pruning.history) > 2, name
    assert resumed.history[0]["step"] < 8 < resumed.history[-1]["step"]
    states = [made.pruner.state_dict() for made in (pruning, resumed)]
    assert equal(*states), name
    one, other = whole(straight), whole(again)
    assert all(torch.equal(value, other[key]) for key, value in one.items()), name
    if pruning.keep_removed and not pruning.soft:
        for made in (pruning, resumed):
            made.unprune()
        one, other = whole(straight), whole(again)
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name
        assert all(value.all() for value in one.values())

def gradual(**kw):
    return lambda: MagnitudePruning(0.9, begin=0.0, end=0.75, every="3it", **kw)

METHODS = {
    "defaults": gradual(),
    "moments": gradual(keep_removed="moments"),
    "movement": lambda: MagnitudePruning(
        0.8, criterion="movement", begin="2it", end=0.75, every="3it"),
    "soft": gradual(soft=True),
    "snfs": lambda: DynamicSparseTraining(0.7, grow="momentum", every="2it"),
    "biases": gradual(include=["*.weight", "*.bias"]),
}
for name, make in METHODS.items():
    fit_in_parts(name, make)
said["methods"] = len(METHODS)

# original values and two pruners travel too; what a second pruner stores has a place of its own
both = lambda: [
    MagnitudePruning(0.5, schedule="one_shot", begin="1it", include=["body.0"]),
    MagnitudePruning(0.6, schedule="one_shot", begin="2it", include=["body.2"]),
]
module, made = Sharded(ADAM), both()
sharded(*made, saver("two"), parts=True, max_epochs=1, **KEPT).fit(module, data())
again, loaded = Sharded(ADAM), both()
sharded(*loaded, parts=True, max_epochs=1).fit(again, data(),
                                               ckpt_path=str(OUT / "two" / "epoch=0.ckpt"))
for one, other in zip(made, loaded):
    assert equal(one.pruner.state_dict(), other.pruner.state_dict())
    one.unprune()
    other.unprune()
assert equal(whole(module), whole(again))

# one kind of checkpoint is resumed by a strategy that writes the other; saving after the fit
module, pruning = Sharded(ADAM), MagnitudePruning(0.8, begin=0.0, end=0.5, every="2it")
made = sharded(pruning, parts=True, max_epochs=1)
made.fit(module, data())
made.save_checkpoint(OUT / "after.ckpt")
for parts in (False, True):
    again = Sharded(ADAM)
    loaded = MagnitudePruning(0.8, begin=0.0, end=0.25, every="2it", on_change="keep")
    resumed = sharded(loaded, parts=parts, max_epochs=2)
    resumed.fit(again, data(), ckpt_path=str(OUT / ("mixed.ckpt" if parts else "after.ckpt")))
    if not parts:
        resumed.save_checkpoint(OUT / "mixed.ckpt")
    assert equal(pruning.pruner.state_dict(), loaded.pruner.state_dict())

# last.ckpt is a folder that each epoch replaces
module, pruning = Sharded(ADAM), gradual()()
best = SparseModelCheckpoint(OUT / "best", "{epoch}", monitor="val/loss", mode="min")
val = DataLoader(samples(16), 4)
sharded(pruning, best, parts=True, max_epochs=4, **KEPT).fit(module, data(), val)
again, loaded = Sharded(ADAM), gradual()()
sharded(loaded, parts=True, max_epochs=4).validate(again, val, ckpt_path=best.last_model_path)
assert equal(whole(module), whole(again))
assert equal(pruning.pruner.state_dict(), loaded.pruner.state_dict())
said["files"] = sorted(path.name for path in (OUT / "best").iterdir())
"""


@between_ranks
def test_defaults_of_fsdp2_and_pruning_work_together(tmp_path):
    """Saved by two ranks; resumed by two, three and one, and read by a process without ranks."""
    one, other = gloo_ranks.run(SETUP + SAVED, tmp_path)
    assert one["elsewhere"] == other["elsewhere"]
    before = one["before"]
    assert one["elsewhere"] == {
        name: [True, list(value.shape)] for name, value in before.items() if value.dim() > 1
    }
    torch.save(before, tmp_path / "before.pt")
    for ranks in (2, 3, 1):
        assert all(s["done"] for s in gloo_ranks.run(SETUP + RESUMED, tmp_path, ranks=ranks))

    folder, file = tmp_path / "one" / "epoch=0.ckpt", tmp_path / "consolidated.ckpt"
    consolidated = _load_distributed_checkpoint(folder)
    torch.save(consolidated, file)
    for path in (folder, file):
        model, pruning = Net(ADAM), MagnitudePruning(0.6)
        model.load_state_dict(consolidated["state_dict"])
        kept = {name: value.detach().clone() for name, value in model.named_parameters()}
        pruning.attach(model, path)
        masks = {name: mask.clone() for name, mask in pruning.masks.items()}
        pruning.unprune()
        for name, mask in masks.items():
            value = dict(model.named_parameters())[name].detach()
            assert torch.equal(value, torch.where(mask, kept[name], before[name]))
            assert 0 < mask.sum() < mask.numel()

    for part in folder.glob("*.distcp"):
        part.unlink()
    with pytest.raises(StateError, match="has not all of the values"):
        pruning.attach(Net(ADAM), folder)


@between_ranks
def test_all_pruning_state_resumes_from_sharded_checkpoints(tmp_path):
    for said in gloo_ranks.run(SETUP + METHODS, tmp_path, timeout=500):
        assert said["methods"] == 6
        kept, last = said["files"]
        assert kept.startswith("epoch=")
        assert last == "last.ckpt"


@pytest.mark.parametrize("before", ["nothing", "file", "folder"])
@pytest.mark.parametrize("after", ["file", "folder"])
def test_a_checkpoint_replaces_a_file_or_a_folder(tmp_path, before, after):
    """What a killed run has left beside it is removed too."""
    path, made = tmp_path / "last.ckpt", trainer()
    _write(path, before, "old")
    for suffix in (".part", ".old") if before == "folder" else ():
        _write(tmp_path / f"last.ckpt{suffix}", before, "killed")
    save_atomic(made, str(path), lambda part: _write(Path(part), after, "new"))
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == [
        "new" if after == "folder" else "last.ckpt"
    ]
    assert list(tmp_path.iterdir()) == [path]
    assert path.is_dir() == (after == "folder")

    def fails(part):
        _write(Path(part), after, "half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StateError, match="could not be written"):
        save_atomic(made, str(path), fails)
    assert list(tmp_path.iterdir()) == [path]
    assert path.is_dir() == (after == "folder")


def _write(path, kind, name):
    if kind == "folder":
        path.mkdir(exist_ok=True)
        (path / name).write_text(name)
    elif kind == "file":
        path.write_text(name)
