# SPDX-License-Identifier: MIT
"""Learned masks in interrupted, accumulated, half-precision, manual and distributed fits."""

from functools import partial

import gloo_ranks
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from tiny_fits import SGD, Net, equal, fit, loader, read, trainer, weights, zeros
from torch.utils.data import DataLoader

from regrow import LearnedMasks
from regrow.utils.errors import ConfigError, StateError

METHODS = ("str", "cs", "l0", "edge_popup")
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.01)


class Scheduled(Net):
    """With a schedule of one rate a group, which a group added later would break."""

    def configure_optimizers(self):
        optimizer = self.make(self.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 0.97**step])
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.parametrize("method", METHODS)
def test_resumed_run_is_the_uninterrupted_one(method, tmp_path):
    """From before, during and after the learning, bit-exactly."""
    whole, learned = Scheduled(ADAMW), LearnedMasks(method, 0.8, begin="5it", end="11it")
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    made = fit(whole, learned, keep, max_epochs=4, data=loader(4), enable_checkpointing=True)
    made.save_checkpoint(tmp_path / "whole.ckpt")
    for step in (4, 8, 12):
        module, again = Scheduled(ADAMW), LearnedMasks(method, 0.8, begin="5it", end="11it")
        path = tmp_path / f"step={step}.ckpt"
        active = read(path)["callbacks"][again.state_key]["pruner"]["learner"]
        assert bool(active) == (step == 8)
        made = fit(module, again, data=loader(4), max_epochs=4, ckpt_path=path)
        made.save_checkpoint(tmp_path / "again.ckpt")
        one, other = read(tmp_path / "whole.ckpt"), read(tmp_path / "again.ckpt")
        for part in ("state_dict", "optimizer_states"):
            assert equal(one[part], other[part]), f"{part} from step {step}"
        key = again.state_key
        assert equal(one["callbacks"][key], other["callbacks"][key])


def test_resuming_with_another_method_raises(tmp_path):
    made = fit(Net(), LearnedMasks("cs"), max_steps=6, max_epochs=3)
    made.save_checkpoint(tmp_path / "some.ckpt")
    with pytest.raises(StateError, match="ContinuousSparsification"):
        fit(Net(), LearnedMasks("l0"), max_epochs=3, ckpt_path=tmp_path / "some.ckpt")


@pytest.mark.parametrize("method", METHODS)
def test_accumulated_batches_equal_one_large_batch(method):
    """With gates that are drawn too: once a window."""
    found = []
    for size, by in ((8, 1), (4, 2)):
        module = Net(partial(torch.optim.SGD, lr=0.1, momentum=0.9)).double()
        data = loader(16 * 8 // size, batch_size=size)
        double = DataLoader([(x.double(), y) for x, y in data], batch_size=None)
        learned = LearnedMasks(method, 0.8, score_optimizer="sgd", score_lr=0.05)
        fit(module, learned, data=double, accumulate_grad_batches=by, max_epochs=1)
        found.append((weights(module), dict(learned.masks)))
    (one, masks), (other, others) = found
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=1e-9)
        assert torch.equal(masks[name], others[name])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("method", METHODS)
def test_masks_are_learned_in_bf16(method, precision):
    module, learned = Net(ADAMW), LearnedMasks(method, 0.8)

    class Look(Callback):
        looks = 0

        def on_train_batch_end(self, trainer, pl_module, *_):
            if learned.changes_between_events:
                assert all(s.dtype == torch.float32 for s in learned.pruner.learner.scores.values())
                self.looks += 1

    look = Look()
    fit(module, learned, look, precision=precision, max_epochs=4, data=cast(precision))
    assert look.looks > 10
    assert learned.masks.pruned == round(0.8 * 144)
    for name, mask in learned.masks.items():
        assert not weights(module)[name][~mask].any()
        assert weights(module)[name].isfinite().all()


def cast(precision):
    """Batches of the type that the module computes in."""
    dtype = torch.bfloat16 if precision.endswith("true") else torch.float32
    return DataLoader([(x.to(dtype), y) for x, y in loader()], batch_size=None)


@pytest.mark.parametrize("method", METHODS)
def test_skipped_step_changes_nothing(method):
    """Neither dense weights nor scores; effective weights stand after it."""

    class Overflow(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if batch_idx == 5 else loss

    learned, seen = LearnedMasks(method, 0.8), {}

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx in (4, 5) and learned.changes_between_events:
                learner = learned.pruner.learner
                state = learner.state_dict()
                now = [*weights(pl_module).values(), *state["dense"].values()]
                now += state["scores"].values()
                seen.setdefault(trainer.current_epoch, []).append([t.clone() for t in now])

    module, plugin = Overflow(), MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    fit(module, learned, Look(), max_epochs=4, plugins=plugin)
    assert all(equal(before, after) for before, after in seen.values())
    assert len(seen) == 3
    assert zeros(module) == round(0.8 * 144)


class Two(Net):
    """Manual optimisation, one optimizer a layer, stepping in turn."""

    automatic_optimization = False
    raw = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers(use_pl_optimizer=not self.raw):
            optimizer.zero_grad()
            self.loss(batch).backward()
            optimizer.step()

    def configure_optimizers(self):
        return [SGD(self.body[0].parameters()), SGD(self.body[2].parameters())]


@pytest.mark.parametrize("method", METHODS)
def test_manual_optimisation_with_two_optimizers_works(method):
    module, learned = Two(), LearnedMasks(method, 0.8)
    starts = weights(Two())
    moved = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if learned.changes_between_events:
                dense = learned.pruner.learner.dense
                moved.append([not torch.equal(dense[name], starts[name]) for name in dense])

    fit(module, learned, Look(), max_epochs=6)
    assert moved
    assert all(all(each) != (method == "edge_popup") for each in moved)
    assert zeros(module) == round(0.8 * 144)


def test_steps_of_a_raw_optimizer_raise():
    class Raw(Two):
        raw = True

    with pytest.raises(StateError, match=r"step\(\) of self.optimizers\(\)"):
        fit(Raw(), LearnedMasks("str"), max_epochs=2)


def test_lbfgs_raises_before_training():
    module = Net(partial(torch.optim.LBFGS, max_iter=2))
    with pytest.raises(ConfigError, match="LBFGS runs the network within its step"):
        trainer(LearnedMasks()).fit(module, loader())
    assert module.trained == 0


RANKS = """
from regrow import LearnedMasks

for method in ("str", "cs", "l0", "edge_popup"):
    module, learned = Net(ADAM), LearnedMasks(method, 0.8)
    class Scores(Callback):
        found = []
        def on_train_batch_end(self, trainer, pl_module, *_):
            if learned.changes_between_events:
                learner = learned.pruner.learner.state_dict()
                self.found = [*learner["scores"].values(), *learner["dense"].values()]
                self.found = [tensor.clone() for tensor in self.found]
                self.penalty = learner["penalty"]
    scores = Scores()
    job(learned, scores, accumulate_grad_batches=2, max_epochs=4).fit(
        module, DataLoader(samples(8 * WORLD + 5), 2, shuffle=True))
    said[method] = {"state": state(module), "masks": dict(learned.masks),
                    "scores": scores.found, "penalty": scores.penalty}
"""


@pytest.mark.guard
@pytest.mark.slow
def test_ranks_learn_equal_masks(tmp_path):
    one, other = gloo_ranks.run(RANKS, tmp_path)
    assert equal(one, other)
    for method in METHODS:
        assert len(one[method]["scores"]) == 4
        pruned = sum(int((~mask).sum()) for mask in one[method]["masks"].values())
        assert pruned == round(0.8 * 144)
