# SPDX-License-Identifier: MIT
"""Latency as the unit, with a timer that depends only on sizes."""

import pytest
import torch
from tiny_channel_fits import Net, left, pruning, run, sizes, timer

from regrow import ChannelPruner, ChannelPruning
from regrow.channels.config import ChannelConfig
from regrow.utils.errors import StateError

TIMES = {"schedule": "linear", "begin": "3it", "end": "18it", "every": "5it", "round_to": 1}


DENSE = 1.0 + (6 * 12 + 12 * 8 + 8 * 3) / 100


@pytest.mark.parametrize("compact", ["end", "event", None])
def test_a_fraction_of_the_time_is_saved(compact):
    module = Net()
    channels = pruning(0.3, of="latency", timer=timer, compact=compact, **TIMES)
    run(module, channels)
    if compact is None:
        assert left(module) == 20
        channels.compact()
    assert 0.6 * DENSE < timer(module) <= 0.7 * DENSE
    assert channels.sparsity == 0.3
    channels.expand()
    assert timer(module) == DENSE
    assert channels.sparsity == 0


def test_milliseconds_are_met_and_stored(tmp_path):
    module = Net()
    channels = ChannelPruning(of="latency", latency_ms=2.0, timer=timer, **TIMES)
    job = run(module, channels)
    assert channels.final == pytest.approx(1 - 2.0 / DENSE)
    assert 1.7 < timer(module) <= 2.0
    job.save_checkpoint(tmp_path / "a.ckpt")
    slow = lambda model: 2 * timer(model)  # noqa: E731
    again = ChannelPruning(of="latency", latency_ms=2.0, timer=slow, **TIMES)
    run(Net(), again, ckpt_path=tmp_path / "a.ckpt", max_epochs=4)
    assert again.final == channels.final  # measured once
    other = ChannelPruning(of="latency", latency_ms=2.1, timer=timer, **TIMES)
    with pytest.raises(StateError, match=r"latency_ms=2\.0, now 2\.1"):
        run(Net(), other, ckpt_path=tmp_path / "a.ckpt", max_epochs=4)


def test_regrown_channels_lower_the_saved_latency():
    module = Net()
    pruner = ChannelPruner(
        module, torch.zeros(2, 6), ChannelConfig(of="latency", timer=timer, round_to=1)
    )
    pruner.prune_to(0.3)
    gone = {name: len(channels) for name, channels in pruner.removed.items()}
    pruner.regrow(count=2)
    a, b = 12 - len(pruner.removed["body.0"]), 8 - len(pruner.removed["body.3"])
    assert (12 - gone["body.0"]) + (8 - gone["body.3"]) + 2 == a + b
    now = 1.0 + (6 * a + a * b + b * 3) / 100
    assert pruner.sparsity == pytest.approx(1 - now / DENSE)
    pruner.unprune()
    assert pruner.sparsity == 0
    assert sizes(module) == (12, 8)


def test_latency_uses_the_original_batch_size(monkeypatch):
    """Also after a resume, whose checkpoint holds two examples."""
    seen = []

    class Taken:
        median_ms = 1.0

    def latencies(models, example, **_):
        seen.append(len(example))
        return [Taken() for _ in models]

    monkeypatch.setattr("regrow.channels.latency_budget.latencies", latencies)
    method = ChannelConfig(of="latency")
    whole = ChannelPruner(Net(), torch.zeros(7, 6), method)
    again = ChannelPruner(Net(), whole.state_dict()["example"], method)
    again.load_state_dict(whole.state_dict())
    for pruner in (whole, again):
        pruner.watch(pruner.model, pruner.example_input)
    assert seen == [7, 7]
