# SPDX-License-Identifier: MIT
"""AccuracyBudget restores all parameters and buffers, whatever the module saves of itself."""

import pytest
import torch
from accuracy_budget_fits import Judge, table
from averaging_reference import averages
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import SGD, equal, loader, read, trainer
from torch import nn

from regrow import AccuracyBudget, MagnitudePruning
from regrow.callbacks.core.base import Callback


class Partial(Judge):
    """Leaves its first layer out of what it saves, as adapters leave out what they adapt."""

    def __init__(self, pruning):
        super().__init__(pruning, 0.3)
        self.strict_loading = False

    def state_dict(self, *args, **kw):
        state = super().state_dict(*args, **kw)
        return {name: tensor for name, tensor in state.items() if "body.0" not in name}


class Forgetful(nn.Linear):
    """A layer that saves nothing of itself."""

    def state_dict(self, *args, destination=None, **kw):
        return {} if destination is None else destination


class Inner(Judge):
    """A layer of it saves nothing, and loading is not strict."""

    def __init__(self, pruning):
        super().__init__(pruning, 0.3)
        self.strict_loading = False
        self.body[0] = Forgetful(6, 16)


class Counting(Judge):
    """Counts its batches in a buffer that is not saved; two names for one layer."""

    def __init__(self, pruning):
        super().__init__(pruning, 0.3)
        self.again = self.body[2]
        self.register_buffer("batches", torch.zeros(1), persistent=False)
        self.norm = nn.BatchNorm1d(6)

    def training_step(self, batch, batch_idx):
        self.batches += 1
        return super().training_step((self.norm(batch[0]), batch[1]), batch_idx)


def copied(module):
    """Parameters and buffers, by name, without the module's own `state_dict`."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


class Witness(Callback):
    """Copies the module before each event and after its rollback."""

    priority = 1  # after the budget

    def __init__(self):
        super().__init__()
        self.before, self.after = [], []

    def before_prune_event(self, trainer, pl_module, pruner):
        self.before.append(copied(pl_module))

    def on_suite_batch_start(self, trainer, pl_module, batch, batch_idx):
        history = trainer.callbacks[0].history
        if len(self.after) < sum(entry["kind"] == "rollback" for entry in history):
            self.after.append(copied(pl_module))


@pytest.mark.parametrize("make", [Partial, Inner, Counting])
def test_rollback_restores_what_is_not_saved(make):
    """0.25 holds, 0.75 fails; the resolution is so wide that no other try follows."""
    pruning, witness = MagnitudePruning(schedule=table(0.25, 0.75)), Witness()
    budget = AccuracyBudget("acc", max_drop=0.1, resolution=0.5)
    made = trainer(pruning, budget, witness, max_epochs=8)
    made.fit(make(pruning), loader(), loader(2))
    assert [entry["kind"] for entry in pruning.history] == ["prune", "rollback"]
    [after] = witness.after
    assert equal(after, witness.before[1])


@pytest.mark.parametrize("make", [Judge, Inner])
def test_rollback_restores_averages_of_what_is_not_saved(make):
    """The average as it was before the event, except for what the mask then zeroes."""
    averaging, found = averages().WeightAveraging(), []

    class Look(Callback):
        priority = 1

        def before_prune_event(self, trainer, pl_module, pruner):
            found.append(copied(averaging._average_model.module))

        def on_suite_batch_start(self, trainer, pl_module, batch, batch_idx):
            if len(found) == 2 and pruning.history[-1]["kind"] == "rollback":
                found.append(copied(averaging._average_model.module))

    pruning = MagnitudePruning(schedule=table(0.25, 0.75))
    module = make(pruning) if make is Inner else Judge(pruning, 0.3)
    budget = AccuracyBudget("acc", max_drop=0.1, resolution=0.5)
    made = trainer(pruning, budget, averaging, Look(), max_epochs=8)
    made.fit(module, loader(), loader(2))
    assert len(found) == 3
    assert equal(found[1], found[2])


@pytest.mark.parametrize("make", [SGD, torch.optim.Adam])
def test_checkpoint_within_a_recovery_loads_safely_and_restores(make, tmp_path):
    """Saved and resumed between the event and its rollback: equal to the fit without a break."""

    class Cut(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 36:
                raise RuntimeError("cut")

    ends = []
    for path in (None, tmp_path / "cut.ckpt"):
        pruning = MagnitudePruning(schedule=table(0.25, 0.75))
        module = Judge(pruning, 0.3, make)
        budget = AccuracyBudget("acc", max_drop=0.1, resolution=0.5)
        if path is not None:
            before = MagnitudePruning(schedule=table(0.25, 0.75))
            other = AccuracyBudget("acc", max_drop=0.1, resolution=0.5)
            keep = ModelCheckpoint(tmp_path, filename="cut", every_n_train_steps=36)
            job = trainer(before, other, keep, Cut(), max_epochs=8, enable_checkpointing=True)
            with pytest.raises(RuntimeError, match="cut"):
                job.fit(Judge(before, 0.3, make), loader(), loader(2))
            [state] = [s for s in read(path)["callbacks"].values() if "snapshot" in s]
            assert state["snapshot"] is not None
        trainer(pruning, budget, max_epochs=8).fit(module, loader(), loader(2), ckpt_path=path)
        ends.append((pruning.history, copied(module)))
    assert equal(ends[0], ends[1])
