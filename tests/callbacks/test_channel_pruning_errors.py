# SPDX-License-Identifier: MIT
"""Wrong settings raise before training, with what to write."""

import warnings

import pytest
import torch
from tiny_channel_fits import Net, left, pruning, run, sizes, timer
from torch import nn

from regrow import ChannelPruning, Cyclic, Regrow, Table
from regrow.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("kw", "words"),
    [
        ({"of": "flops"}, "of must be one of channels, latency, macs, params"),
        ({"criterion": "l3"}, "criterion must be one of .* did you mean 'l1' or 'l2'|l1"),
        ({"compact": "now"}, "compact must be 'end', 'event' or None, got 'now'"),
        ({"sparsity": 50}, "write 0.5 for 50 %"),
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\)"),
        ({"keep_removed": "moments"}, "keep_removed must be True or False"),
        ({"recalibrate": -1}, "recalibrate must be a whole number of at least 0"),
        ({"min_channels": 0}, "min_channels must be a whole number of at least 1"),
        ({"round_to": 0}, "round_to must be a whole number"),
        ({"distribution": "erk"}, "distribution must be one of global, isomorphic, uniform"),
        ({"schedule": Cyclic("1ep", "2ep", "1ep")}, "never learns: write another schedule"),
        ({"latency_ms": 2.0}, "got of='channels': write of='latency'"),
        ({"latency_ms": -1, "of": "latency"}, "latency_ms must be a number above 0"),
        ({"latency_ms": 2.0, "of": "latency", "sparsity": 0.5}, "write one of them"),
        ({"include": 3}, "include must be layer patterns"),
    ],
)
def test_invalid_settings_raise_at_construction(kw, words):
    with pytest.raises(ConfigError, match=words):
        ChannelPruning(**kw)


class Branching(Net):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Dictionaries(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)


@pytest.mark.parametrize(
    ("module", "kw", "words"),
    [
        (Branching, {}, "torch.export cannot trace Branching.*control flow"),
        (Net, {"sparsity": 0.97, "schedule": "linear"}, "cannot be reached.*ask for less"),
        (Net, {"min_channels": 8}, "cannot be reached.*lower round_to or min_channels"),
        (Net, {"include": "boddy.0"}, r"matches no parameter: nearest are body\.0"),
        (Net, {"exclude": "nothing"}, "exclude pattern 'nothing' matches no parameter"),
        (Net, {"exclude": ["body.0", "body.3"]}, "no channels can be cut.*excluded"),
        (Net, {"criterion": "bn"}, r"ranks by the scale of norms, and body\.3 has none"),
        (Net, {"of": "latency", "timer": lambda m: 1.0}, "latency of .* cannot be reached"),
    ],
)
def test_invalid_models_raise_before_the_first_step(module, kw, words):
    made, channels = module(), pruning(**kw)
    start = made.body[0].weight.clone()
    with pytest.raises(ConfigError, match=words):
        run(made, channels)
    assert torch.equal(made.body[0].weight, start)
    assert {"on_save_checkpoint", "on_load_checkpoint"}.isdisjoint(vars(made))


def test_a_missing_example_input_raises():
    from torch.utils.data import DataLoader

    data = DataLoader([{"x": torch.randn(6), "y": 1} for _ in range(8)], 4)
    with pytest.raises(ConfigError, match=r"write example_input=torch\.zeros.*example_input_array"):
        run(Dictionaries(), pruning(), data=data)
    module = Dictionaries()
    channels = pruning(
        0.5, schedule="one_shot", begin=0, example_input=torch.zeros(2, 6), recalibrate=1
    )
    with pytest.warns(UserWarning, match="so statistics stay as they are"):
        run(module, channels, data=data)
    assert left(module) == 10


def test_criterion_bn_needs_batch_norms():
    module = Net()
    channels = pruning(0.5, criterion="bn", include="body.0", schedule="one_shot", compact=None)
    nn.init.uniform_(module.body[1].weight, 0.5, 2)
    run(module, channels)
    assert sizes(module) == (12, 8)
    assert channels.sparsity == 0.5
    assert len(channels.pruner.removed["body.0"]) == 6


def test_a_table_sets_the_default_target():
    channels = ChannelPruning(schedule=Table({"3it": 0.3}), round_to=1)
    assert channels.final == 0.3
    assert ChannelPruning().final == 0.5


def test_latency_budget_already_met_cuts_nothing():
    channels = ChannelPruning(of="latency", latency_ms=100.0, timer=timer, schedule="linear")
    module = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(module, channels)
    assert left(module) == 20
    assert channels.schedule_done
    assert not channels.history


def test_scheduled_regrowth_of_channels_must_be_random_or_removed():
    for kw, words in (({"by": "gradient"}, "'random' or 'removed'"), ({"init": "zero"}, "write")):
        with pytest.raises(ConfigError, match=words):
            run(Net(), pruning(), Regrow("20it", 0.5, **({"by": "random"} | kw)))
    channels = pruning(compact=None)
    run(Net(), channels, Regrow("20it", 0.5, by="random", init="he"))
    assert [e["kind"] for e in channels.history] == ["prune"] * 3 + ["regrow"]
    assert channels.sparsity == pytest.approx(0.3)
