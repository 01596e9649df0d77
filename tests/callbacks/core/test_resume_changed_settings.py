# SPDX-License-Identifier: MIT
"""A resume with other settings raises, unless told to keep or to stretch the steps."""

from functools import partial

import pytest
from lightning.pytorch import Callback
from tiny_fits import BATCHES, Events, Net, fit, loader
from torch import optim

from regrow import ConfigError, Linear, MagnitudePruning, Table

LINEAR = Linear(0, 0.5, 0.125)  # of 4 epochs of 8: steps 4, 8, 12, 16


@pytest.fixture
def cut(tmp_path):
    """A checkpoint of step 6, after the first of four events."""

    class Save(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "cut.ckpt")

    events = Events()
    fit(Net(), events, MagnitudePruning(0.8, schedule=LINEAR), Save(), max_epochs=4)
    assert events.steps == [4, 8, 12, 16]
    return tmp_path / "cut.ckpt"


def resumed(path, schedule=LINEAR, on_change="refuse", **kw):
    events = Events()
    pruning = MagnitudePruning(0.8, schedule=schedule, on_change=on_change)
    fit(Net(), events, pruning, ckpt_path=path, **({"max_epochs": 4} | kw))
    assert events.seen[-1][1] == round(115 / 144, 6)
    return events.steps


def test_the_same_settings_resume(cut):
    for on_change in ("refuse", "keep", "stretch"):
        assert resumed(cut, on_change=on_change) == [8, 12, 16]


CHANGES = {
    "longer": ({"max_epochs": 8}, [8, 16, 24, 32]),
    "shorter": ({"max_epochs": 3}, [3, 6, 9, 12]),
    "other batches": ({"data": loader(BATCHES // 2)}, [2, 4, 6, 8]),
    "accumulation": ({"accumulate_grad_batches": 2}, [2, 4, 6, 8]),
    "max steps": ({"max_steps": 16}, [2, 4, 6, 8]),
}


@pytest.mark.parametrize("change", ["longer", "shorter", "max steps"])
def test_settings_that_move_the_events_raise(change, cut):
    settings, _ = CHANGES[change]
    module = Net()
    pruning = MagnitudePruning(0.8, schedule=LINEAR)
    with pytest.raises(ConfigError, match=r"write on_change='keep'.*or on_change='stretch'"):
        fit(module, pruning, ckpt_path=cut, **({"max_epochs": 4} | settings))
    assert module.trained == 0


def test_keep_uses_the_steps_of_the_checkpoint(cut):
    assert resumed(cut, on_change="keep", max_epochs=8) == [8, 12, 16]


def test_keep_with_a_fit_that_ends_too_early_raises(cut):
    module, pruning = Net(), MagnitudePruning(0.8, schedule=LINEAR, on_change="keep")
    with pytest.raises(ConfigError, match="ends before step 16"):
        fit(module, pruning, ckpt_path=cut, max_epochs=2)
    assert module.trained == 0


def test_stretch_uses_the_steps_of_the_present_fit(cut):
    """Events in the past or below the present sparsity are dropped."""
    assert resumed(cut, on_change="stretch", max_epochs=8) == [16, 24, 32]
    assert resumed(cut, on_change="stretch", max_epochs=3) == [6, 9, 12]
    assert resumed(cut, on_change="stretch", max_steps=16) == [6, 8]


def test_stretch_into_the_past_prunes_to_the_target_at_once(cut):
    assert resumed(cut, on_change="stretch", max_steps=9) == [6]


def test_another_schedule_raises(cut):
    module, pruning = Net(), MagnitudePruning(0.8, schedule=Table({"9it": 0.8}))
    with pytest.raises(ConfigError, match="3 from step 8"):
        fit(module, pruning, ckpt_path=cut, max_epochs=4)
    assert module.trained == 0
    assert resumed(cut, Table({"9it": 0.8}), "stretch") == [9]


def test_changed_settings_after_the_last_event_are_ignored(tmp_path):
    made = fit(Net(), MagnitudePruning(0.8, schedule=LINEAR), max_epochs=4)
    made.save_checkpoint(tmp_path / "end.ckpt")
    events = Events()
    pruning = MagnitudePruning(0.8, schedule=LINEAR)
    fit(Net(), events, pruning, ckpt_path=tmp_path / "end.ckpt", max_epochs=6)
    assert events.steps == []
    assert pruning.reached


def test_stretch_under_manual_optimisation_counts_batches(tmp_path):
    """With two steps per batch, the past is counted in batches, like the plan."""

    class Manual(Net):
        def __init__(self):
            super().__init__(partial(optim.SGD, lr=0.1))
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for _ in range(2):
                self.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                self.optimizers().step()

    class Begun(Events):
        def __init__(self):
            super().__init__()
            self.at = []

        def on_prune_event(self, trainer, *_):
            self.at.append(trainer.fit_loop.epoch_loop.total_batch_idx)

    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (0, 5):
                trainer.save_checkpoint(tmp_path / "cut.ckpt")

    begun = Begun()
    fit(Manual(), begun, MagnitudePruning(0.8, schedule=LINEAR), Save(), max_epochs=4)
    assert begun.at == [4, 8, 12, 16]
    begun = Begun()
    pruning = MagnitudePruning(0.8, schedule=LINEAR)
    fit(Manual(), begun, pruning, ckpt_path=tmp_path / "cut.ckpt", max_epochs=4)
    assert begun.at == [8, 12, 16]
    begun = Begun()
    pruning = MagnitudePruning(0.8, schedule=LINEAR, on_change="stretch")
    fit(Manual(), begun, pruning, ckpt_path=tmp_path / "cut.ckpt", max_epochs=3)
    assert begun.at == [6, 9, 12]
