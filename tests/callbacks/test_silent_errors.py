# SPDX-License-Identifier: MIT
"""Faults that a reading with fresh eyes found: each was a silent wrong result."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback as LightningCallback
from tiny_fits import BATCHES, Net, loader, trainer, weights, zeros
from torch import nn

from regrow import Cyclic, Exponential, MagnitudePruning, SparseModelCheckpoint, Table
from regrow.utils.errors import ConfigError, StateError


def once(sparsity=0.5, **kw):
    return MagnitudePruning(sparsity, schedule="one_shot", begin=0, **kw)


def test_parameters_replaced_between_fits_are_named():
    pruning, module = once(), Net()
    trainer(pruning).fit(module, loader())
    module.body[2] = nn.Linear(16, 3)
    with pytest.raises(StateError, match=r"body\.2\.weight of the model were replaced"):
        trainer(pruning).fit(module, loader())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_pruners_give_back_what_both_removed(order):
    module = Net(lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    before = {name: tensor.clone() for name, tensor in weights(module).items()}
    both = [once(0.5, include=["body.0"]), once(0.5)]
    trainer(*both, max_epochs=1).fit(module, loader())
    for index in order:
        both[index].unprune()
    for name, tensor in weights(module).items():
        assert torch.equal(tensor, before[name])


def test_unprune_of_one_keeps_the_zeros_of_the_other():
    seen = []

    class At(LightningCallback):
        def on_validation_start(self, trainer, module):
            one.unprune()
            mask = other.masks["body.0.weight"]
            seen.append(int(module.body[0].weight[~mask].count_nonzero()))

    one, other = once(0.5, include=["body.0"]), once(0.5)
    trainer(one, other, At(), max_epochs=1).fit(Net(), loader(), loader(2))
    assert seen == [0]


def test_state_after_a_test_of_another_moment_is_that_of_the_weights(tmp_path):
    pruning, module = once(0.5), Net()
    job = trainer(pruning)
    job.fit(module, loader())
    job.save_checkpoint(tmp_path / "a.ckpt")
    job.test(module, loader(), ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True)
    pruning.prune_to(0.9)
    job.save_checkpoint(tmp_path / "b.ckpt")
    other = once(0.5)
    other.attach(Net(), tmp_path / "b.ckpt")
    assert other.sparsity == round(0.9 * 144) / 144


def test_masks_are_given_up_with_a_dense_checkpoint(tmp_path):
    dense = Net()
    job = trainer(max_epochs=1)
    job.fit(dense, loader())
    job.save_checkpoint(tmp_path / "dense.ckpt")
    pruning, module = once(), Net()
    job = trainer(pruning)
    job.fit(module, loader())
    with pytest.warns(UserWarning, match="the masks it had are given up"):
        job.test(module, loader(), ckpt_path=str(tmp_path / "dense.ckpt"), weights_only=True)
    assert zeros(module) == 0
    assert pruning.sparsity == 0


@pytest.mark.parametrize(
    ("first", "then", "word"),
    [
        ({"granularity": "2:4"}, {}, "granularity"),
        ({}, {"criterion": "random"}, "criterion"),
        ({"distribution": "erk"}, {}, "distribution"),
        ({}, {"layers": {"body.0": 0.1}}, "layers"),
    ],
)
def test_another_method_is_no_resume(tmp_path, first, then, word):
    where = {"include": ["body.2"], "schedule": Table({"1it": 0.5})} if first else {}
    where = where or {"schedule": Table({"1it": 0.5})}
    module = Net()
    job = trainer(MagnitudePruning(**where, **first), max_epochs=1)
    job.fit(module, loader())
    job.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(StateError, match=f"the checkpoint was pruned with.*{word}="):
        trainer(MagnitudePruning(**where, **then)).fit(
            Net(), loader(), ckpt_path=str(tmp_path / "a.ckpt")
        )


def test_numpy_numbers_in_a_schedule_leave_the_checkpoint_loadable(tmp_path):
    np = pytest.importorskip("numpy")
    pruning = MagnitudePruning(0.75, schedule=Exponential(np.float64(0.5), "3it"))
    job = trainer(pruning)
    job.fit(Net(), loader())
    job.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]


def test_cyclic_whose_phases_do_not_fit_is_refused():
    with pytest.raises(ConfigError, match="is longer than begin to end"):
        trainer(MagnitudePruning(0.5, schedule=Cyclic("1ep", "2ep", "5ep")), max_epochs=6).fit(
            Net(), loader()
        )


def test_layers_go_on_after_a_change_by_hand():
    class Hand(LightningCallback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 5:
                pruning.prune_to(0.3)

    pruning = MagnitudePruning(0.8, schedule="linear", every="1it", layers={"body.2": 0.5})
    trainer(pruning, Hand(), max_epochs=4).fit(Net(), loader())
    densities = pruning.pruner.densities
    assert densities["body.2.weight"] == 0.5
    assert densities["body.0.weight"] == pytest.approx(0.2, abs=0.01)


def test_everything_comes_back_with_layers_too():
    pruning = once(0.5, layers={"body.2": 0.25})
    trainer(pruning).fit(Net(), loader())
    pruning.prune_to(0)
    assert pruning.sparsity == 0


def test_overlapping_layers_with_two_targets_are_refused():
    with pytest.raises(ConfigError, match=r"layers 'body\.2' never counts"):
        trainer(once(0.5, layers={"*": 0.2, "body.2": 0.9})).fit(Net(), loader())


def test_a_criterion_that_works_in_place_is_refused():
    module = Net()
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(StateError, match=r"changed body\.0\.weight in place"):
        trainer(once(criterion=lambda w: w.abs_())).fit(module, loader())
    assert len(before) == 4


def test_unknown_monitor_is_named_after_the_first_validation(tmp_path):
    keep = SparseModelCheckpoint(dirpath=tmp_path, monitor="val/los")
    pruning = MagnitudePruning(0.5, schedule=Table({f"{4 * BATCHES}it": 0.5}))
    job = trainer(pruning, keep, max_epochs=6, enable_checkpointing=True)
    with pytest.raises(Exception, match="val/los"):
        job.fit(Net(), loader(), loader(2))
    assert job.current_epoch < 3


def test_wildcard_weights_leave_norms_alone():
    from regrow.masks.targets import select_targets

    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    assert [t.name for t in select_targets(model, include=["*.weight"]).targets] == [
        "0.weight",
        "2.weight",
    ]
    assert [t.name for t in select_targets(model, include=["1.weight"]).targets] == ["1.weight"]
