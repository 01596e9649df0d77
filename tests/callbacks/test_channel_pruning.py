# SPDX-License-Identifier: MIT
"""Channels are masked while training, and cut out at its end or at events."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_channel_fits import Net, Zeros, left, output, pruning, run, sizes
from tiny_fits import ADAM, read

from regrow import ChannelPruning, SparsityMonitor
from regrow.utils.errors import StateError

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1)
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize("make", [SGD, ADAMW])
def test_masked_channels_are_zero_and_the_target_is_reached(make, tmp_path):
    channels, module = pruning(), Net(make)
    watch = Zeros(channels)
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=5, save_top_k=-1)
    run(module, channels, watch, saves, SparsityMonitor(), enable_checkpointing=True)
    assert watch.looks > 100
    assert left(module) == 8
    assert channels.sparsity == 0.6
    kinds = [(e["kind"], e["step"], round(e["after"], 6)) for e in channels.history]
    assert kinds == [
        ("prune", 3, 0.25), ("prune", 11, 0.5), ("prune", 18, 0.6), ("compact", 24, 0.6)
    ]  # fmt: skip
    assert sum(channels.history[1]["channels"].values()) == 10
    assert channels.history[-1]["channels"] == channels.plan.removed


@pytest.mark.parametrize("compact", ["event", "end", None])
def test_compact_sets_when_channels_are_cut(compact):
    shapes = []

    class Shapes(Callback):
        def on_train_batch_start(self, trainer, module, *_):
            shapes.append(left(module))

    channels, module = pruning(compact=compact), Net()
    optimizers = run(module, channels, Shapes()).optimizers
    events = [20] * 3 + [15] * 8 + [10] * 7 + [8] * 6
    assert shapes == (events if compact == "event" else [20] * 24)
    assert left(module) == (20 if compact is None else 8)
    if compact == "event":
        assert all(optimizers[0].state[p]["exp_avg"].shape == p.shape for p in module.parameters())
    masked = output(module)
    assert (channels.compact() is None) is (compact is not None)
    assert left(module) == 8
    assert (output(module) - masked).abs().max() < 1e-5
    channels.expand()
    assert sizes(module) == (12, 8)


def test_cut_model_equals_the_masked_one_in_float64():
    channels, module = pruning(compact=None), Net()
    run(module, channels, precision="64-true")
    masked = output(module)
    channels.compact()
    assert left(module) == 8
    assert (output(module) - masked).abs().max() <= 1e-9


@pytest.mark.parametrize(
    "kw",
    [
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.1},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "precision": "bf16-mixed"},
    ],
    ids=str,
)
@pytest.mark.parametrize("criterion", ["l2", "taylor"])
def test_works_beside_other_features(kw, criterion):
    channels = pruning(compact="event", criterion=criterion, schedule="one_shot", begin="4it")
    module = Net()
    watch = Zeros(channels)
    run(module, channels, watch, **kw)
    assert left(module) == 8
    assert [e["kind"] for e in channels.history] == ["prune", "compact"]


def test_taylor_scores_use_the_dense_gradients():
    """Squared sums of g * w over all members of a channel, computed here by hand."""
    seen = {}

    class Scores(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            if trainer.global_step == 3:
                b = module.body
                parts = [(p * p.grad).detach() for p in module.parameters()]
                first = parts[0].sum(1) + parts[1] + parts[2] + parts[3] + parts[4].sum(0)
                second = parts[4].sum(1) + parts[5] + parts[6].sum(0)
                seen["scores"] = torch.cat([first, second]).square()
                assert len(b) == 7

    channels = pruning(0.5, criterion="taylor", compact=None, schedule="one_shot", begin="3it")
    run(Net(), Scores(), channels)
    least = seen["scores"].argsort()[:10]
    removed = [*channels.pruner.removed["body.0"], *(channels.pruner.removed["body.3"] + 12)]
    assert sorted(map(int, removed)) == sorted(least.tolist())


def by_channel(parts):
    """Sums over all members of the 12 and 8 channels, of one tensor for each parameter."""
    first = parts[0].sum(1) + parts[1] + parts[2] + parts[3] + parts[4].sum(0)
    return torch.cat([first, parts[4].sum(1) + parts[5] + parts[6].sum(0)])


def removed(channels):
    gone = channels.pruner.removed
    return sorted([*gone["body.0"].tolist(), *(gone["body.3"] + 12).tolist()])


def test_fisher_scores_are_an_exponential_mean_over_the_steps():
    """Half of the sums of (g * w)^2 over all members of a channel, computed here by hand."""
    terms = []

    class Scores(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            if trainer.global_step <= 3:
                products = [(p * p.grad).detach().double() for p in module.parameters()]
                terms.append(by_channel([product.square() / 2 for product in products]))

    channels = pruning(0.5, criterion="fisher", compact=None, schedule="one_shot", begin="3it")
    run(Net(), Scores(), channels)
    mean = sum(0.99 ** (3 - step) * term for step, term in enumerate(terms))
    assert removed(channels) == sorted(mean.argsort()[:10].tolist())


@pytest.mark.parametrize("measure", ["activation", "apoz"])
def test_activation_scores_are_those_of_the_batch_at_which_channels_go(measure):
    seen = {}

    class Scores(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 3:
                module.eval()
                with torch.no_grad():
                    hidden = [module.body[:3](batch[0]), module.body[:6](batch[0])]
                module.train()
                means = [(h.abs() if measure == "activation" else h != 0).double() for h in hidden]
                means = [m.mean(0) for m in means]
                if measure == "activation":
                    means = [m / m[m > 0].mean() for m in means]
                seen["scores"] = torch.cat(means)

    channels = pruning(0.5, criterion=measure, compact=None, schedule="one_shot", begin="3it")
    run(Net(), Scores(), channels)
    scores, gone = seen["scores"], removed(channels)
    kept = [channel for channel in range(20) if channel not in gone]
    assert len(gone) == 10
    assert scores[gone].max() <= scores[kept].min()  # apoz has ties


def test_own_fraction_and_limit_hold_in_a_fit():
    times = {"schedule": "linear", "begin": "3it", "end": "18it", "every": "5it"}
    channels, module = pruning(0.55, layers={"body.3": 0.25}, max_sparsity=0.75, **times), Net()
    run(module, channels)
    assert sizes(module) == (3, 6)  # 9 of 12 is the limit, so that 11 of 20 go
    assert channels.plan.removed == {"body.0": 9, "body.3": 2}


def test_accumulated_gradients_survive_a_cut():
    """A budget accepts in the middle of a window of accumulated gradients: the cut waits."""
    whole = []

    class Windows(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            whole.append(all(p.grad is not None for p in module.parameters()))

    class Waits(ChannelPruning):
        ready = False

        @property
        def settled(self):
            return self.ready

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.ready = batch_idx >= 5  # the second batch of a window of two
            super().on_train_batch_start(trainer, module, batch, batch_idx)
            if batch_idx == 5 and self.pruner.history:
                seen.append(left(module))

    seen = []
    channels = Waits(0.6, schedule="one_shot", begin="1it", compact="event", round_to=1)
    run(Net(), channels, Windows(), accumulate_grad_batches=2, max_epochs=1)
    assert seen == [20]
    assert all(whole)
    assert [e["kind"] for e in channels.history] == ["prune", "compact"]


def test_second_fit_continues_with_the_small_model(tmp_path):
    channels, module = pruning(), Net()
    made = run(module, channels)
    events = len(channels.history)
    run(module, channels)
    assert len(channels.history) == events
    assert left(module) == 8
    more = pruning(0.75, schedule="one_shot", begin=0, compact="event")
    run(module, more, max_epochs=1)
    assert left(module) <= 2
    assert made.global_step == 24


def test_weights_only_checkpoints_save_and_load(tmp_path):
    from regrow import load

    saves = ModelCheckpoint(tmp_path, filename="w", save_weights_only=True)
    channels, module = pruning(compact="event"), Net()
    run(module, channels, saves, enable_checkpointing=True)
    small = load(Net, tmp_path / "w.ckpt")
    assert left(small) == 8
    assert "regrow_channels" in read(tmp_path / "w.ckpt")
    assert {"on_save_checkpoint", "on_load_checkpoint"}.isdisjoint(vars(module))


class Fragile(Net):
    """A network whose forward requires a number of channels from some step on."""

    wanted = None

    def forward(self, x):
        if self.wanted and self.body[0].out_features not in self.wanted:
            raise RuntimeError("not so many")
        return super().forward(x)


@pytest.mark.parametrize("compact", ["end", "event"])
def test_failed_cut_leaves_the_model_masked_and_uncut(compact):
    module, channels = Fragile(ADAM), pruning(compact=compact)

    class Later(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            pl_module.wanted = (12,)

    with pytest.warns(UserWarning, match=r"body\.\d was masked but cannot be cut .*not so many"):
        run(module, Later(), channels)
    assert sizes(module) == (12, 8)
    assert channels.sparsity == 0.6
    assert sum(int((p == 0).sum()) for p in module.parameters()) == channels.pruner.pruned
    with pytest.raises(StateError, match=r"exclude=\['body\.0'"):
        channels.compact()
    module.wanted = None
    channels.compact()
    assert left(module) == 8


def test_failed_trial_fixes_the_group_and_gives_the_reason():
    module, channels = Fragile(ADAM), pruning(0.3, schedule="one_shot")
    module.wanted = (12,)
    with pytest.warns(UserWarning, match=r"body\.0 keeps its channels.*not so many"):
        run(module, channels, max_epochs=1)
    assert list(channels.pruner.not_prunable) == ["body.0"]
    assert sizes(module) == (12, 5)  # 30 % of what can be cut
    assert channels.sparsity == 1 - 5 / 8
