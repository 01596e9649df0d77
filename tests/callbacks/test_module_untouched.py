# SPDX-License-Identifier: MIT
"""No surgery on the module while it trains: keys, objects, copies, compilation, profilers."""

import copy

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.profilers import SimpleProfiler
from tiny_fits import ADAM, WEIGHTS, Net, Watch, fit, loader, zeros

from regrow import MagnitudePruning, OneShot, Table


class Copies(Callback):
    """Copies the module in the middle of training, also with a graph alive."""

    def __init__(self):
        self.made = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.made.append(copy.deepcopy(pl_module.body))

    def on_validation_end(self, trainer, pl_module):
        self.made.append(copy.deepcopy(pl_module.body))


def test_keys_and_objects_are_unchanged_and_copies_are_plain(tmp_path):
    module, copies = Net(ADAM), Copies()
    keys, objects = list(module.state_dict()), [*module.parameters(), *module.modules()]
    hooks = [dict(m.__dict__) for m in module.body.modules()]
    saved = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=3)
    pruning = MagnitudePruning(0.8, schedule=OneShot("4it"))
    fit(module, pruning, saved, copies, val=loader(), enable_checkpointing=True)
    assert list(module.state_dict()) == keys
    now = [*module.parameters(), *module.modules()]
    assert all(a is b for a, b in zip(objects, now, strict=True))
    after = [m.__dict__ for m in module.body.modules()]
    assert [list(h) for h in hooks] == [list(h) for h in after], "no attribute was added"
    for made in copies.made:
        assert all(type(p) is torch.nn.Parameter for p in made.parameters())
    for path in tmp_path.glob("*.ckpt"):
        assert list(torch.load(path, weights_only=True)["state_dict"]) == keys
    fresh = Net()
    fresh.load_state_dict(torch.load(path, weights_only=True)["state_dict"])


def test_compiled_inner_module_is_pruned():
    module, watch = Net(ADAM), Watch()
    plain, plain_pruning = (
        Net(ADAM),
        MagnitudePruning(0.8, schedule=Table({"3it": 0.5, "9it": 0.8})),
    )
    module.body = torch.compile(module.body, backend="eager")
    pruning = MagnitudePruning(
        0.8, schedule=Table({"3it": 0.5, "9it": 0.8}), include=["body.0", "body.2.weight"]
    )
    fit(module, watch, pruning, val=loader())
    fit(plain, plain_pruning)
    assert list(pruning.masks) == ["body.0.weight", "body.2.weight"]
    assert zeros(module) == round(0.8 * WEIGHTS)
    assert all(torch.equal(pruning.masks[n], plain_pruning.masks[n]) for n in pruning.masks)


def test_compiled_lightning_module_is_pruned():
    module = Net(ADAM)
    fit(torch.compile(module, backend="eager"), MagnitudePruning(0.8, schedule=OneShot("3it")))
    assert zeros(module) == round(0.8 * WEIGHTS)


def test_profiler_times_the_callback(tmp_path):
    profiler, module = SimpleProfiler(tmp_path, "profile"), Net()
    fit(module, MagnitudePruning(0.8, schedule=OneShot("3it")), profiler=profiler)
    assert zeros(module) == round(0.8 * WEIGHTS)
    assert "MagnitudePruning" in next(tmp_path.glob("fit-profile*")).read_text()
