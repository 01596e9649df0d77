# SPDX-License-Identifier: MIT
"""What the diagnosis says of whole networks."""

import copy

import pytest
import torch
from torch import nn

import regrow
from regrow.runtime.rules import RULES
from regrow.runtime.sparse_layers import SparseLinear
from regrow.utils.errors import ConfigError, StateError


def by_runtime(diagnosis):
    return {finding.rule.runtime: finding for finding in diagnosis.findings}


def test_shares_are_of_the_multiply_accumulates():
    """By hand: 3 x 8 x 9 weights at 64 positions, and 8 x 32 at one."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveMaxPool2d(1), nn.Flatten())
    net.append(nn.Linear(8, 32))
    nn.init.zeros_(net[3].weight)
    found = regrow.diagnose(net, torch.zeros(2, 3, 8, 8))
    assert [layer.macs for layer in found.layers] == [3 * 8 * 9 * 64, 8 * 32]
    finding = by_runtime(found)["PyTorch CPU"]
    assert finding.share == pytest.approx(256 / (13_824 + 256))
    assert [*finding.obstacles] == ["0.weight"]
    assert "ChannelPruning" in finding.main.change


def test_the_change_is_that_of_most_of_the_multiply_accumulates():
    """Two layers that need channels outweigh the larger one that needs zeros."""
    convs = [nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)]
    for net, change in ((convs[:1], "sparsity 0.9"), (convs, "remove channels")):
        finding = by_runtime(regrow.diagnose(nn.Sequential(*net), torch.zeros(1, 8, 4, 4)))
        assert change in finding["PyTorch CPU"].main.change
    assert finding["PyTorch CPU"].share == 0


def test_the_reason_is_that_of_most_of_the_multiply_accumulates_with_this_change():
    """Each of the narrow convolutions is smaller than the one with three inputs."""
    net = nn.Sequential(nn.Conv2d(3, 128, 9, padding=4))
    net.extend(nn.Conv2d(128, 128, 1) for _ in range(3))
    macs = [layer.macs for layer in regrow.diagnose(net, torch.zeros(1, 3, 4, 4)).layers]
    assert macs[1] < macs[0] < sum(macs[1:])
    finding = by_runtime(regrow.diagnose(net, torch.zeros(1, 3, 4, 4)))["TensorRT 2:4"]
    assert finding.main.reason == "less than 256 channels"


def test_model_and_weights_stay_as_they_were():
    net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8)).train()
    before = copy.deepcopy(net.state_dict())
    regrow.diagnose(net, torch.zeros(4, 8))
    assert net.training
    assert net[1].training
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_layers_that_the_example_does_not_reach_are_left_out():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.used(x)

    assert [layer.name for layer in regrow.diagnose(Net(), torch.zeros(1, 8)).layers] == [
        "used.weight"
    ]
    compiled = torch.compile(Net(), backend="eager")
    assert regrow.diagnose(compiled, torch.zeros(1, 8)).layers[0].name == "used.weight"
    assert regrow.diagnose(nn.Linear(8, 8), torch.zeros(1, 8)).layers[0].name == "weight"


def test_a_model_without_layers_is_an_error():
    with pytest.raises(ConfigError, match="reaches no Linear layer or convolution"):
        regrow.diagnose(nn.Sequential(nn.ReLU()), torch.zeros(1, 8))


def test_models_that_are_accelerated_or_have_no_values_are_errors():
    accelerated = nn.Sequential(SparseLinear(nn.Linear(8, 8)), nn.Linear(8, 8)).eval()
    with pytest.raises(StateError, match=r"accelerated already: call undo\(\)"):
        regrow.diagnose(accelerated, torch.zeros(1, 8))
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(StateError, match=r"0\.weight is on the meta device.*to_empty"):
        regrow.diagnose(empty, torch.zeros(1, 8))


def test_tables_name_every_runtime_and_leave_small_layers_out():
    net = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 2))
    shown = str(regrow.diagnose(net, torch.zeros(1, 512)))
    layers, runtimes = shown.split("\n\n")
    assert "0.weight" in layers
    assert "1.weight" not in layers
    assert all(rule.runtime in runtimes for rule in RULES)


def test_every_rule_has_a_source_that_the_page_links(checkout):
    page = (checkout / "docs" / "how_to" / "runtimes.md").read_text()
    for rule in RULES:
        assert rule.sources
        assert [source for source in rule.sources if source not in page] == []


class Standardized(nn.Conv2d):
    """Weight standardization, as in the networks of BiT."""

    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, self.weight - mean, self.bias)


def test_layers_that_compute_their_weight_are_named():
    norm = nn.utils.parametrizations.weight_norm
    net = nn.Sequential(Standardized(3, 8, 1), norm(nn.Conv2d(8, 8, 1)), nn.Conv2d(8, 4, 1)).eval()
    found = regrow.diagnose(net, torch.zeros(1, 3, 8, 8))
    assert [layer.name for layer in found.layers] == ["2.weight"]
    assert found.left_out == ("0.weight", "1.weight")
    assert "left out, of the MACs too: 0.weight, 1.weight, which compute" in str(found)
    with pytest.raises(ConfigError, match=r"left out.*0\.weight"):
        regrow.diagnose(net[:1], torch.zeros(1, 3, 8, 8))
    plain = regrow.diagnose(net[2:], torch.zeros(1, 8, 8, 8))
    assert (plain.left_out, plain.note()) == ((), "")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_weights_are_not_left_out():
    net = nn.Sequential(nn.Linear(8, 0), nn.Linear(0, 8), nn.Linear(8, 4))
    found = regrow.diagnose(net, torch.zeros(1, 8))
    assert [layer.name for layer in found.layers] == ["2.weight"]
    assert found.left_out == ()
