# SPDX-License-Identifier: MIT
"""Other mask changes during a budget: regrowth is postponed, manual changes are measured."""

import pytest
import torch
from accuracy_budget_fits import Judge, table
from slow_cases import mark_rest_slow
from tiny_fits import Events, loader, trainer

from regrow import AccuracyBudget, Drop, MagnitudePruning, Plateau, Regrow, SparseModelCheckpoint
from regrow.callbacks.core.base import Callback

EPOCH = 8  # batches; events at 16 and 32, judged after 24 and 40


def job(*more, limit=1.0, levels=(0.25, 0.75), epochs=12, order=None, **kw):
    """A fit with a budget and other callbacks, in any order; not yet run."""
    pruning = MagnitudePruning(schedule=table(*levels))
    budget = AccuracyBudget("acc", max_drop=0.1, **{"resolution": 0.3, **kw})
    callbacks = [pruning, budget, *more]
    callbacks = [callbacks[k] for k in order or range(len(callbacks))]
    saves = any(isinstance(callback, SparseModelCheckpoint) for callback in more)
    made = trainer(*callbacks, max_epochs=epochs, enable_checkpointing=saves)
    return pruning, Judge(pruning, limit), made


def run(*more, **kw):
    pruning, module, made = job(*more, **kw)
    made.fit(module, loader(), loader(2))
    return pruning, module


def told(pruning):
    return [(entry["kind"], entry["step"]) for entry in pruning.history]


ORDERS = [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)]
SOME_ORDERS = mark_rest_slow(ORDERS, ORDERS[:2])


@pytest.mark.parametrize("order", SOME_ORDERS)
@pytest.mark.parametrize("by", ["random", "gradient"])
@pytest.mark.parametrize("at", ["17it", "23it"])
def test_regrowth_due_in_a_recovery_is_postponed(at, by, order):
    """The measured network equals that of a run without Regrow exactly."""

    class Judged(Judge):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            if self.trainer.current_epoch == 2:
                self.judged = {n: t.clone() for n, t in self.state_dict().items()}

    seen = []
    for more in ((), (Regrow(at=at, fraction=0.5, by=by, init="zero"),)):
        pruning = MagnitudePruning(schedule=table(0.25, 0.75))
        budget = AccuracyBudget("acc", max_drop=0.1)
        callbacks = [pruning, budget, *more]
        callbacks = [callbacks[k] for k in order if k < len(callbacks)]
        module = Judged(pruning, 1.0)
        trainer(*callbacks, max_epochs=8).fit(module, loader(), loader(2))
        seen.append(module.judged)
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    assert told(pruning) == [("prune", 16), ("regrow", 24), ("prune", 32)]
    assert pruning.history[0]["lost"] == pruning.history[2]["lost"] == 0


@pytest.mark.parametrize("order", SOME_ORDERS)
@pytest.mark.parametrize("by", ["random", "gradient"])
def test_regrowth_precedes_the_next_event(by, order):
    """0.75 fails; 0.5 would be tried at once and start the next recovery."""
    grows = Regrow(at="33it", fraction=0.5, by=by, init="zero")
    pruning, _ = run(grows, limit=0.6, resolution=0.1, order=order)
    taken_back, back, tried = pruning.history[1:4]  # a rollback takes the event's entry too
    assert [e["kind"] for e in (taken_back, back, tried)] == ["rollback", "regrow", "prune"]
    assert (taken_back["step"], taken_back["before"], taken_back["after"]) == (40, 0.75, 0.25)
    assert back["step"] in (40, 41)
    assert back["pruned"] == 18, "half of the 36 that were pruned before the event"
    assert tried["step"] in (back["step"], back["step"] + 1)
    assert tried["after"] == 0.5


def test_two_waiting_regrowths_do_not_block_each_other():
    one, other = Regrow(at="17it", count=3), Regrow(at="18it", count=4)
    pruning, _ = run(one, other)
    assert told(pruning) == [("prune", 16), ("regrow", 24), ("regrow", 24), ("prune", 32)]


@pytest.mark.parametrize("order", SOME_ORDERS)
@pytest.mark.parametrize("when", [Drop("acc", by=0.2), Plateau("acc", patience=2)])
def test_conditions_are_not_evaluated_within_a_recovery(when, order):
    """The drop to 0.5 is rolled back, before Plateau's second validation in a row."""
    levels = (0.75,)
    grows = Regrow(when=when, fraction=0.5)
    pruning, _ = run(grows, limit=0.6, resolution=0.8, levels=levels, epochs=4, order=order)
    assert [kind for kind, _ in told(pruning)] == ["rollback"]


@pytest.mark.parametrize("cut", mark_rest_slow([25, 33, 41, 49, 57], [33, 57]))
@pytest.mark.parametrize("at", ["17it", "34it"])
def test_postponed_regrowth_is_resumed(at, cut, tmp_path):
    """Interrupted during a recovery (after step 24, 40), and before the postponed regrowth."""

    class Cut(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == cut:
                raise RuntimeError("cut")

    def made(*more):
        keep = SparseModelCheckpoint(tmp_path, monitor="acc", mode="max")
        grows = Regrow(at=at, fraction=0.5, by="gradient", init="zero")
        return job(grows, keep, *more, limit=0.6, resolution=0.1, recover="2ep")

    whole, expected, once = made()
    once.fit(expected, loader(), loader(2))
    steps = [step for kind, step in told(whole) if kind == "regrow"]
    assert steps == [32 if at == "17it" else 48], "waits two epochs"
    (tmp_path / "last.ckpt").unlink()
    _, module, once = made(Cut())
    with pytest.raises(RuntimeError, match="cut"):
        once.fit(module, loader(), loader(2))
    pruning, module, again = made()
    again.fit(module, loader(), loader(2), ckpt_path=str(tmp_path / "last.ckpt"))
    assert pruning.history == whole.history
    for name, tensor in expected.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name


@pytest.mark.parametrize("limit", [0.3, 0.6])
def test_manual_changes_are_measured_against_the_budget(limit):
    """Half of the pruned weights return during the recovery: 0.375 is measured."""

    class Hand(Events):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 18:
                trainer.callbacks[0].regrow(0.5)

    pruning, _ = run(Hand(), limit=limit, levels=(0.75,), epochs=4, resolution=0.5)
    first = pruning.history[0]
    if limit > 0.375:
        assert [kind for kind, _ in told(pruning)] == ["prune", "regrow"]
        assert first["lost"] == 0
    else:
        assert [kind for kind, _ in told(pruning)] == ["rollback"]
        assert (first["before"], first["after"]) == (0.375, 0)
