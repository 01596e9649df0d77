# SPDX-License-Identifier: MIT
"""AccuracyBudget: rollback of failed steps is bit-exact, and the search ends at its limit."""

import json

import pytest
import torch
from accuracy_budget_fits import Judge, table
from tiny_fits import ADAM, SGD, Net, loader, samples, trainer
from torch.utils.data import DataLoader, IterableDataset

from regrow import AccuracyBudget, MagnitudePruning, SparseModelCheckpoint, Table
from regrow.callbacks.core.base import Callback
from regrow.utils.errors import ConfigError, StateError


def run(limit, levels, epochs, make=SGD, more=(), **kw):
    pruning = MagnitudePruning(schedule=table(*levels))
    budget = AccuracyBudget("acc", max_drop=0.1, **{"resolution": 0.05, **kw})
    module = Judge(pruning, limit, make)
    saves = any(isinstance(callback, SparseModelCheckpoint) for callback in more)
    job = trainer(pruning, budget, *more, max_epochs=epochs, enable_checkpointing=saves)
    job.fit(module, loader(), loader(2))
    return pruning, budget, module, job


def test_a_budget_that_is_never_exceeded_changes_nothing():
    pruning, _, _, _ = run(1.0, (0.25, 0.5), 8)
    assert [entry["after"] for entry in pruning.history] == [0.25, 0.5]
    assert pruning.schedule_done


@pytest.mark.parametrize("limit", [0.3, 0.4, 0.55, 0.7])
def test_ends_with_the_sparsest_model_within_the_budget(limit):
    pruning, budget, module, _ = run(limit, (0.25, 0.75), 24)
    assert limit - 0.06 <= pruning.sparsity <= limit
    assert pruning.schedule_done
    assert budget.settled
    kinds = [entry["kind"] for entry in pruning.history]
    assert "rollback" in kinds
    taken_back = [entry for entry in pruning.history if entry["kind"] == "rollback"]
    assert all(entry["lost"] == pytest.approx(0.5) for entry in taken_back)
    zeros = sum(int((w == 0).sum()) for w in module.parameters() if w.dim() > 1)
    assert zeros == round(pruning.sparsity * 144)


@pytest.mark.parametrize("make", [SGD, ADAM])
def test_rollback_equals_the_state_before_the_event(make):
    """Compared by copies made just before the event and just after the rollback."""

    class Witness(Callback):
        def __init__(self):
            super().__init__()
            self.before, self.after = [], []

        def copy(self, trainer, module):
            weights = {n: t.clone() for n, t in module.state_dict().items()}
            [state] = [o.state_dict()["state"] for o in trainer.optimizers]
            moments = [v.clone() for s in state.values() for v in s.values()]
            masks = {n: m.clone() for n, m in trainer.callbacks[0].masks.items()}
            return weights, moments, masks

        def before_prune_event(self, trainer, module, pruner):
            self.before.append(self.copy(trainer, module))

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            taken_back = [e for e in trainer.callbacks[0].history if e["kind"] == "rollback"]
            if len(taken_back) > len(self.after):
                self.after.append(self.copy(trainer, module))

    witness = Witness()
    # resolution so wide that no other try follows at once
    run(0.3, (0.25, 0.75), 10, make, more=[witness], resolution=0.5)
    assert len(witness.after) == 1
    for pair in zip(witness.before[1], witness.after[0], strict=True):
        one, other = (list(c.values()) if isinstance(c, dict) else c for c in pair)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_next_event_waits_for_the_recovery():
    pruning = MagnitudePruning(schedule=Table({"2ep": 0.25, "17it": 0.5}))
    budget = AccuracyBudget("acc", max_drop=0.1, recover="1ep")
    trainer(pruning, budget, max_epochs=8).fit(Judge(pruning, 1.0), loader(), loader(2))
    first, second = (entry["step"] for entry in pruning.history)
    assert first == 16
    assert second == 24  # the step after the validation that judged


def test_event_without_validation_is_rolled_back_at_the_end(tmp_path):
    keep = SparseModelCheckpoint(dirpath=tmp_path, monitor="acc", mode="max")
    pruning, _, module, _ = run(1.0, (0.25, 0.5), 6, more=[keep], recover="1ep")
    assert pruning.sparsity == 0.5  # judged at the last epoch's end
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for name, tensor in module.state_dict().items():
        assert torch.equal(last["state_dict"][name], tensor)


def test_last_checkpoint_has_the_accepted_model(tmp_path):
    """The second event fails at the fit's end: the state before it is saved."""
    keep = SparseModelCheckpoint(dirpath=tmp_path, monitor="acc", mode="max")
    pruning, _, module, _ = run(0.3, (0.25, 0.75), 5, more=[keep])
    assert pruning.sparsity == 0.25
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for name, tensor in module.state_dict().items():
        assert torch.equal(last["state_dict"][name], tensor)
    assert sum(int((w == 0).sum()) for w in module.parameters() if w.dim() > 1) == 36


def test_resumed_search_is_the_uninterrupted_one(tmp_path):
    class Cut(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == self.at:
                raise RuntimeError("cut")

    whole, _, module, _ = run(0.4, (0.25, 0.75), 16)
    for at in (24, 32, 40, 48, 72):
        pruning = MagnitudePruning(schedule=table(0.25, 0.75))
        budget = AccuracyBudget("acc", max_drop=0.1, resolution=0.05)
        keep = SparseModelCheckpoint(dirpath=tmp_path / str(at), monitor="acc", mode="max")
        cut = Cut()
        cut.at = at
        job = trainer(pruning, budget, keep, cut, max_epochs=16, enable_checkpointing=True)
        with pytest.raises(RuntimeError, match="cut"):
            job.fit(Judge(pruning, 0.4), loader(), loader(2))
        again = MagnitudePruning(schedule=table(0.25, 0.75))
        other = Judge(again, 0.4)
        keep = SparseModelCheckpoint(dirpath=tmp_path / str(at), monitor="acc", mode="max")
        budget = AccuracyBudget("acc", max_drop=0.1, resolution=0.05)
        job = trainer(again, budget, keep, max_epochs=16, enable_checkpointing=True)
        job.fit(other, loader(), loader(2), ckpt_path=str(tmp_path / str(at) / "last.ckpt"))
        assert again.history == whole.history
        for name, tensor in module.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor), (at, name)


@pytest.mark.parametrize("first", [True, False])
def test_next_event_follows_a_rollback_at_once(first):
    """A delay of one step would move the recovery and every later measurement."""
    pruning = MagnitudePruning(schedule=table(0.25, 0.75))
    budget = AccuracyBudget("acc", max_drop=0.1, resolution=0.05)
    callbacks = [budget, pruning] if first else [pruning, budget]
    trainer(*callbacks, max_epochs=12).fit(Judge(pruning, 0.4), loader(), loader(2))
    # tries 1/2, 3/8, 7/16, 13/32; each is judged after 8 steps
    found = [(entry["kind"], entry["step"], entry["pruned"]) for entry in pruning.history]
    assert found == [
        ("prune", 16, 36),
        ("rollback", 40, 36),
        ("rollback", 48, 36),
        ("prune", 48, 54),
        ("rollback", 64, 54),
        ("rollback", 72, 54),
    ]


class Stops(Callback):
    def __init__(self, at):
        super().__init__()
        self.at = at

    def on_validation_end(self, trainer, module):
        trainer.should_stop = trainer.global_step >= self.at


def said(pruning):
    """The loss of each event, and why the search ended."""
    return [(e["kind"], e.get("lost", "?"), e.get("reason")) for e in pruning.history]


def test_history_says_why_it_ended():
    pruning, _, _, _ = run(1.0, (0.25, 0.5), 8)
    reason = "sparsity 0.5 held, and so did every event before it"
    assert said(pruning) == [("prune", 0, None), ("prune", 0, reason)]
    pruning, _, _, _ = run(0.3, (0.25, 0.75), 10, resolution=0.5)
    reason = "sparsity 0.25 held, 0.75 lost too much: no further apart than resolution=0.5"
    assert said(pruning) == [("prune", 0, None), ("rollback", 0.5, reason)]
    pruning, _, _, _ = run(0.6, (0.25, 0.75), 12, resolution=0.25)
    reason = "sparsity 0.5 held, 0.75 lost too much: no further apart than resolution=0.25"
    assert said(pruning) == [("prune", 0, None), ("rollback", 0.5, None), ("prune", 0, reason)]
    pruning, _, _, _ = run(0.3, (0.75,), 8, resolution=0.8)
    reason = "no event held, 0.75 lost too much: no further apart than resolution=0.8"
    assert said(pruning) == [("rollback", 0.5, reason)]


@pytest.mark.parametrize(
    ("limit", "stop", "rest", "words"),
    [
        # judged at 24 and 40; stopped before the second event, at its recovery's start, before
        # the next try, and within that one's recovery
        (1.0, 24, [0], "0.75 was judged: sparsity 0.25 held"),
        (1.0, 36, [0, None], "0.75 was judged: sparsity 0.25 held"),
        (0.3, 40, [0, 0.5], "0.5 was judged: sparsity 0.25 held, 0.75 lost too much"),
        (0.3, 44, [0, 0.5, None], "0.5 was judged: sparsity 0.25 held, 0.75 lost too much"),
    ],
)
def test_history_records_that_the_fit_ended_first(limit, stop, rest, words, tmp_path):
    keep = SparseModelCheckpoint(dirpath=tmp_path, monitor="acc", mode="max")
    pruning = MagnitudePruning(schedule=table(0.25, 0.75))
    budget = AccuracyBudget("acc", max_drop=0.1, resolution=0.05)
    made = trainer(
        pruning, budget, Stops(stop), keep, max_epochs=12, val_check_interval=4,
        enable_checkpointing=True,
    )  # fmt: skip
    made.fit(Judge(pruning, limit), loader(), loader(2))
    assert [entry["lost"] for entry in pruning.history] == rest
    assert pruning.history[-1]["reason"] == f"the fit ended before sparsity {words}"
    assert pruning.sparsity == 0.25
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    [state] = [s for s in last["callbacks"].values() if "pruner" in s]
    assert state["pruner"]["history"] == pruning.history
    # with more epochs it goes on
    pruning = MagnitudePruning(schedule=table(0.25, 0.75))
    budget = AccuracyBudget("acc", max_drop=0.1, resolution=0.05)
    made = trainer(pruning, budget, max_epochs=20)
    made.fit(Judge(pruning, limit), loader(), loader(2), ckpt_path=tmp_path / "last.ckpt")
    assert pruning.sparsity == (0.75 if limit == 1 else 40 / 144)
    assert "the fit ended" not in pruning.history[-1]["reason"]


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_nan_metric_rolls_back_and_is_not_recorded(value):
    class Diverged(Judge):
        def validation_step(self, batch, batch_idx):
            self.log("acc", 1.0 if self.pruning.sparsity <= self.limit else value)

    pruning = MagnitudePruning(schedule=table(0.25, 0.75))
    budget = AccuracyBudget("acc", max_drop=0.1, resolution=0.5)
    trainer(pruning, budget, max_epochs=8).fit(Diverged(pruning, 0.3), loader(), loader(2))
    assert json.loads(json.dumps(pruning.history, allow_nan=False)) == pruning.history
    assert pruning.history[-1]["lost"] is None
    assert pruning.sparsity == 0.25


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("start", range(2, 100, 7))
def test_loss_of_exactly_max_drop_is_allowed(start, mode):
    """Logged as float32, so that the difference of two percentages is a bit above or below 0.01."""

    class Percent(Judge):
        def validation_step(self, batch, batch_idx):
            worse = -1 if mode == "max" else 1
            lost = (self.pruning.sparsity > 0) + (self.pruning.sparsity > self.limit)
            self.log("acc", (start + worse * lost) / 100)

    pruning = MagnitudePruning(schedule=table(0.25, 0.75))
    budget = AccuracyBudget("acc", max_drop=0.01, mode=mode, resolution=0.5)
    trainer(pruning, budget, max_epochs=6).fit(Percent(pruning, 0.3), loader(), loader(1))
    assert [entry["kind"] for entry in pruning.history] == ["prune", "rollback"]
    assert pruning.sparsity == 0.25


def ended(caught):
    """The warnings of an early end."""
    return [str(each.message) for each in caught if "ended the fit" in str(each.message)
            or "the fit ended" in str(each.message)]  # fmt: skip


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("limit", "epochs"), [(0.3, 5), (0.4, 6)])
def test_open_search_is_the_cause_of_an_early_end(limit, epochs, first):
    """Before the next try, and within one."""
    pruning = MagnitudePruning(schedule=Table({"2ep": 0.25, "18it": 0.5, "28it": 0.75}))
    budget = AccuracyBudget("acc", max_drop=0.1, resolution=0.05, recover="12it")
    callbacks = [budget, pruning] if first else [pruning, budget]
    with pytest.warns(UserWarning, match="the fit ended at sparsity") as caught:
        trainer(*callbacks, max_epochs=epochs, val_check_interval=4).fit(
            Judge(pruning, limit), loader(), loader(2)
        )
    [message] = ended(caught)
    assert f"ended at sparsity {pruning.sparsity:.4g}, before" in message
    assert "AccuracyBudget was still searching" in message
    assert "shorter" in message.partition("searching")[2]
    assert "epochs became" not in message


@pytest.mark.parametrize("first", [True, False])
def test_early_stopping_within_a_search_names_the_last_sparsity(first):
    pruning = MagnitudePruning(schedule=table(0.25, 0.75))
    budget = AccuracyBudget("acc", max_drop=0.1, resolution=0.05)
    callbacks = [budget, pruning] if first else [pruning, budget]
    with pytest.warns(UserWarning, match="ended the fit") as caught:
        trainer(*callbacks, Stops(40), max_epochs=12).fit(Judge(pruning, 0.3), loader(), loader(2))
    assert pruning.sparsity == 0.25
    [message] = ended(caught)
    assert message.startswith("trainer.should_stop ended the fit at sparsity 0.25 instead of 0.5")


def test_search_that_has_ended_warns_of_nothing(recwarn):
    run(0.3, (0.25, 0.75), 5, resolution=0.5)
    assert ended(recwarn) == []


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("last", "recover", "cause"),
    [("22it", "2it", "its last epoch ended early"), ("14it", "8it", "AccuracyBudget was still")],
)
def test_shorter_fit_beside_a_budget_names_its_cause(last, recover, cause, first):
    """22 steps instead of 24: the second event lies behind them, or is not judged any more."""

    class Shorter(IterableDataset):
        """Four samples in each of 8 batches; the third time of 6."""

        times = 0

        def __iter__(self):
            self.times += 1
            return iter(samples(32 if self.times < 3 else 24))

    pruning = MagnitudePruning(schedule=Table({"8it": 0.25, last: 0.5}))
    budget = AccuracyBudget("acc", max_drop=0.1, recover=recover)
    callbacks = [budget, pruning] if first else [pruning, budget]
    kw = {"max_epochs": 3, "limit_train_batches": 8, "val_check_interval": 2}
    data = DataLoader(Shorter(), batch_size=4)
    with pytest.warns(UserWarning, match="the fit ended") as caught:
        trainer(*callbacks, **kw).fit(Judge(pruning, 1.0), data, loader(2))
    [message] = ended(caught)
    assert "at sparsity 0.25, before 1 planned events" in message
    assert cause in message


@pytest.mark.parametrize("dry", [True, 3])
@pytest.mark.parametrize(
    "kw", [{}, {"reference": 2.0}, {"recover": "500it"}], ids=["none", "reference", "recover"]
)
def test_dry_run_passes_and_judges_nothing(dry, kw, recwarn):
    pruning = MagnitudePruning(0.5)
    budget = AccuracyBudget("acc", max_drop=0.1, **kw)
    trainer(pruning, budget, fast_dev_run=dry).fit(Judge(pruning, 0.3), loader(), loader(2))
    assert [(entry["kind"], entry["after"]) for entry in pruning.history] == [("prune", 0.5)]
    assert pruning.sparsity == 0.5
    assert ended(recwarn) == []


def test_dry_run_finds_a_metric_that_is_never_logged():
    pruning = MagnitudePruning(0.5)
    job = trainer(pruning, AccuracyBudget("accuracy", 0.1), fast_dev_run=True)
    with pytest.raises(StateError, match="'accuracy', which validation never logged"):
        job.fit(Judge(pruning, 1.0), loader(), loader(2))


def test_missing_validation_before_the_first_event_raises():
    pruning = MagnitudePruning(0.5, schedule="one_shot", begin=0)
    job = trainer(pruning, AccuracyBudget("acc", 0.1), max_epochs=4)
    with pytest.raises(StateError, match="no validation before the first event"):
        job.fit(Judge(pruning, 1.0), loader(), loader(2))
    pruning = MagnitudePruning(0.5, schedule="one_shot", begin=0)
    job = trainer(pruning, AccuracyBudget("acc", 0.1, reference=1.0), max_epochs=4)
    job.fit(Judge(pruning, 1.0), loader(), loader(2))
    assert pruning.sparsity == 0.5


def test_metric_that_is_never_logged_raises_with_its_name():
    pruning = MagnitudePruning(schedule=table(0.25))
    job = trainer(pruning, AccuracyBudget("accuracy", 0.1), max_epochs=6)
    with pytest.raises(
        StateError, match="'accuracy', which validation never logged: there are acc"
    ):
        job.fit(Judge(pruning, 1.0), loader(), loader(2))


def test_schedule_that_cannot_fit_raises_before_training():
    pruning = MagnitudePruning(0.5)
    module = Judge(pruning, 1.0)
    job = trainer(pruning, AccuracyBudget("acc", 0.1), max_epochs=1)
    with pytest.raises(ConfigError, match=r"events, each with 1ep of recovery"):
        job.fit(module, loader(), loader(2))
    assert module.trained == 0


def test_exactly_one_pruner_is_required():
    with pytest.raises(ConfigError, match="judges one pruning callback, the Trainer has 0"):
        trainer(AccuracyBudget("acc", 0.1), max_epochs=1).fit(Net(), loader(), loader(2))
