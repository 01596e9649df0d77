# SPDX-License-Identifier: MIT
"""One-shot channel pruning: what it refuses names the cause; cuts are undone in order."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from regrow import ChannelPruning
from regrow.channels import groups, prune
from regrow.utils.errors import ConfigError, StateError


class Spectral(nn.Module):
    """A layer of 16 inputs and 8 channels, an FFT, which has no rule, and an output."""

    def __init__(self, norm):
        super().__init__()
        self.first = nn.Linear(16, 8)
        self.norm = norm
        self.last = nn.Linear(5, 2, bias=False)

    def forward(self, x):
        return self.last(self.norm(torch.fft.rfft(self.first(x)).real))


@pytest.mark.parametrize("norm", [nn.Identity(), nn.LayerNorm(5)], ids=["plain", "norm"])
def test_every_fixed_group_is_listed_with_its_reason_and_share(norm):
    with pytest.raises(ConfigError) as error:
        prune(Spectral(norm), torch.zeros(2, 5, 16), 0.3)
    text = str(error.value)
    # of 16 x 8 + 5 x 2 MACs of linear layers
    assert f"first ({128 / 138:.0%} of the MACs): no rule for fft_rfft" in text
    assert f"last ({10 / 138:.0%} of the MACs): the network's output" in text
    assert text.index("first (") < text.index("last (")


def test_unreachable_target_raises_with_the_fixed_groups():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 32))
    with pytest.raises(ConfigError, match=r"cannot be reached.*2 \(89% of the MACs\): the netw"):
        prune(model, torch.zeros(2, 4), 0.95, of="macs")


@pytest.mark.parametrize("look", [groups, prune])
def test_model_without_parameters_raises(look):
    if look is groups:
        assert groups(nn.ReLU(), torch.zeros(2, 4)) == ()
    else:
        with pytest.raises(ConfigError, match="the model has no layers with channels"):
            prune(nn.ReLU(), torch.zeros(2, 4))


def test_an_earlier_cut_is_undone_only_after_a_later_one():
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    dense = model(x)
    first = prune(model, x, 0.5, round_to=1)
    between = model(x)
    second = prune(model, x, 0.5, round_to=1)
    small = model(x)
    with pytest.raises(StateError, match="undo the later cut first"):
        first.undo()
    assert torch.equal(model(x), small)
    second.undo()
    assert torch.equal(model(x), between)
    first.undo()
    assert torch.equal(model(x), dense)


class Cached(nn.Module):
    """Returns a cache that torch.export does not know, like models of language."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.config = SimpleNamespace(use_cache=True)

    def forward(self, x):
        y = self.body(x)
        return (y, SimpleNamespace(keys=y)) if self.config.use_cache else y


def test_cache_in_the_outputs_raises_with_the_line_to_write():
    model = nn.Sequential(nn.Linear(4, 4), Cached())
    with pytest.raises(ConfigError, match=r"set model.1.config.use_cache=False"):
        prune(model, torch.zeros(2, 4), 0.5)
    model[1].config.use_cache = False
    assert prune(model, torch.zeros(2, 4), 0.5, round_to=1).removed == {"0": 2}


def test_callback_raises_with_the_same_reasons():
    callback = ChannelPruning(0.5, example_input=torch.zeros(2, 5, 16))
    with pytest.raises(ConfigError, match=r"first \(93% of the MACs\): no rule for fft_rfft"):
        callback.strategy.make_pruner(Spectral(nn.Identity()))
