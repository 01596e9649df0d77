# SPDX-License-Identifier: MIT
"""`regrow.free_sparsity`: the sparsity that it finds holds, is large, and can be undone."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import regrow
from regrow.utils.errors import ConfigError, StateError


def digits():
    found = load_digits()
    x, y = torch.tensor(found.data / 16).float(), torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], y[order]


@pytest.fixture(scope="module")
def trained():
    """A network trained on the first 800 digits."""
    x, y = digits()
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    adam = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(150):
        adam.zero_grad()
        nn.functional.cross_entropy(net(x[:800]), y[:800]).backward()
        adam.step()
    return net


def calibration(labels=True):
    x, y = digits()
    parts = x[:512].split(128), y[:512].split(128)
    return list(zip(*parts, strict=True)) if labels else list(parts[0])


def validation(labels=True):
    x, y = digits()
    parts = x[800:].split(250), y[800:].split(250)
    return list(zip(*parts, strict=True)) if labels else list(parts[0])


def accuracy(net):
    x, y = digits()
    with torch.no_grad():
        return float((net(x[800:]).argmax(1) == y[800:]).double().mean())


def equal(net, state):
    return all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_accuracy_holds_and_more_goes_than_by_magnitude(trained):
    net, state = copy.deepcopy(trained).train(), copy.deepcopy(trained.state_dict())
    result = regrow.free_sparsity(net, calibration(), 0.02, validation=validation())
    assert equal(net, state)
    assert all(module.training for module in net.modules())
    assert result.metric == "accuracy"
    assert result.before == pytest.approx(accuracy(trained))
    result.apply(net)
    assert result.after == pytest.approx(accuracy(net))
    assert accuracy(trained) - accuracy(net) <= 0.02
    for name, mask in result.masks.items():
        assert not net.get_parameter(name)[~mask].any()
        assert result.layers[name] == pytest.approx(1 - mask.double().mean().item())
    assert result.sparsity == result.masks.sparsity > 0.5
    plain = copy.deepcopy(trained)
    regrow.prune(plain, result.sparsity)
    assert accuracy(plain) < accuracy(net)
    result.undo(net)
    assert equal(net, state)


class _Digits(pl.LightningDataModule):
    def setup(self, stage):
        self.batches = validation()

    def train_dataloader(self):
        return calibration()

    def val_dataloader(self):
        return self.batches


def test_a_data_module_judges_by_its_validation_batches(trained):
    result = regrow.free_sparsity(trained, _Digits(), 0.02, validation=_Digits())
    usual = regrow.free_sparsity(trained, calibration(), 0.02, validation=validation())
    assert result.before == pytest.approx(accuracy(trained))
    assert result.trials == usual.trials


def test_trials_say_what_held_and_the_most_that_did_is_chosen(trained):
    result = regrow.free_sparsity(trained, calibration(), 0.01, validation=validation(), margin=0.0)
    assert [t.removed for t in result.trials] == sorted(t.removed for t in result.trials)
    for trial in result.trials:
        assert trial.drop == pytest.approx(result.before - trial.score)
        assert trial.holds == (trial.drop <= 0.01 + 1e-9)
    assert max(t.removed for t in result.trials if t.holds) == result.removed
    assert min(t.removed for t in result.trials if not t.holds) - result.removed < 0.03
    careful = regrow.free_sparsity(
        trained, calibration(), 0.01, validation=validation(), margin=3.0
    )
    assert careful.sparsity < result.sparsity


def test_without_labels_the_networks_agree(trained):
    result = regrow.free_sparsity(
        trained, calibration(labels=False), 0.02, validation=validation(labels=False)
    )
    assert (result.metric, result.before) == ("agreement", 1.0)
    pruned = copy.deepcopy(trained)
    result.apply(pruned)
    x = torch.cat(validation(labels=False))
    same = (pruned(x).argmax(1) == trained(x).argmax(1)).double().mean().item()
    assert result.after == result.fidelity.agreement == pytest.approx(same)
    assert 0.98 <= same < 1
    assert result.fidelity.kl > 0
    assert next(iter(result.fidelity.damage().values())) > 0


def test_batches_after_the_calibration_samples_judge(trained):
    both = [*calibration(), *validation()]
    result = regrow.free_sparsity(trained, iter(both), 0.02, samples=512)
    other = regrow.free_sparsity(trained, calibration(), 0.02, validation=validation())
    assert result.trials == other.trials
    with pytest.raises(ConfigError, match="nothing is left to judge by"):
        regrow.free_sparsity(trained, calibration())


def test_macs_of_a_convolution_count_with_its_positions():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 8))
    images = [x.reshape(-1, 1, 8, 8) for x in calibration(labels=False)]
    result = regrow.free_sparsity(net, images[:2], 0.2, of="macs", validation=images[2:])
    kept = {name: int(mask.sum()) for name, mask in result.masks.items()}
    dense = 36 * 36 + 144 * 8  # the kernel of 36 weights is used at 36 positions
    left = 36 * kept["0.weight"] + kept["3.weight"]
    assert result.removed == pytest.approx(1 - left / dense)
    assert result.of == "macs"


class Around(nn.Module):
    """Runs a network in autocast, or with weights that it computes from those of the network."""

    def __init__(self, net, scale=None):
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, x):
        if self.scale is None:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.net(x).float()
        last = self.net[-1]
        weights = {"weight": self.scale * last.weight, "bias": last.bias}
        return torch.func.functional_call(last, weights, self.net[:-1](x))


def test_macs_are_known_in_autocast(trained):
    found = []
    for net, of in ((Around(copy.deepcopy(trained)), "macs"), (trained, "params")):
        found.append(
            regrow.free_sparsity(
                net, calibration(), 0.05, of=of, validation=validation(), resolution=0.2
            )
        )
    macs, params = found
    assert macs.removed == pytest.approx(macs.sparsity)  # each weight is used once
    assert macs.removed == pytest.approx(params.removed, abs=0.2)


def test_layers_with_unknown_macs_are_refused(trained):
    net = Around(copy.deepcopy(trained), 2.0)
    with pytest.raises(ConfigError, match=r"MACs of net\.4\.weight.*exclude=\['net\.4\.weight"):
        regrow.free_sparsity(net, calibration(), of="macs", validation=validation())


def test_an_own_cost_and_an_own_metric_decide(trained):
    def cost(name, sparsity):
        return 1.0 - sparsity if name == "2.weight" else 0.001

    calls = []

    def evaluate(net):
        calls.append(net.training)
        return 100 * accuracy(net)

    result = regrow.free_sparsity(trained, calibration(), 2.0, of=cost, evaluate=evaluate)
    assert result.metric == "evaluate"
    assert result.before == pytest.approx(100 * accuracy(trained))
    assert result.before - result.after <= 2.0
    assert (result.layers["0.weight"], result.layers["4.weight"]) == (0.0, 0.0)
    assert result.layers["2.weight"] > 0.3
    assert not any(calls)
    assert result.fidelity is None


def test_costs_that_no_sparsity_lowers_leave_the_network_dense(trained):
    result = regrow.free_sparsity(
        trained, calibration(), of=lambda name, sparsity: 0.7, validation=validation()
    )
    assert (result.sparsity, result.removed, result.trials) == (0.0, 0.0, ())


def test_a_drop_that_nothing_holds_leaves_the_network_dense(trained):
    state = copy.deepcopy(trained.state_dict())
    result = regrow.free_sparsity(
        trained, calibration(), 0.0, evaluate=lambda net: float(equal(net, state))
    )
    assert (result.sparsity, result.removed, result.before, result.after) == (0.0, 0.0, 1.0, 1.0)
    net = copy.deepcopy(trained)
    result.apply(net)
    assert equal(net, state)


def test_the_model_is_restored_after_an_error(trained):
    state, calls = copy.deepcopy(trained.state_dict()), []

    def evaluate(net):
        calls.append(net)
        return 1.0 if len(calls) < 3 else float("nan")

    with pytest.raises(StateError, match="finite"):
        regrow.free_sparsity(trained, calibration(), evaluate=evaluate)
    assert equal(trained, state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": 1}, "write max_drop=0.005 for half a point"),
        ({"max_drop": "1%"}, "write max_drop=0.005"),
        ({"of": "flops"}, "params"),
        ({"criterion": "sparsegpt"}, "obs"),
        ({"resolution": 0}, "resolution"),
        ({"validation": iter([])}, "pass the loader itself"),
        ({"sparsities": [0.0]}, "sparsities"),
        ({"sparsities": []}, "sparsities"),
        ({"of": lambda name, sparsity: 0.0}, "more than 0"),
    ],
)
def test_what_is_refused(trained, settings, message):
    given = {"validation": validation()} | settings
    with pytest.raises(ConfigError, match=message):
        regrow.free_sparsity(trained, calibration(), **given)
