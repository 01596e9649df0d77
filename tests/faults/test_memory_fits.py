# SPDX-License-Identifier: MIT
"""Out of memory during an event of a fit: checkpoints are complete, and the last one resumes."""

import random
from contextlib import nullcontext

import pytest
import torch
from failing_memory import Full
from fault_scenarios import SCENARIOS
from interrupted_fits import end_of, run
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from tiny_fits import equal, read

from regrow import SparseModelCheckpoint, StateError
from regrow.callbacks.accuracy_budget import FitSnapshot
from regrow.callbacks.core.session import PruningSession
from regrow.callbacks.rewind import Rewind
from regrow.masks.masks import check_weights_masked

# What changes masks, and the weights that go with them, within a fit.
INSIDE = [(PruningSession, "fire"), (PruningSession, "change"), (FitSnapshot, "restore"),
          (Rewind, "_restore")]  # fmt: skip


def starve(monkeypatch, left):
    """Fail the `left`-th operation of all events; returns a counter of operations."""
    mode, depth = Full(left), 0

    def starved(whole):
        def act(*args, **kwargs):
            nonlocal depth
            depth += 1
            try:
                with mode if depth == 1 and mode.left > 0 else nullcontext():
                    return whole(*args, **kwargs)
            finally:
                depth -= 1

        return act

    for owner, name in INSIDE:
        monkeypatch.setattr(owner, name, starved(getattr(owner, name)))
    return mode


def fit(folder, name, *more, **kw):
    callbacks, settings = SCENARIOS[name]()
    saving = SparseModelCheckpoint(folder, monitor="train/loss", every_n_train_steps=1)
    return run(folder / "end.ckpt", *callbacks, saving, *more, enable_checkpointing=True,
               **(settings | kw))  # fmt: skip


def events(checkpoint):
    """The events in a checkpoint, after a check that its weights are masked."""
    [state] = (
        s
        for k, s in checkpoint["callbacks"].items()
        if k.startswith(("Magnitude", "Dynamic", "Channel"))
    )
    check_weights_masked(state["pruner"]["masks"], checkpoint["state_dict"])
    return [entry for entry in state["pruner"]["history"] if entry["kind"] != "rollback"]


OFTEN = ("rewound", "judged")
RARELY = [pytest.param(name, marks=pytest.mark.slow) for name in SCENARIOS if name not in OFTEN]


@pytest.mark.parametrize("name", [*OFTEN, *RARELY])
def test_fit_out_of_memory_resumes_exactly(name, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        mode = starve(patch, 10**9)
        whole = fit(tmp_path / "whole", name)
        operations = 10**9 - mode.left
    draw = random.Random(name)
    for number in range(3):
        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            starve(patch, draw.randrange(1, operations))
            spare = OnExceptionCheckpoint(folder, "spare")
            with pytest.raises((torch.OutOfMemoryError, StateError)):
                fit(folder, name, spare)
        if (folder / "spare.ckpt").exists():  # of the moment before the event
            spare, last = read(folder / "spare.ckpt"), read(folder / "last.ckpt")
            whole_ones = len(events(spare)), len(events(last))
            assert whole_ones[0] == whole_ones[1] or name == "judged"  # which goes back, too
        last = folder / "last.ckpt"
        assert equal(fit(folder, name, ckpt_path=last if last.exists() else None), whole)
        assert equal(end_of(folder / "end.ckpt"), whole)


def test_failed_rewind_after_an_event_is_not_saved(tmp_path, monkeypatch):
    """The event itself is complete, so only the rewind can report the failure."""

    def fails(self, *_):
        raise torch.OutOfMemoryError

    whole = fit(tmp_path / "whole", "rewound")
    spare = OnExceptionCheckpoint(tmp_path, "spare")
    with monkeypatch.context() as patch:
        patch.setattr(Rewind, "_restore", fails)
        with pytest.raises((torch.OutOfMemoryError, StateError)):
            fit(tmp_path, "rewound", spare)
    assert len(events(read(tmp_path / "last.ckpt"))) == 0
    assert not (tmp_path / "spare.ckpt").exists()
    assert equal(fit(tmp_path, "rewound", ckpt_path=tmp_path / "last.ckpt"), whole)
