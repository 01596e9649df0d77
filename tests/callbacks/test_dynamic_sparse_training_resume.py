# SPDX-License-Identifier: MIT
"""Sparse training that is interrupted and resumed, or attached to another model."""

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from slow_cases import mark_rest_slow
from tiny_fits import ADAM, SGD, Net, equal, fit, read, samples, weights
from torch import nn

from regrow import ConfigError, DynamicSparseTraining, RandomState, StateError
from regrow.data.tensor_loader import BatchLoader
from regrow.schedules.drop_fraction import drop_fraction_at

sparse = partial(DynamicSparseTraining, 0.8, drop_fraction=0.5, every="3it", end="17it")
CASES = {
    "rigl": (SGD, {}),
    "rigl, adam, its step skipped": (ADAM, {"skip_update": True, "init": "he"}),
    "set": (ADAM, {"grow": "random", "init": "survivors"}),
    "snfs": (SGD, {"grow": "momentum", "init": "original"}),
    "static": (SGD, {"grow": "none"}),
    "movement": (SGD, {"drop": "movement", "grow": "random"}),
    "by lot": (ADAM, {"drop": "random", "keep_removed": True, "init": "removed"}),
    "epochs": (SGD, {"every": "1ep", "end": 1.0, "distribution": "uniform"}),
}
# before the first update, at one, after one, at an epoch's end, after the last
CUTS = [1, 3, 4, 8, 12, 20]


class Noisy(Net):
    """With dropout, so that the generators count."""

    def loss(self, batch):
        return super().loss((nn.functional.dropout(batch[0], 0.3, self.training), batch[1]))


def run(make, pruning, *callbacks, seed=0, **kw):
    """A run of three epochs: what its last checkpoint says of it."""
    torch.manual_seed(seed)
    module, end = Noisy(make, seed), Path("end.ckpt")
    data = BatchLoader(*samples().tensors, batch_size=4, shuffle=True, seed=3)
    settings = {"max_epochs": 3, "enable_checkpointing": bool(callbacks)} | kw
    made = fit(module, RandomState(), pruning, *callbacks, data=data, **settings)
    made.save_checkpoint(end)
    saved = read(end)
    state = saved["callbacks"][pruning.state_key]
    return {"weights": saved["state_dict"], "optimizers": saved["optimizer_states"]} | state


def everywhere(folder):
    return ModelCheckpoint(
        folder,
        filename="{step}",
        every_n_train_steps=1,
        save_top_k=-1,
        auto_insert_metric_name=False,
    )


OFTEN = ("rigl, adam, its step skipped", "set", "snfs", "movement", "epochs")


@pytest.mark.parametrize("case", mark_rest_slow(CASES, OFTEN))
def test_resumed_run_is_the_uninterrupted_run(case, tmp_path):
    make, settings = CASES[case]
    whole = run(make, sparse(**settings), everywhere(tmp_path / "cut"))
    moves = settings.get("grow") != "none"
    assert len(whole["pruner"]["history"]) == (1 if not moves else 3 if case == "epochs" else 6)
    for cut in CUTS if case == "rigl" else CUTS[1::2]:
        path = tmp_path / "cut" / f"{cut}.ckpt"
        resumed = run(make, sparse(**settings), seed=1, ckpt_path=path)
        assert whole.keys() == resumed.keys()
        for what in whole:
            assert equal(whole[what], resumed[what]), f"{what}, cut at {cut}"


def test_changed_fit_length_raises_keeps_or_stretches(tmp_path):
    settings = {"every": "3it", "end": 0.5}
    run(SGD, sparse(**settings), everywhere(tmp_path))
    path = tmp_path / "8.ckpt"
    with pytest.raises(ConfigError, match="on_change='keep'"):
        run(SGD, sparse(**settings), ckpt_path=path, max_epochs=5)
    for change, end, steps in (("keep", 12, [0, 3, 6, 9]), ("stretch", 20, [*range(0, 20, 3)])):
        pruning = sparse(on_change=change, **settings)
        run(SGD, pruning, ckpt_path=path, max_epochs=5)
        assert [entry["step"] for entry in pruning.history] == steps
        shares = [entry["share"] for entry in pruning.history[3:]]
        assert shares == [drop_fraction_at(step, end, 0.5) for step in steps[3:]]


def test_checkpoint_of_another_target_raises(tmp_path):
    run(SGD, sparse(), everywhere(tmp_path))
    with pytest.raises(StateError, match="towards sparsity"):
        run(SGD, DynamicSparseTraining(0.5), ckpt_path=tmp_path / "4.ckpt")


def test_attach_restores_masks_and_gradient_momentum(tmp_path):
    pruning, module = sparse(grow="momentum", end="12it"), Net()
    made = fit(module, pruning, ModelCheckpoint(tmp_path), enable_checkpointing=True)
    path = tmp_path / "end.ckpt"
    made.save_checkpoint(path)
    other, twin = sparse(grow="momentum", end="12it"), Net()
    twin.load_state_dict(module.state_dict())
    other.attach(twin, path)
    assert other.masks.digest() == pruning.masks.digest()
    assert all(
        torch.equal(m, pruning.pruner.state.momenta[n])
        for n, m in other.pruner.state.momenta.items()
    )
    assert {*other.pruner.state.momenta} == {*weights(twin)}
    assert isinstance(twin.body[0], nn.Linear)
    assert other.history == pruning.history
