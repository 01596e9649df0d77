# SPDX-License-Identifier: MIT
"""One-shot channel pruning: what it refuses names the cause; cuts are undone in order."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from regrow import ChannelPruning
from regrow.channels import ChannelCut, groups, prune
from regrow.channels.pruner import ChannelPruner
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


def blocks() -> nn.Sequential:
    """Three hidden widths; of two blocks of the same kind and one with a norm."""
    return nn.Sequential(
        nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(),
        nn.Linear(10, 10), nn.LayerNorm(10), nn.Linear(10, 2),
    )  # fmt: skip


X = torch.zeros(2, 4)


def test_layers_with_own_fractions_lose_them():
    plan = prune(blocks(), X, 0.3, round_to=1, layers={"0": 0.3, "2": 0.1})
    assert plan.removed == {"0": 6, "2": 1, "4": 5}


def test_own_fraction_zero_keeps_all_channels():
    plan = prune(blocks(), X, 0.4, round_to=1, layers={"0": 0})
    assert "0" not in plan.removed
    assert sum(plan.removed.values()) == 16


def test_limit_of_a_layer_is_kept():
    plan = prune(blocks(), X, 0.5, round_to=1, max_sparsity=0.5)
    assert plan.removed == {"0": 10, "2": 5, "4": 5}
    with pytest.raises(ConfigError, match="raise max_sparsity"):
        prune(blocks(), X, 0.6, round_to=1, max_sparsity=0.5)


class Residual(nn.Module):
    """Two layers whose outputs are added, so that they lose the same channels."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.second(x.relu()))


def test_group_takes_the_fraction_of_any_of_its_layers():
    assert prune(Residual(), X, 0.0, round_to=1, layers={"second": 0.5}).removed == {"first": 4}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"frist": 0.5}, "layers pattern 'frist' matches no parameter: nearest are first"),
        ({"last": 0.5}, "layers pattern 'last' matches no layer that can be cut .*network's outp"),
        ({"first": 0.5, "second": 0.25}, "share channels, which they lose together"),
        ({"first": 0.5, "f*": 0.25}, "never counts"),
        ({"first": 5}, r"the sparsity of layers 'first' must be in \[0, 1\), got 5"),
        ({"first": 0.8}, "asks for more than max_sparsity=0.7"),
        ([0.5], "layers must map patterns to sparsities"),
    ],
)
def test_wrong_own_fractions_raise_and_change_nothing(layers, message):
    model = Residual()
    with pytest.raises(ConfigError, match=message):
        prune(model, X, 0.1, layers=layers, max_sparsity=0.7)
    assert model.first.out_features == 8


def test_plan_lists_what_is_only_approximately_equal_and_why():
    plan = prune(blocks(), X, 0.5, round_to=1, distribution="uniform")
    assert plan.removed.keys() == {"0", "2", "4"}
    assert plan.approximate.keys() == {"4"}
    assert "norm" in plan.approximate["4"][0]
    again = ChannelCut.from_state(plan.state_dict())
    assert again.approximate == plan.approximate


def test_callback_grows_own_fractions_with_the_schedule():
    callback = ChannelPruning(0.5, example_input=X, round_to=1, layers={"0": 0.8}, max_sparsity=0.8)
    pruner = callback.strategy.make_pruner(blocks())
    assert pruner.layer_targets == {"0.weight": 0.8}
    pruner.prune_to(0.25, own={"0.weight": 0.4})
    assert len(pruner.removed["0"]) == 8
    assert pruner.layer_densities == {"0.weight": pytest.approx(0.6)}
    pruner.prune_to(0.5)
    assert len(pruner.removed["0"]) == 16
    pruner.compact()
    assert pruner.layer_densities == {"0.weight": pytest.approx(0.2)}
    assert pruner.plan.removed["0"] == 16


class Auxiliary(nn.Module):
    """A second head, which only code outside `forward` runs."""

    def __init__(self, inputs=32):
        super().__init__()
        self.body, self.head, self.aux = nn.Linear(8, 32), nn.Linear(32, 2), nn.Linear(inputs, 2)

    def forward(self, x):
        return self.head(self.body(x).relu())


@pytest.mark.parametrize("make", [prune, ChannelPruner])
def test_weights_that_the_example_does_not_use_are_named(make):
    with pytest.warns(UserWarning, match=r"does not use aux\.weight: if other code runs them"):
        make(Auxiliary(), torch.zeros(2, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(Auxiliary(5), torch.zeros(2, 8))  # reads no channel that can be cut
