# SPDX-License-Identifier: MIT
"""One AccuracyBudget for several fits: each begins anew, as with a new object."""

import pytest
import torch
from accuracy_budget_fits import Judge, table
from tiny_fits import equal, loader, read, trainer

from regrow import AccuracyBudget, MagnitudePruning, SparseModelCheckpoint
from regrow.callbacks.core.base import Callback

LEVELS = (0.25, 0.75)


class Scaled(Judge):
    """Logs `dense` instead of 1, and half of it above the limit."""

    def __init__(self, pruning, limit, dense):
        super().__init__(pruning, limit)
        self.dense = dense

    def validation_step(self, batch, batch_idx):
        self.log("acc", self.dense * (1.0 if self.pruning.sparsity <= self.limit else 0.5))


class Cut(Callback):
    """Ends a fit with an error at a step."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.at:
            raise RuntimeError("cut")


def new_budget(**kw):
    return AccuracyBudget("acc", max_drop=0.1, resolution=0.05, **kw)


def run(budget, *more, limit=1.0, dense=1.0, model=None, pruning=None, epochs=16, **kw):
    pruning = pruning or MagnitudePruning(schedule=table(*LEVELS))
    model = model or Scaled(pruning, limit, dense)
    saves = any(isinstance(callback, SparseModelCheckpoint) for callback in more)
    made = trainer(pruning, budget, *more, max_epochs=epochs, enable_checkpointing=saves)
    made.fit(model, loader(), loader(2), **kw)
    return pruning, model


def same(one, other):
    """Whether two fits had the same events and ended with the same weights."""
    return one[0].history == other[0].history and equal(
        dict(one[1].state_dict()), dict(other[1].state_dict())
    )


@pytest.mark.parametrize("given", [None, 0.6])
def test_another_model_is_judged_by_its_own_reference(given):
    """Half of 0.6 is a loss above 0.1, and far below the first model's 1."""
    budget = new_budget(reference=given)
    run(budget, limit=0.4)
    again = run(budget, limit=0.4, dense=0.6)
    fresh = new_budget(reference=given)
    assert same(again, run(fresh, limit=0.4, dense=0.6))
    assert budget.state_dict() == fresh.state_dict()
    assert budget.reference == pytest.approx(0.6)


def test_all_events_are_judged_again_after_unprune():
    """The first fit rejects 0.75; in the second one it holds, and no step is tried before it."""
    budget = new_budget()
    pruning, model = run(budget, limit=0.3)
    first = len(pruning.history)
    pruning.unprune()
    model.limit = 1.0
    run(budget, pruning=pruning, model=model)
    found = [(e["kind"], e["after"], e.get("lost")) for e in pruning.history[first:]]
    assert found == [("unprune", 0, None), ("prune", 0.25, 0), ("prune", 0.75, 0)]
    reason = "sparsity 0.75 held, and so did every event before it"
    assert pruning.history[-1]["reason"] == reason


@pytest.mark.parametrize("at", [20, 40])
def test_fit_after_an_error_begins_anew(at):
    """Within the recovery of an accepted event, and before the rollback of a rejected one."""
    budget = new_budget()
    with pytest.raises(RuntimeError, match="cut"):
        run(budget, Cut(at), limit=0.3)
    assert same(run(budget, limit=0.3), run(new_budget(), limit=0.3))


@pytest.mark.parametrize("at", [24, 40, 48])
def test_resumed_fit_with_a_used_budget_is_the_uninterrupted_one(at, tmp_path):
    """Saved after an accepted event, and before the rollback of two rejected ones."""
    whole = run(new_budget(), limit=0.4)
    keep = SparseModelCheckpoint(tmp_path, monitor="acc", mode="max")
    with pytest.raises(RuntimeError, match="cut"):
        run(new_budget(), Cut(at), keep, limit=0.4)
    path = tmp_path / "last.ckpt"
    budget = new_budget()
    run(budget, limit=0.3, dense=0.6)
    assert same(run(budget, limit=0.4, ckpt_path=path), whole)
    assert read(path)["global_step"] == at


def test_pruned_model_is_searched_from_its_own_sparsity():
    """0.25 has held before this fit: the gap to 0.75 is halved, not that from 0."""
    pruning = MagnitudePruning(schedule=table(*LEVELS))
    model = Scaled(pruning, 0.4, 1.0)
    pruning.attach(model)
    pruning.prune_to(0.25)
    run(new_budget(reference=1.0), model=model, pruning=pruning)
    assert 0.34 <= pruning.sparsity <= 0.4
    zeros = sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1)
    assert zeros == round(pruning.sparsity * 144)


def test_reason_of_an_earlier_fit_stays():
    """The second fit ends before its first event was judged."""
    pruning, model = run(new_budget(), epochs=8)
    before = [dict(entry) for entry in pruning.history]
    assert "reason" in before[-1]
    pruning.unprune()
    run(new_budget(), Stop(18), model=model, pruning=pruning)
    assert pruning.history[: len(before)] == before
    assert torch.equal(pruning.masks["body.0.weight"], torch.ones(16, 6, dtype=torch.bool))


class Stop(Callback):
    def __init__(self, at):
        super().__init__()
        self.at = at

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop |= trainer.global_step >= self.at
