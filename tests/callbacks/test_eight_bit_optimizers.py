# SPDX-License-Identifier: MIT
"""Pruned weights are zero under 8-bit and factored optimizers; a warning names state that stays."""

import warnings
from functools import partial

import pytest
import torch
from eight_bit_optimizers import Blockwise, Coded
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import WEIGHTS, Net, Watch, fit, loader, read, weights, zeros
from torch import nn, optim

from regrow import AccuracyBudget, DynamicSparseTraining, MagnitudePruning, Table
from regrow.pruning.pruner import Pruner
from regrow.utils.optimizers import load_moments, not_clearable

EVENTS = Table({"3it": 0.5, "11it": 0.8})
ADAFACTOR = partial(optim.Adafactor, lr=0.05)


class Weights(Watch):
    """Looks at weights alone, and at what the codes mean where there is a table."""

    def look(self, trainer, pl_module):
        self.looks += 1
        named = dict(pl_module.named_parameters())
        self.check(named, "in the model")
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, Coded):
                for name, kept in self.kept.items():
                    assert not optimizer.moment(named[name])[~kept].any(), name


def fitted(make, *callbacks, **kw):
    watch, module = Weights(), Net(make)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(module, watch, *callbacks, val=loader(), **kw)
    return (
        watch,
        module,
        [str(w.message) for w in said if "as one number per weight" in str(w.message)],
    )


@pytest.mark.parametrize(
    ("make", "warns"), [(Blockwise, 1), (Coded, 0), (ADAFACTOR, 0)], ids=["blocks", "codes", "af"]
)
def test_pruned_weights_are_zero_with_quantised_optimizer_state(make, warns, tmp_path):
    saved = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)
    pruning = MagnitudePruning(0.8, schedule=EVENTS)
    watch, module, said = fitted(make, pruning, saved, enable_checkpointing=True)
    assert watch.steps == [3, 11]
    assert zeros(module) == round(0.8 * WEIGHTS)
    assert watch.looks > 16 * 2
    assert len(said) == warns, "once a fit"
    assert all(
        "Blockwise does not store codes" in text and "regrow, unprune" in text for text in said
    )
    assert all(read(path) for path in tmp_path.glob("*.ckpt"))


@pytest.mark.parametrize("make", [Blockwise, Coded, ADAFACTOR], ids=["blocks", "codes", "af"])
def test_weights_move_between_masks(make):
    """Sparse training grows where momentum of the past may stand: counts and zeros hold."""
    pruning, module = DynamicSparseTraining(0.8, every="2it", end=0.9), Net(make)
    fit(module, pruning)
    assert zeros(module) == round(0.8 * WEIGHTS)
    for name, mask in pruning.masks.items():
        assert not weights(module)[name][~mask].any()
    assert [entry["kind"] for entry in pruning.history] == ["prune", *["drop_and_grow"] * 6]


@pytest.mark.parametrize("make", [Coded, optim.Adagrad], ids=["codes", "floats"])
def test_regrown_weights_have_zero_state(make):
    """With zero gradient a regrown weight does not change, since its moment is zero."""
    torch.manual_seed(0)
    layer = nn.Linear(20, 20, bias=False)
    optimizer, pruner = make(layer.parameters(), lr=0.1), Pruner(layer, keep_removed=True)
    pruner.enforcer.hook(optimizer)
    for event in (None, 0.8):
        layer.weight.grad = torch.randn(20, 20)
        optimizer.step()
        if event:
            pruner.prune_to(event, [optimizer])
    gone, values = ~pruner.masks["weight"], layer.weight.detach().clone()
    pruner.unprune(optimizers=[optimizer])
    back = layer.weight.detach().clone()
    assert torch.equal(back[~gone], values[~gone])
    layer.weight.grad = torch.zeros(20, 20)
    optimizer.step()
    assert torch.equal(layer.weight[gone], back[gone])


def test_quantised_moments_are_not_stored():
    """With other scales, restored codes would stand for other numbers."""
    layer = nn.Linear(20, 20, bias=False)
    optimizer, pruner = Coded(layer.parameters()), Pruner(layer, keep_removed="moments")
    layer.weight.grad = torch.randn(20, 20)
    optimizer.step()
    pruner.prune_to(0.5, [optimizer])
    assert list(pruner.state.removed_weights.values) == ["weight"]


def test_scalar_and_table_state_causes_no_warning():
    state = {
        "step": torch.tensor(3.0),
        "exp_avg": torch.zeros(4, 5),
        "state1": torch.zeros(4, 5, dtype=torch.uint8),
        "qmap1": torch.linspace(-1, 1, 256),
        "absmax1": torch.zeros(7),
    }
    shape = torch.Size([4, 5])
    assert not_clearable(state, shape) == []
    assert not_clearable(state | {"row": torch.zeros(4, 1), "codes": state["state1"]}, shape) == [
        "row",
        "codes",
    ]


@pytest.mark.parametrize("make", [Blockwise, partial(optim.NAdam, lr=0.01)], ids=["8bit", "nadam"])
def test_state_is_restored_in_its_dtypes(make):
    """torch's own loading would make bytes and float32 scalars the parameter's type."""
    layer = nn.Linear(300, 2).bfloat16()
    optimizer = make(layer.parameters())
    for parameter in layer.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    before = optimizer.state_dict()["state"]
    held = {i: {k: torch.as_tensor(v).clone() for k, v in s.items()} for i, s in before.items()}
    optimizer.step()
    load_moments(optimizer, {i: dict(s) for i, s in held.items()})
    for number, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            assert torch.as_tensor(value).dtype == held[number][key].dtype, key
            assert torch.equal(torch.as_tensor(value), held[number][key]), key


def test_a_budget_rolls_back_quantised_state_bit_exactly():
    module, pruning = Net(Blockwise), MagnitudePruning(0.9, schedule=Table({"8it": 0.9}))
    budget = AccuracyBudget("val/loss", 1e-9, mode="min", reference=-1.0)
    held, seen = {}, []

    class Look(Callback):
        def on_train_batch_start(self, trainer, *_):
            now = {k: v.clone() for s in trainer.optimizers[0].state.values() for k, v in s.items()}
            if trainer.global_step == 8:
                held.update(now)
            if pruning.history and pruning.history[-1]["kind"] == "rollback" and not seen:
                seen.append(all(torch.equal(now[k], held[k]) for k in held))
                seen.append({k: v.dtype for k, v in now.items()})

    fit(module, Look(), budget, pruning, val=loader(), max_epochs=4)
    assert seen == [True, {"scales": torch.float32, "codes": torch.uint8}]
