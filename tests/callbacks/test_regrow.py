# SPDX-License-Identifier: MIT
"""Regrowth in a fit: at times, on a condition; and what trains afterwards."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_fits import ADAM, SGD, WEIGHTS, Events, Net, equal, fit, loader, read, weights

from regrow import ConfigError, LearnedMasks, MagnitudePruning, OneShot, Regrow, Table

PRUNED = round(0.8 * WEIGHTS)


def pruning(sparsity=0.8, **kw):
    return MagnitudePruning(sparsity, **({"schedule": OneShot("2it")} | kw))


class Before(Callback):
    """Dense gradients, weights and masks of one step, seen before any callback masks them."""

    def __init__(self, step):
        self.step, self.gradients = step, {}

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == self.step:
            self.gradients = {
                n: p.grad.clone() for n, p in pl_module.named_parameters() if p.dim() > 1
            }


class Steps(Callback):
    """All parameters at each batch's beginning."""

    def __init__(self):
        self.at = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.at[trainer.global_step] = {n: p.clone() for n, p in pl_module.named_parameters()}


@pytest.mark.parametrize(
    ("at", "steps"),
    [("5it", [5]), ("1ep", [8]), (0.75, [12]), (["5it", "1ep"], [5, 8]), (["1ep", 0.5], [8])],
)
@pytest.mark.parametrize("first", [True, False])
def test_regrows_at_the_given_times(at, steps, first):
    events, prunes, grows = Events(), pruning(), Regrow(at=at, fraction=0.5)
    fit(Net(), events, *((grows, prunes) if first else (prunes, grows)))
    assert events.steps == [2, *steps]
    pruned = PRUNED
    for entry in prunes.history[1:]:
        assert (entry["kind"], entry["cause"]) == ("regrow", f"step {entry['step']}")
        pruned -= round(0.5 * pruned)
        assert entry["pruned"] == pruned
    assert prunes.masks.pruned == pruned


def test_accumulated_windows_and_manual_counts_regrow_once():
    prunes = pruning(schedule=OneShot("1it"))
    fit(Net(), prunes, Regrow(at="3it", count=7), accumulate_grad_batches=2)
    assert [e["step"] for e in prunes.history] == [1, 3]
    assert prunes.masks.pruned == PRUNED - 7


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_growth_by_gradient_uses_dense_gradients(first, clip):
    """Those come back whose dense gradient was largest, sorted by NumPy's rule."""
    look, prunes = Before(5), pruning()
    grows = Regrow(at="5it", count=20, by="gradient", init="zero")
    old = {}

    class Masks(Events):
        def on_prune_event(self, trainer, pl_module, event):
            if event.step == 2:
                old.update(event.pruner.masks)

    order = (grows, prunes) if first else (prunes, grows)
    fit(Net(), look, Masks(), *order, gradient_clip_val=clip)
    scores = torch.cat([g.abs().flatten() for g in look.gradients.values()])
    gone = torch.cat([~old[name].flatten() for name in look.gradients])
    best = scores.masked_fill(~gone, -1).topk(20).indices
    expected = ~gone
    expected[best] = True
    assert torch.equal(torch.cat([prunes.masks[n].flatten() for n in look.gradients]), expected)


def test_a_custom_growth_criterion_sees_gradients():
    def largest(target, momentum, removed, generator):
        return target.parameter.grad.abs()

    found = []
    for by in ("gradient", largest):
        prunes = pruning()
        fit(Net(), prunes, Regrow(at="5it", fraction=0.3, by=by))
        found.append(prunes.masks.digest())
    assert found[0] == found[1]


def test_pruning_due_in_the_same_step_follows_regrowth():
    """It would mask the gradients to grow by."""
    plan = Table({"2it": 0.6, "5it": 0.8})
    prunes = MagnitudePruning(0.8, schedule=plan, criterion="gradient")
    fit(Net(), prunes, Regrow(at="5it", fraction=0.5, by="gradient"))
    assert [entry["kind"] for entry in prunes.history] == ["prune", "regrow", "prune"]
    assert prunes.masks.pruned == PRUNED


@pytest.mark.parametrize("make", [SGD, ADAM])
@pytest.mark.parametrize("by", ["random", "gradient"])
def test_only_regrown_weights_train_if_asked(make, by):
    steps, prunes = Steps(), pruning()
    grows = Regrow(at="5it", fraction=0.5, by=by, init="he", train="regrown")
    module = Net(make)
    fit(module, steps, prunes, grows)
    free = prunes.pruner.state.freezer.free
    assert free.total - free.pruned == prunes.history[-1]["count"]
    for name, p in module.named_parameters():
        before = steps.at[6][name]
        assert torch.equal(p[~free[name]], before[~free[name]])
        moved = p[free[name]] != before[free[name]]
        assert not len(moved) or moved.float().mean() > 0.8, (
            "all but what feeds a unit nobody listens to"
        )
        if by == "gradient":  # the step that grew holds the survivors already
            kept = ~free[name] & (steps.at[5][name] != 0)
            assert torch.equal(before[kept], steps.at[5][name][kept])


def test_a_later_regrowth_ends_freezing():
    steps, module = Steps(), Net()
    grows = Regrow(at=["5it"], fraction=0.5, train="body.2")
    later = Regrow(at="9it", fraction=0.1)
    fit(module, steps, pruning(), grows, later)
    assert torch.equal(steps.at[6]["body.0.weight"], steps.at[9]["body.0.weight"])
    assert not torch.equal(steps.at[6]["body.2.bias"], steps.at[9]["body.2.bias"])
    assert not torch.equal(steps.at[9]["body.0.weight"], module.body[0].weight)


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("by", ["random", "gradient"])
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, cut, by):
    """Frozen weights, past events and removed values, interrupted before, between and after."""
    found = []
    for path in (None, tmp_path / f"epoch={cut}.ckpt"):
        module, prunes = Net(ADAM), pruning(keep_removed="moments")
        grows = Regrow(at=["5it", "7it"], fraction=0.4, by=by, init="survivors", train="regrown")
        saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        made = fit(
            module,
            prunes,
            grows,
            saves,
            data=loader(batches=2),
            ckpt_path=path,
            max_epochs=6,
            enable_checkpointing=True,
        )
        state = made.optimizers[0].state_dict()["state"]
        mine = [callback.state_dict() for callback in (prunes, grows)]
        found.append((dict(module.state_dict()), state, mine))
    assert [entry["step"] for entry in prunes.history] == [2, 5, 7]
    assert equal(*found)


@pytest.mark.parametrize("init", ["removed", "unprune"])
@pytest.mark.parametrize("make", [SGD, ADAM])
def test_moments_survive_a_resume(tmp_path, make, init):
    """Pruned at step 4, interrupted at the epoch's end, regrown at step 12."""
    found = []
    for path in (None, tmp_path / "epoch=0.ckpt"):
        module = Net(make)
        prunes = pruning(schedule=OneShot("4it"), keep_removed="moments")
        saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        seen = {}

        class Back(Callback):
            def on_train_batch_start(
                self, trainer, pl_module, batch, batch_idx, prunes=prunes, seen=seen
            ):
                if trainer.global_step == 12:
                    if init == "unprune":
                        prunes.unprune()
                    else:
                        prunes.regrow(1, init="removed")
                    for name, p in weights(pl_module).items():
                        seen[name] = p.clone()
                    for p, state in trainer.optimizers[0].state.items():
                        for key, value in state.items():
                            if torch.is_tensor(value) and value.shape == p.shape:
                                seen[f"{tuple(p.shape)} {key}"] = value.clone()

        fit(module, prunes, saves, Back(), ckpt_path=path, enable_checkpointing=True)
        assert len(seen) > 2
        assert prunes.masks.pruned == 0
        found.append((seen, {n: p.detach() for n, p in module.named_parameters()}))
    assert equal(*found)


def test_a_changed_fit_length_raises_or_moves_times(tmp_path):
    def run(on_change="refuse", **kw):
        prunes = pruning(on_change="keep")
        grows = Regrow(at=0.75, count=5, on_change=on_change)
        fit(Net(), prunes, grows, **kw)
        return [entry["step"] for entry in prunes.history]

    prunes, saves = pruning(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(Net(), prunes, Regrow(at=0.75, count=5), saves, enable_checkpointing=True)
    cut = {"ckpt_path": tmp_path / "epoch=0.ckpt", "max_epochs": 4}
    with pytest.raises(ConfigError, match=r"at steps \[12\], while now \[24\].*on_change='keep'"):
        run(**cut)
    assert run("keep", **cut) == [2, 12]
    assert run("stretch", **cut) == [2, 24]


def test_init_original_uses_values_of_the_fits_start(tmp_path):
    module, prunes = Net(), pruning()
    start = {name: p.clone() for name, p in weights(module).items()}
    steps = Steps()
    fit(module, Regrow(at="9it", fraction=1, init="original"), prunes, steps)
    for name, p in steps.at[9].items():
        if name in start:
            back = steps.at[8][name] == 0
            assert back.any()
            assert torch.equal(p[back], start[name][back])


def test_several_pruning_callbacks_need_names():
    def both():
        return (
            pruning(include="body.0"),
            pruning(schedule=OneShot("3it"), include="body.2"),
        )

    with pytest.raises(ConfigError, match=r"2 pruning callbacks.*write names="):
        fit(Net(), *both(), Regrow(at="5it", fraction=0.5))
    with pytest.raises(ConfigError, match="cannot be shared among 2"):
        fit(Net(), *both(), Regrow(at="5it", count=3, names=["body.*"]))
    first, second = both()
    fit(Net(), first, second, Regrow(at="5it", fraction=0.5, names="body.2"))
    assert [len(first.history), len(second.history)] == [1, 2]
    first, second = both()
    fit(Net(), first, second, Regrow(at="5it", fraction=0.5, names=["body.0", "body.2"]))
    assert [len(first.history), len(second.history)] == [2, 2]


def test_several_regrow_callbacks_save_separate_states(tmp_path):
    one, other = Regrow(at="5it", count=3), Regrow(at="6it", count=3)
    made = fit(Net(), pruning(), one, other)
    made.save_checkpoint(tmp_path / "end.ckpt")
    states = read(tmp_path / "end.ckpt")["callbacks"]
    assert {one.state_key, other.state_key} <= states.keys()
    assert states[one.state_key]["times"]["done"] == [True]


def test_warns_if_nothing_is_pruned_yet():
    prunes = pruning(schedule=OneShot("9it"))
    with pytest.warns(UserWarning, match="nothing is pruned when Regrow acts"):
        fit(Net(), prunes, Regrow(at="1it", fraction=0.5))
    assert [entry["kind"] for entry in prunes.history] == ["prune"]


@pytest.mark.parametrize("fraction", [0.0, 1e-4])
def test_warns_if_less_than_one_weight_would_regrow(fraction):
    prunes = pruning()
    with pytest.warns(UserWarning, match="less than one weight would regrow"):
        fit(Net(), prunes, Regrow(at="5it", fraction=fraction, train="regrown"))
    assert [entry["kind"] for entry in prunes.history] == ["prune"]


def test_a_dry_run_regrows_once():
    pruner = pruning()
    fit(Net(), pruner, Regrow(at="3ep", fraction=0.5), fast_dev_run=True)
    assert "prune" in [entry["kind"] for entry in pruner.history]


class Skips(Net):
    """Skips the batch at which weights are to grow, as Lightning allows."""

    def training_step(self, batch, index):
        return None if self.trainer.global_step == 6 else super().training_step(batch, index)


def test_growth_by_gradient_waits_for_a_batch_that_is_not_skipped():
    prunes = MagnitudePruning(0.8, schedule=OneShot(0))
    grows = Regrow(at="6it", count=20, by="gradient", init="zero")
    fit(Skips(), prunes, grows, max_epochs=2)
    assert [(e["kind"], e["step"]) for e in prunes.history] == [("prune", 0), ("regrow", 7)]


def test_orthogonal_values_of_single_weights_raise_before_the_first_step():
    module = Net()
    with pytest.raises(ConfigError, match="makes whole filters, and single weights come back"):
        fit(module, pruning(), Regrow(at="8it", fraction=0.3, init="orthogonal"))
    assert module.trained == 0


def test_warns_if_masks_are_being_learned():
    learned = LearnedMasks("str", 0.8)
    with pytest.warns(UserWarning, match="masks are being learned when Regrow acts"):
        fit(Net(ADAM), learned, Regrow(at="4it", fraction=0.3))
    assert [entry["kind"] for entry in learned.history] == ["prune"]
