# SPDX-License-Identifier: MIT
"""Channels of layers with weight norm, spectral norm or recurrence: masked, cut and restored."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from regrow import ChannelPruner
from regrow.channels.config import ChannelConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*(deprecated|weight_norm|spectral_norm)")
ROWS = torch.randn(4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.d = nn.Linear(6, 5), nn.GRU(5, 8, 2, batch_first=True, bidirectional=True)
        self.c = nn.Linear(16, 3)

    def forward(self, x):
        return self.c(self.d(self.a(x))[0])


def normed(wrap):
    layers = wrap(nn.Linear(6, 8)), nn.Tanh(), wrap(nn.Linear(8, 7)), nn.Tanh(), nn.Linear(7, 3)
    return nn.Sequential(*layers)


NETWORKS = {
    "weight norm": lambda: normed(parametrizations.weight_norm),
    "weight norm, hooks": lambda: normed(nn.utils.weight_norm),
    "spectral norm": lambda: normed(parametrizations.spectral_norm),
    "recurrent": Recurrent,
}


@pytest.fixture(params=NETWORKS)
def model(request):
    torch.manual_seed(0)
    return NETWORKS[request.param]().double()


def train(model, optimizer, made, steps=3):
    model.train()
    hook = made.enforcer.hook(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        model(ROWS).square().sum().backward()
        made.enforcer.prepare()
        optimizer.step()
    hook.remove()
    model.eval()


def output(model):
    with torch.no_grad():
        return model.eval()(ROWS)


def test_masked_network_trains_and_the_cut_one_computes_the_same(model):
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    made = ChannelPruner(model, ROWS, ChannelConfig(round_to=1))
    dense = output(model)
    made.prune_to(0.4, [optimizer])
    train(model, optimizer, made)
    masked = output(model)
    assert masked.isfinite().all()
    assert not torch.allclose(masked, dense)
    sizes = {name: tensor.shape for name, tensor in model.named_parameters()}
    plan = made.compact([optimizer])
    assert (output(model) - masked).abs().max() < 1e-12
    assert any(tensor.shape != sizes[name] for name, tensor in model.named_parameters())
    assert sum(plan.removed.values()) > 4
    train(model, optimizer, made)
    assert output(model).isfinite().all()


def test_channels_that_return_after_a_cut_have_their_old_values(model):
    made = ChannelPruner(model, ROWS, ChannelConfig(round_to=1))
    before, dense = copy.deepcopy(model.state_dict()), output(model)
    for target in (0.3, 0.5):
        made.prune_to(target)
        made.compact()
    made.expand()
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(output(model), dense)


def test_masked_channels_that_return_have_their_old_values(model):
    made = ChannelPruner(model, ROWS, ChannelConfig(round_to=1))
    before = copy.deepcopy(model.state_dict())
    made.prune_to(0.5)
    made.unprune()
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_new_channels_leave_the_output_as_it_is_and_their_biases_are_zero():
    torch.manual_seed(0)
    model = Recurrent().double()
    made = ChannelPruner(model, ROWS, ChannelConfig(round_to=1))
    made.prune_to(0.5)
    masked = output(model)
    gone = made.removed["d"]
    made.regrow(count=3, init="he")
    assert torch.equal(output(model), masked)
    back = gone[~torch.isin(gone, made.removed["d"])]
    assert len(back)
    assert model.d.weight_ih_l0[back].any()
    assert not model.d.bias_ih_l0[back].any()


@pytest.mark.parametrize("name", ["weight norm", "weight norm, hooks"])
def test_new_channels_leave_the_output_of_weight_norm_as_it_is(name):
    model = NETWORKS[name]().double()
    made = ChannelPruner(model, ROWS, ChannelConfig(round_to=1))
    made.prune_to(0.5)
    masked = output(model)
    made.regrow(count=3, init="he")
    assert torch.equal(output(model), masked)
    assert made.sparsity < 0.4


def test_new_channels_change_the_output_of_spectral_norm_at_once():
    torch.manual_seed(0)
    model = NETWORKS["spectral norm"]().double()
    made = ChannelPruner(model, ROWS, ChannelConfig(round_to=1))
    made.prune_to(0.5)
    masked = output(model)
    made.regrow(count=4, init="he")
    after = output(model)
    assert after.isfinite().all()
    assert not torch.allclose(after, masked)
