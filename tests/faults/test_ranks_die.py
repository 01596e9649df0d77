# SPDX-License-Identifier: MIT
"""After a rank is killed, the checkpoint resumes with the same or another number of ranks."""

import gloo_ranks
import pytest
import torch
from tiny_fits import read

FIT = """
import os, signal
from regrow import DynamicSparseTraining, MagnitudePruning, SparseModelCheckpoint, Table
from regrow.data.tensor_loader import BatchLoader
from regrow.utils.errors import ConfigError

PLANS = {
    "steps": lambda change: MagnitudePruning(
        0.8, schedule=Table({"3it": 0.5, "11it": 0.7, "13it": 0.8}), on_change=change),
    "epochs": lambda change: MagnitudePruning(
        0.8, schedule=Table({"1ep": 0.5, "2ep": 0.7, "3ep": 0.8}), on_change=change),
    "rigl": lambda change: DynamicSparseTraining(0.7, every="3it", on_change=change),
}

class Dies(Callback):
    def on_train_batch_start(self, trainer, *_):
        if RANK == WORLD - 1 and trainer.global_step == 9:
            os.kill(os.getpid(), signal.SIGKILL)

def train(plan, folder, *callbacks, ckpt=None, change="refuse", **kw):
    torch.manual_seed(0)
    pruning = PLANS[plan](change)
    # nothing random but the seed's order: ranks other than 0 do not keep their generators
    data = BatchLoader(*samples(96).tensors, batch_size=4, shuffle=True)
    saving = SparseModelCheckpoint(folder, monitor="train/loss", every_n_train_steps=1)
    class Logged(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train/loss", loss, sync_dist=True)
            return loss
    module = Logged(ADAM)
    job(*callbacks, pruning, saving, enable_checkpointing=True, use_distributed_sampler=False,
        **{"max_epochs": 4} | kw).fit(module, data, ckpt_path=ckpt)
    return {"state": state(module), "masks": dict(pruning.masks),
            "plan": [list(m) for m in pruning.progress.plan],
            "history": [{k: e[k] for k in ("kind", "step", "after")} for e in pruning.history]}

"""
DIES = FIT + 'train(PLAN, OUT / "ckpt", Dies())\n'
ON = FIT + 'said |= train(PLAN, OUT / "ckpt", ckpt=OUT / "ckpt" / "last.ckpt")\n'
WHOLE = FIT + 'said |= train(PLAN, OUT / "whole")\n'


def died(plan, folder, world):
    """Train until the last rank is killed, which ends the others too."""
    with pytest.raises(AssertionError):
        gloo_ranks.run(f"PLAN = {plan!r}\n{DIES}", folder, world, 120)
    last = folder / "ckpt" / "last.ckpt"
    found = read(last)
    assert found["global_step"] == 9
    return found


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.guard
@pytest.mark.slow
@pytest.mark.parametrize("plan", ["steps", "rigl"])
def test_fit_with_a_killed_rank_resumes_exactly(plan, tmp_path):
    whole = gloo_ranks.run(f"PLAN = {plan!r}\n{WHOLE}", tmp_path)
    died(plan, tmp_path, 2)
    for mine, other in zip(gloo_ranks.run(f"PLAN = {plan!r}\n{ON}", tmp_path), whole, strict=True):
        assert same(mine["state"], other["state"])
        assert same(mine["masks"], other["masks"])
        assert mine["history"] == other["history"]


# With batches of 4 a rank of 96 samples: 24 steps an epoch alone, 12 of two ranks, 8 of three.
CHANGED = (
    FIT
    + """
try:
    train(PLAN, OUT / "other", ckpt=OUT / "ckpt" / "cut.ckpt")
    said["refused"] = ""
except Exception as error:
    said["refused"] = f"{type(error).__name__}: {error}"
for change in ("keep", "stretch"):
    longer = {"max_epochs": 12 if change == "keep" else 4}  # kept steps may lie further out
    said[change] = train(PLAN, OUT / change, ckpt=OUT / "ckpt" / "cut.ckpt", change=change,
                         **longer)
"""
)
CUT = (
    FIT
    + """
class Save(Callback):  # at an epoch's end: within one, other ranks have other batches
    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(OUT / "ckpt" / "cut.ckpt")

train(PLAN, OUT / "first", Save())
"""
)


@pytest.mark.guard
@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (2, 3)])
def test_resume_with_another_number_of_ranks_raises_keeps_or_stretches(first, then, tmp_path):
    """Events given in epochs move with the steps per epoch: an error, unless on_change says how."""
    (tmp_path / "ckpt").mkdir()
    gloo_ranks.run(f"PLAN = 'epochs'\n{CUT}", tmp_path, first)
    before = 24 // first  # steps of the first epoch; the first event is still to come
    now = 24 // then
    cut = read(tmp_path / "ckpt" / "cut.ckpt")
    assert cut["global_step"] == before
    for said in gloo_ranks.run(f"PLAN = 'epochs'\n{CHANGED}", tmp_path, then):
        assert said["refused"].startswith("ConfigError: the events still to come are not those")
        assert "ranks" in said["refused"]
        kept, stretched = said["keep"], said["stretch"]
        assert [step for step, _ in kept["plan"]] == [before, 2 * before, 3 * before]
        # the first epoch had the former number of steps, the others have the present one
        assert stretched["plan"][-1][0] == before + 2 * now
        for end in (kept, stretched):
            assert end["history"][-1]["after"] == pytest.approx(0.8, abs=0.01)
            assert end["history"][-1]["step"] == end["plan"][-1][0]
            for name, mask in end["masks"].items():
                assert not end["state"][name][~mask].any()


@pytest.mark.guard
@pytest.mark.slow
def test_events_given_in_steps_resume_with_another_number_of_ranks(tmp_path):
    """Events given in steps do not move: masks, history and progress continue."""
    (tmp_path / "ckpt").mkdir()
    gloo_ranks.run("PLAN = 'steps'\n" + CUT, tmp_path, 2)
    cut = read(tmp_path / "ckpt" / "cut.ckpt")
    for said in gloo_ranks.run("PLAN = 'steps'\n" + CHANGED, tmp_path, 1):
        assert said["refused"] == ""
        assert [entry["step"] for entry in said["keep"]["history"]] == [3, 11, 13]
        assert cut["global_step"] == 12
        assert same(said["keep"]["masks"], said["stretch"]["masks"])
