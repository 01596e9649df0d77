# SPDX-License-Identifier: MIT
"""Random models, targets, schedules, events, optimizers and interruptions keep the guarantees."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from fuzz_fits import fits
from fuzz_promises import bits, target_count
from fuzz_run import Run, Save, default_dtype, made, refusals
from fuzz_sizes import few, many
from hypothesis import event, given
from tiny_fits import equal, read

# what nobody can know before validation has run
LATE = ("which validation never logged", "no validation before the first event")


def end(run, folder):
    """What a checkpoint at the end of a run holds."""
    run.trainer.save_checkpoint(folder / "end.ckpt")
    return read(folder / "end.ckpt")


def check(spec, folder):
    """A fit raises before its first step, or keeps its guarantees, also after a resume."""
    run, saved = made(spec), folder / "cut.ckpt"
    if run is None:
        return event("refused when made")
    with refusals(run, LATE):
        run.fit(Save(spec.kill, saved))
    if run.error:
        return event("refused by the fit")
    event(f"fitted, {sum(watch.events for watch in run.watches)} events")
    whole = end(run, folder)
    if saved.exists() and spec.resumable:
        with default_dtype():
            resumed = Run(spec, watched=False).fit(ckpt_path=saved)
        again = end(resumed, folder)
        for key in ("state_dict", "optimizer_states", "global_step", "epoch"):
            assert equal(whole[key], again[key]), key
        for name, state in again["callbacks"].items():
            assert equal(whole["callbacks"][name], state), name
    if not spec.acts and not spec.beside:
        check_target(run)
        check_undoing(run)
    return None


def check_target(run):
    """The target is hit, and a second fit holds it."""
    counts, reached = [], all(pruning.progress.reached for pruning in run.pruners)
    for pruning, (name, arguments) in zip(run.pruners, run.spec.pruners, strict=True):
        plan = pruning.progress.plan
        last = plan[-1].sparsity if plan and name == "MagnitudePruning" else pruning.final
        granularity = arguments.get("granularity", "weight")
        counts.append(target_count(pruning.pruner, granularity, last))
    if reached:
        assert [pruning.masks.pruned for pruning in run.pruners] == counts, "a target is a target"
    before = [len(pruning.history) for pruning in run.pruners]
    with refusals(run, LATE):
        run.fit()
    for pruning, (name, _), count, events in zip(
        run.pruners, run.spec.pruners, counts, before, strict=True
    ):
        if reached and not run.error and count and name == "MagnitudePruning":
            assert len(pruning.history) == events, "a second fit holds what it has"
            assert pruning.masks.pruned == count


def check_undoing(run):
    """Removed values are restored exactly."""
    [pruning, *others], watch = run.pruners, run.watches[0]
    if others or pruning.soft or not pruning.keep_removed:
        return
    pruning.unprune()
    for target in pruning.pruner.targets:
        if target.name in watch.kept:
            gone = torch.from_numpy(~watch.kept[target.name])
            now = bits(target.parameter)
            assert torch.equal(now[gone], watch.gone[target.name][gone]), target.name


@few(20)
@given(fits())
def test_random_fits_keep_the_promises(spec):
    with TemporaryDirectory() as folder:
        check(spec, Path(folder))


@pytest.mark.slow
@many(800)
@given(fits())
def test_random_fits_keep_the_promises_many_times(spec):
    with TemporaryDirectory() as folder:
        check(spec, Path(folder))
