# SPDX-License-Identifier: MIT
"""`LearnedMasks` in whole fits: targets, zeros, events, validation and checkpoints."""

from functools import partial

import pytest
import torch
from averaging_reference import exponential
from learned_mask_fits import TOTAL, Before, Wide
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import Events, Net, equal, fit, loader, read, samples, trainer, weights, zeros
from torch.utils.data import DataLoader

from regrow import AccuracyBudget, LearnedMasks, Rewind, SparseModelCheckpoint, SparsityMonitor

METHODS = ("str", "cs", "l0", "edge_popup")
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.01)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("method", "target"),
    [
        *(("str", 0.95), ("cs", 0.9), ("l0", 0.8), ("edge_popup", 0.9)),
        *(pytest.param("str", target, marks=SLOW) for target in (0.8, 0.9)),
        *(pytest.param("cs", target, marks=SLOW) for target in (0.8, 0.95)),
        *(pytest.param("l0", target, marks=SLOW) for target in (0.9, 0.95)),
        *(pytest.param("edge_popup", target, marks=SLOW) for target in (0.8, 0.95)),
    ],
)
def test_sparsity_approaches_the_target_and_hardens_to_it_exactly(method, target):
    before, learned = Before(), LearnedMasks(method, target)
    module = Wide()

    class After(Events):
        def on_prune_event(self, trainer, pl_module, event):
            for name, mask in event.pruner.masks.items():
                kept = before.effective[name]
                expected = torch.where(mask, kept, torch.zeros_like(kept))
                assert torch.equal(weights(pl_module)[name], expected)
                assert not weights(pl_module)[name][~mask].view(torch.int32).any()

    fit(module, learned, before, After(), data=loader(20), max_epochs=16)
    assert abs(before.share - target) < 0.005
    assert before.seen == [(240, round(round(target * TOTAL) / TOTAL, 6))]
    assert learned.masks.pruned == zeros(module) == round(target * TOTAL)
    assert learned.history[0]["learned"] == before.share
    if method != "cs":
        assert before.zeros == round(before.share * TOTAL)
    loss = float(module.loss(samples(80).tensors))
    assert loss < 0.7, "chance is 1.1"


@pytest.mark.parametrize("method", METHODS)
def test_no_key_is_added_and_no_parameter_replaced(method, tmp_path):
    module = Net()
    keys, held = [*module.state_dict()], [*module.parameters()]
    shapes = []

    class Look(Events):
        def on_train_batch_end(self, trainer, pl_module, *_):
            shapes.append([*pl_module.state_dict()] == keys)
            assert all(a is b for a, b in zip(pl_module.parameters(), held, strict=True))
            assert len(trainer.optimizers[0].param_groups) == 1

    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    fit(module, LearnedMasks(method), Look(), keep, enable_checkpointing=True)
    assert shapes
    assert all(shapes)
    assert [*read(tmp_path / "step=9.ckpt")["state_dict"]] == keys


@pytest.mark.parametrize("method", METHODS)
def test_validation_and_checkpoints_see_effective_weights_without_noise(method, tmp_path):
    learned, looks = LearnedMasks(method, begin="2it"), []

    class Look(Events):
        def on_validation_start(self, trainer, pl_module):
            found = {name: weight.clone() for name, weight in weights(pl_module).items()}
            path = tmp_path / "now.ckpt"
            trainer.save_checkpoint(path)
            saved = read(path)["state_dict"]
            assert all(torch.equal(saved[name], weight) for name, weight in found.items())
            learner = learned.strategy.learner
            if learner.active:
                learner.deterministic()
                assert all(torch.equal(weights(pl_module)[n], w) for n, w in found.items())
                assert not any(torch.equal(learner.dense[n], w) for n, w in found.items())
                looks.append(trainer.global_step)

    # within an accumulation window too
    made = trainer(learned, Look(), accumulate_grad_batches=4, val_check_interval=3, max_epochs=4)
    made.fit(Wide(), loader(16), loader(1))
    assert len(looks) > 4


def test_sparsity_is_the_zero_fraction_while_masks_are_learned():
    seen, learned = {}, LearnedMasks("str", 0.9)

    class Look(Events):
        def on_train_batch_end(self, trainer, pl_module, *_):
            shown = float(trainer.callback_metrics["pruning/sparsity"])
            seen[trainer.global_step] = shown, zeros(pl_module) / TOTAL, learned.at_target

    fit(Wide(), learned, SparsityMonitor(), Look(), max_epochs=8)
    assert all(shown == pytest.approx(share, abs=2e-6) for shown, share, _ in seen.values())
    rising = [share for step, (_, share, _) in seen.items() if step <= 48]
    assert len({*rising}) > 20
    assert rising[-1] > 0.8
    assert [reached for *_, reached in seen.values()] == [step > 48 for step in seen]


def test_only_hardened_masks_are_ranked_by_a_checkpoint(tmp_path):
    keep = SparseModelCheckpoint(tmp_path, monitor="val/loss", filename="{step}")
    made = trainer(LearnedMasks("str", 0.8), keep, max_epochs=8, enable_checkpointing=True)
    made.fit(Wide(), loader(), loader(1))
    assert int(keep.best_model_path.rpartition("=")[2].removesuffix(".ckpt")) > 48
    best = read(keep.best_model_path)["state_dict"]
    assert sum(int((best[n] == 0).sum()) for n in weights(Wide())) == round(0.8 * TOTAL)


def test_rewinding_restores_weights_under_learned_masks():
    start, module, learned = Wide().state_dict(), Wide(), LearnedMasks("str", 0.8)

    class After(Events):
        def on_prune_event(self, trainer, pl_module, event):
            for name, mask in event.pruner.masks.items():
                found = weights(pl_module)[name]
                assert torch.equal(found, torch.where(mask, start[name], 0 * start[name]) + 0.0)
            self.seen.append(event.step)

    after = After()
    fit(module, learned, Rewind("0it"), after, max_epochs=4)
    assert after.seen == [24]
    assert zeros(module) == round(0.8 * TOTAL)


def test_a_budget_rolls_back_hardening_and_learning_resumes():
    """0.9 exceeds the budget and is rolled back to the learned state; 0.45 is accepted."""

    class Judged(Wide):
        def validation_step(self, batch, batch_idx):
            self.log("val/score", float(zeros(self) < 0.6 * TOTAL))

    learned = LearnedMasks("cs", 0.9, end="16it")
    budget = AccuracyBudget("val/score", 0.5, recover="1ep", reference=1.0, resolution=0.2)
    module = Judged()
    trainer(learned, budget, max_epochs=10).fit(module, loader(), loader(1))
    kinds = [entry["kind"] for entry in learned.history]
    assert "rollback" in kinds
    assert kinds[-1] == "prune"
    assert 0 < learned.masks.sparsity < 0.6
    assert zeros(module) == learned.masks.pruned


@pytest.mark.parametrize("method", ["str", "cs", "l0"])
@pytest.mark.parametrize("epochs", [3, 6, 9])
def test_a_short_fit_reaches_the_target_before_it_hardens(method, epochs):
    learned = LearnedMasks(method, 0.8)
    fit(Wide(), learned, max_epochs=epochs)
    assert learned.history[-1]["learned"] == pytest.approx(0.8, abs=0.02)


def test_hardening_far_from_what_was_learned_warns(recwarn):
    learned = LearnedMasks("l0", 0.8, score_lr=5.0)  # gates saturate
    fit(Wide(), learned)
    [warning] = [w for w in recwarn if "were learned up to a sparsity" in str(w.message)]
    assert f"of {learned.history[-1]['learned']:.3f}, and the rest to 0.800" in str(warning.message)


def test_unprune_restores_dense_values():
    learned, dense = LearnedMasks("str", 0.8), {}

    class Keep(Events):
        def before_prune_event(self, trainer, pl_module, pruner):
            dense.update({n: w.clone() for n, w in pruner.strategy.learner.dense.items()})

    module = Wide()
    fit(module, learned, Keep())
    masks = learned.masks
    learned.unprune()
    for name, mask in masks.items():
        assert torch.equal(weights(module)[name][~mask], dense[name][~mask])


def test_moments_of_pruned_weights_are_zero():
    learned, module = LearnedMasks("l0", 0.8), Wide(ADAMW)

    class Look(Events):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if learned.at_target:
                state = trainer.optimizers[0].state
                for name, parameter in pl_module.named_parameters():
                    if name in learned.masks:
                        pruned = ~learned.masks[name]
                        assert not parameter[pruned].any()
                        assert not state[parameter]["exp_avg"][pruned].any()
                        self.seen.append(name)

    look = Look()
    fit(module, learned, look, max_epochs=2)
    assert look.seen


def test_a_second_fit_keeps_the_masks():
    learned, module = LearnedMasks("str", 0.8), Wide()
    fit(module, learned)
    masks = dict(learned.masks)
    fit(module, learned)
    assert equal(masks, dict(learned.masks))
    assert len(learned.history) == 1
    assert zeros(module) == round(0.8 * TOTAL)


@pytest.mark.parametrize("trains", [True, False])
def test_weights_are_fixed_only_with_train_weights_false(trains):
    start, learned = weights(Wide()), LearnedMasks("edge_popup", 0.5, train_weights=trains)

    class Look(Events):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if learned.changes_between_events:
                found = learned.strategy.learner.dense
                self.seen += [torch.equal(found[n], w) != trains for n, w in start.items()]
                assert zeros(pl_module) == round(0.5 * TOTAL)

    look = Look()
    fit(Wide(), learned, look)
    assert look.seen
    assert all(look.seen)


def test_fast_dev_run_hardens_at_once():
    learned = LearnedMasks("l0", 0.8)
    fit(Wide(), learned, fast_dev_run=True)
    assert learned.masks.pruned == round(0.8 * TOTAL)


def test_state_loads_into_another_model(tmp_path):
    learned, module = LearnedMasks("str", 0.8), Wide()
    made = fit(module, learned)
    made.save_checkpoint(tmp_path / "end.ckpt")
    other, again = Wide(), LearnedMasks("str", 0.8)
    other.load_state_dict(read(tmp_path / "end.ckpt")["state_dict"])
    again.attach(other, tmp_path / "end.ckpt")
    assert equal(dict(again.masks), dict(learned.masks))


@SLOW
def test_a_large_score_lr_still_reaches_the_target():
    learned, before = LearnedMasks("l0", 0.9, score_lr=0.3), Before()
    fit(Wide(), learned, before, data=DataLoader(samples(64), 16), max_epochs=80)
    assert abs(before.share - 0.9) < 0.005


@pytest.mark.parametrize("method", ["str", "edge_popup"])
def test_averages_follow_the_hardened_masks(method):
    module, learned = Wide(), LearnedMasks(method, 0.8)
    made = trainer(exponential(), learned, max_epochs=6)
    made.fit(module, loader(), loader(1))
    assert zeros(module) == learned.masks.pruned == round(0.8 * TOTAL)


@pytest.mark.parametrize("method", ["str", "edge_popup"])
def test_compiled_network_learns_the_same_masks(method):
    found = []
    for compiled in (False, True):
        module, learned = Wide(), LearnedMasks(method, 0.8)
        if compiled:
            module.body = torch.compile(module.body, backend="eager")
        fit(module, learned)
        found.append((dict(learned.masks), [*weights(module).values()]))
    assert equal(*found)
