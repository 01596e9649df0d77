# SPDX-License-Identifier: MIT
"""Channel pruning beside a budget, pruning of weights, and rewinding."""

import copy

import pytest
import torch
from lightning.pytorch import Callback
from tiny_channel_fits import PLACES, Net, left, output, pruning, run, sizes
from tiny_fits import Events, equal, loader, read

from regrow import (
    AccuracyBudget,
    DynamicSparseTraining,
    Exponential,
    MagnitudePruning,
    SparseModelCheckpoint,
    Table,
)
from regrow.callbacks.core.base import Callback as SuiteCallback
from regrow.utils.errors import ConfigError


class Scored(Net):
    """A network whose metric equals the dense one while enough channels are left."""

    def __init__(self, least, **kw):
        super().__init__(**kw)
        self.least = least

    def validation_step(self, batch, batch_idx):
        alive = int(
            (self.body[0].weight != 0).any(1).sum() + (self.body[3].weight != 0).any(1).sum()
        )
        self.log("val/score", 1.0 if alive >= self.least else 0.0)


def now(trainer, pl_module):
    state = [o.state_dict()["state"] for o in trainer.optimizers]
    return copy.deepcopy((pl_module.state_dict(), state))


class Shapes(SuiteCallback):
    """Record shapes, state and optimizer at the start of each batch, and after a cut."""

    def __init__(self):
        super().__init__()
        self.seen, self.states, self.epochs = [], [], {}

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs[trainer.global_step] = now(trainer, pl_module)

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.seen.append(left(pl_module))
        self.states.append(now(trainer, pl_module))

    def on_compact(self, trainer, pl_module, plan):
        if len(self.states) > trainer.global_step:
            self.states[trainer.global_step] = now(trainer, pl_module)


def budget(**kw):
    return AccuracyBudget("val/score", max_drop=0.5, recover="8it", **kw)


@pytest.mark.parametrize("compact", ["event", "end"])
def test_only_channels_accepted_by_the_budget_are_cut(compact, tmp_path):
    schedule = Table({"8it": 0.25, "16it": 0.6})
    module, before, after, events = Scored(least=14), Shapes(), Shapes(), Events()
    channels = pruning(schedule=schedule, compact=compact)
    last = SparseModelCheckpoint(tmp_path, monitor="val/score", mode="max")
    run(
        module, before, channels, budget(resolution=0.05), after, events, last,
        enable_checkpointing=True, max_epochs=8,
    )  # fmt: skip
    kinds = [entry["kind"] for entry in channels.history]
    held = [e["after"] for e in channels.history if e["kind"] == "prune" and "lost" in e]
    assert "rollback" in kinds
    assert held
    assert max(held) == channels.sparsity
    assert left(module) == 20 - round(20 * channels.sparsity) >= 14
    cuts = [e["after"] for e in channels.history if e["kind"] == "compact"]
    assert cuts == (held if compact == "event" else [max(held)])
    # rolled back to the bit: as right before the event
    failed = [step for step, sparsity in events.seen if sparsity not in [round(h, 6) for h in held]]
    backs = [e["step"] for e in channels.history if e["kind"] == "rollback"]
    assert len(failed) == len(backs) > 0
    for step, back in zip(failed, backs, strict=True):
        assert equal(before.states[step], after.epochs[back])
        assert left(module) <= before.seen[step]
    saved = read(last.last_model_path)["callbacks"][channels.state_key]
    assert saved["pruner"]["history"][-1]["kind"] in ("rollback", "compact", "prune")


def test_weights_and_channels_are_pruned_in_one_fit():
    seen = {}

    class Look(Callback):
        def on_train_batch_start(self, trainer, module, *_):
            if trainer.global_step == 2:  # before anything is pruned
                seen["start"] = {n: p.detach().clone() for n, p in module.named_parameters()}
            if trainer.global_step == 6:  # between the two events
                seen["masks"] = dict(weights.masks)

    def frozen(parameters):
        return torch.optim.SGD(parameters, lr=0.0)

    weights = MagnitudePruning(0.4, schedule="one_shot", begin="5it")
    channels = pruning(0.5, schedule="one_shot", begin="9it", compact="event")
    module = Net(frozen)
    run(module, Look(), channels, weights, max_epochs=2)
    start, kept = seen["start"], channels.plan.kept
    assert left(module) == 10
    for name, mask in weights.masks.items():
        sliced, value = seen["masks"][name], start[name]
        for dim, keep in kept[name].items():
            places = keep.nonzero().flatten()
            sliced, value = sliced.index_select(dim, places), value.index_select(dim, places)
        assert torch.equal(mask, sliced)
        parameter = dict(module.named_parameters())[name]
        assert torch.equal(parameter == 0, ~sliced)
        seen[name] = value
    weights.unprune()
    for name in weights.masks:
        assert torch.equal(dict(module.named_parameters())[name], seen[name])


def test_zeros_of_weights_and_channels_add_up():
    weights = MagnitudePruning(0.4, schedule="one_shot", begin="5it")
    channels = pruning(0.5, schedule="one_shot", begin="9it", compact=None)
    module = Net()
    run(module, weights, channels)
    for name, mask in weights.masks.items():
        kept = mask.clone()
        for group, gone in channels.pruner.removed.items():
            if name in PLACES[group]:
                kept.index_fill_(PLACES[group][name], gone, False)
        assert torch.equal(dict(module.named_parameters())[name] != 0, kept)


def test_best_checkpoint_is_ranked_after_both_targets(tmp_path):
    weights = MagnitudePruning(0.4, schedule="one_shot", begin="5it")
    channels = pruning(0.5, schedule="one_shot", begin="9it", compact="event")
    best = SparseModelCheckpoint(tmp_path, monitor="val/loss")
    job = run(Net(), weights, channels, best, enable_checkpointing=True)
    assert best.best_model_path
    module = Net(seed=1)
    both = (
        MagnitudePruning(0.4, schedule="one_shot", begin="5it"),
        pruning(0.5, schedule="one_shot", begin="9it", compact="event"),
    )
    run(module, *both, ckpt_path=best.last_model_path, max_epochs=4)
    assert left(module) == 10
    assert job.global_step == 24
    for name, mask in both[0].masks.items():
        assert not dict(module.named_parameters())[name][~mask].any()


def test_both_pruners_rewind_to_the_stored_state():
    shapes, after = Shapes(), Shapes()
    channels = pruning(
        0.64, schedule=Exponential(0.4, every="8it", begin="16it"), rewind="1ep", compact="event"
    )
    module = Net()
    run(module, shapes, channels, after, max_epochs=4)
    assert [e["step"] for e in channels.history if e["kind"] == "prune"] == [16, 24]
    assert all(e["rewound_to"] == 8 for e in channels.history if e["kind"] == "prune")
    remembered = shapes.states[8][0]
    kept = {}
    for step, count in ((16, 12), (24, 7)):
        state = after.states[step][0]
        assert after.seen[step] == count
        for name, tensor in state.items():
            assert not name.endswith("weight") or tensor.any()
        if step == 24:
            kept = channels.plan.kept
            for name, tensor in state.items():
                expected = remembered[name]
                for dim, keep in kept.get(name, {}).items():
                    expected = expected.index_select(dim, keep.nonzero().flatten())
                assert torch.equal(tensor, expected), name
        assert not any(after.states[step][1][0].values())  # the optimizer began anew
    assert kept


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: MagnitudePruning(0.5, soft=True), "soft=True"),
        (lambda: MagnitudePruning(0.5, criterion="movement"), "tracks gradients"),
        (lambda: DynamicSparseTraining(0.5), "constant sparsity"),
        (lambda: pruning(0.3, include="body.0"), "two ChannelPruning would cut"),
    ],
)
def test_callbacks_with_per_weight_statistics_raise_with_cuts(other, words):
    with pytest.raises(ConfigError, match=words):
        run(Net(), pruning(), other())


@pytest.mark.parametrize("count", [0, 3])
def test_batch_norms_are_recalibrated_after_the_cut(count):
    channels, module = pruning(recalibrate=count), Net()
    held = []

    class Last(Callback):
        def on_train_end(self, trainer, pl_module):
            held.append(pl_module.body[1].running_mean.clone())

    data = loader()
    run(module, channels, Last(), data=data)
    assert left(module) == 8
    first = torch.cat([batch[0] for batch, _ in zip(data, range(3), strict=False)])
    with torch.no_grad():
        expected = module.body[0](first).numpy().mean(0)
    found = module.body[1].running_mean.numpy()
    near = abs(found - expected).max() < 1e-6
    assert near == bool(count)
    keep = channels.plan.kept["body.1.running_mean"][0]
    assert torch.equal(module.body[1].running_mean, held[0][keep]) == (not count)
    assert output(module).isfinite().all()
    assert sizes(module) != (12, 8)
