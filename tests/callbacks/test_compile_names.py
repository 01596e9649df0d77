# SPDX-License-Identifier: MIT
"""`torch.compile` adds a prefix to names, which does not appear in regrow's state."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import ADAM, WEIGHTS, Net, equal, fit, loader, read, trainer, zeros

import regrow
from regrow import (
    AccuracyBudget,
    DynamicSparseTraining,
    MagnitudePruning,
    Regrow,
    Rewind,
    SparsityMonitor,
    StateError,
    Table,
)
from regrow.utils.names import strip_compile_prefix

EVENTS = Table({"3it": 0.5, "11it": 0.8})


class Compiled(Net):
    """The whole network is compiled, and one of its layers besides."""

    def __init__(self, make=ADAM):
        super().__init__(make)
        self.body[0] = torch.compile(self.body[0], backend="eager")
        self.body = torch.compile(self.body, backend="eager")


def plain():
    return Net(ADAM)


DIRECTIONS = pytest.mark.parametrize(
    ("first", "second"), [(Compiled, plain), (plain, Compiled)], ids=["to plain", "to compiled"]
)
CALLBACKS = {
    "gradual": lambda: [MagnitudePruning(0.8, schedule=EVENTS)],
    "moments": lambda: [MagnitudePruning(0.8, schedule=EVENTS, keep_removed="moments")],
    "movement": lambda: [MagnitudePruning(0.8, schedule=EVENTS, criterion="movement")],
    "soft": lambda: [MagnitudePruning(0.8, schedule=EVENTS, soft=True)],
    "snfs": lambda: [DynamicSparseTraining(0.8, every="3it", end=0.9, grow="momentum")],
    "rewind": lambda: [MagnitudePruning(0.8, schedule=EVENTS), Rewind("2it")],
    "regrow": lambda: [
        MagnitudePruning(0.8, schedule=EVENTS),
        Regrow(["5it", "9it"], 0.2, init="original", train=["body.0"]),
    ],
    "budget": lambda: [
        AccuracyBudget("val/loss", 1e-9, mode="min", recover="6it", reference=-1.0),
        MagnitudePruning(0.5, schedule=Table({"3it": 0.5})),
    ],
}


OFTEN = ("gradual", "regrow")


def bare(module):
    return {
        strip_compile_prefix(name): tensor.clone() for name, tensor in module.state_dict().items()
    }


def words(value):
    """Every string in a nest of builtins."""
    if isinstance(value, dict):
        return {w for k, v in value.items() for w in words(k) | words(v)}
    if isinstance(value, list | tuple):
        return {w for item in value for w in words(item)}
    return {value} if isinstance(value, str) else set()


RARE = [pytest.param(k, marks=pytest.mark.slow) for k in CALLBACKS if k not in OFTEN]


@DIRECTIONS
@pytest.mark.parametrize("kind", [*OFTEN, *RARE])
def test_compiled_and_plain_runs_resume_each_other(first, second, kind, tmp_path):
    """Weights, masks, removed values and snapshots equal the uninterrupted run exactly."""
    saved = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    whole, callbacks = first(), CALLBACKS[kind]()
    fit(whole, *callbacks, saved, val=loader(2), max_epochs=3, enable_checkpointing=True)
    again, others = second(), CALLBACKS[kind]()
    fit(again, *others, val=loader(2), max_epochs=3, ckpt_path=tmp_path / "step=8.ckpt")
    assert equal(bare(again), bare(whole))
    for one, other in zip(callbacks, others, strict=True):
        assert equal(one.state_dict(), other.state_dict())
    found = words(read(tmp_path / "step=8.ckpt")["callbacks"])
    assert not {word for word in found if "_orig_mod" in word}


@DIRECTIONS
def test_a_compiled_checkpoint_is_tested_and_attached(first, second, tmp_path):
    pruning, module = MagnitudePruning(0.8, schedule=EVENTS), first()
    made = fit(module, pruning)
    path = tmp_path / "end.ckpt"
    made.save_checkpoint(path)
    fresh, other = second(), MagnitudePruning(0.8, schedule=EVENTS)
    trainer(other).test(fresh, loader(2), ckpt_path=path)
    assert equal(bare(fresh), bare(module))
    assert equal(dict(other.masks), dict(pruning.masks))
    another, third = second(), MagnitudePruning(0.8, schedule=EVENTS)
    third.attach(another, path)
    assert equal(dict(third.masks), dict(pruning.masks))
    third.attach(torch.compile(another, backend="eager"))
    assert list(third.masks) == ["body.0.weight", "body.2.weight"]
    third.unprune(["body._orig_mod.0"])
    assert third.pruner.state.pruned_in(["body.0"]) == 0


def test_missing_weights_still_raise(tmp_path):
    """Only names that differ by the prefix are taken for one another."""
    made = fit(Compiled(), MagnitudePruning(0.8, schedule=EVENTS))
    made.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    saved["state_dict"]["body._orig_mod.3.weight"] = saved["state_dict"].popitem()[1]
    torch.save(saved, tmp_path / "other.ckpt")
    pruning = MagnitudePruning(0.8, schedule=EVENTS)
    with pytest.raises(RuntimeError, match=r'Missing key.*"body.2.bias"'):
        fit(plain(), pruning, max_epochs=3, ckpt_path=tmp_path / "other.ckpt")


def test_name_hook_is_removed_after_the_fit():
    module = plain()
    fit(module, MagnitudePruning(0.8, schedule=EVENTS))
    assert not module._load_state_dict_pre_hooks
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict(Compiled().state_dict())
    copy.deepcopy(module)


def test_logs_patterns_and_functions_use_plain_names():
    logged = {}

    class Keys(Compiled):
        def on_train_batch_end(self, *_):
            logged.update(self.trainer.callback_metrics)

    pruning = MagnitudePruning(
        0.8, schedule=EVENTS, include=["body._orig_mod.0._orig_mod", "body.2"]
    )
    module = Keys()
    fit(module, pruning, SparsityMonitor())
    assert {"pruning/density/body.0.weight", "pruning/density/body.2.weight"} <= {*logged}
    assert zeros(module) == round(0.8 * WEIGHTS)
    masks = regrow.prune(Compiled(), 0.5)
    assert [*masks] == ["body.0.weight", "body.2.weight"]
    with pytest.raises(StateError, match=r"body\.2\.weight has no mask"):
        pruning.pruner.set_masks({"body.0.weight": masks["body.0.weight"]})
