# SPDX-License-Identifier: MIT
"""One change of masks after another, on one model."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regrow.masks.masks import Masks
from regrow.pruning.config import PruningConfig
from regrow.pruning.pruner import Pruner
from regrow.utils.errors import ConfigError, StateError


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))  # 200 + 100 weights


def zeros(model):
    return sum(int((m.weight == 0).sum()) for m in model if isinstance(m, nn.Linear))


def agrees(pruner):
    """Masks, weights and counts say the same."""
    masks = pruner.masks
    for target in pruner.targets:
        weight = target.parameter.detach()
        assert not weight[~masks[target.name]].any()
        assert not weight[~masks[target.name]].signbit().any()
        assert pruner.densities[target.name] == pytest.approx(masks.density(target.name))
    assert (pruner.pruned, pruner.total) == (masks.pruned, masks.total)
    assert pruner.sparsity == masks.sparsity


@given(st.lists(st.floats(0, 0.99), min_size=1, max_size=5))
def test_a_target_is_a_fraction_of_all_weights_and_never_compounds(sparsities):
    model = network()
    pruner = Pruner(model)
    before = pruner.masks
    for sparsity in sorted(sparsities):
        entry = pruner.prune_to(sparsity)
        assert pruner.pruned == entry["pruned"] == round(sparsity * 300)
        after = pruner.masks
        if sparsity:
            assert not any((after[name] & ~before[name]).any() for name in after)
        before = after
        agrees(pruner)
    assert [entry["event"] for entry in pruner.history] == list(range(len(sparsities)))


def test_history_records_sparsity_before_and_after():
    pruner = Pruner(network())
    pruner.prune_to(0.5)
    pruner.prune_to(0.8)
    assert pruner.target == 0.8
    first, second = pruner.history
    assert {k: first[k] for k in ("kind", "before", "after", "pruned")} == {
        "kind": "prune",
        "before": 0.0,
        "after": 0.5,
        "pruned": 150,
    }
    assert (second["before"], second["after"]) == (0.5, 0.8)


def test_a_zero_weight_that_is_kept_is_not_pruned():
    """Sparsity counts masks, not zeros."""
    model = network()
    nn.init.zeros_(model[2].weight)
    pruner = Pruner(model)
    assert pruner.sparsity == 0
    pruner.prune_to(0.2)
    assert pruner.pruned == 60
    assert not pruner.masks["2.weight"].all()


def test_pruning_to_zero_unmasks_all_weights_at_value_zero():
    model = network()
    pruner = Pruner(model)
    pruner.prune_to(0.9)
    entry = pruner.prune_to(0)
    assert (entry["kind"], entry["pruned"], pruner.sparsity) == ("dense", 0, 0)
    assert zeros(model) == 270
    with torch.no_grad():
        model[0].weight.fill_(1)
    pruner.enforce()
    assert model[0].weight.all()


def test_lower_sparsity_raises():
    pruner = Pruner(network())
    pruner.prune_to(0.5)
    with pytest.raises(ConfigError, match=r"has sparsity 0.5 already, 0.4 is less.*prune_to\(0\)"):
        pruner.prune_to(0.4)
    assert pruner.prune_to(0.5)["pruned"] == 150, "the same again is nothing new"


def test_failed_event_changes_nothing():
    model = network()
    pruner = Pruner(model)
    pruner.prune_to(0.5)
    with torch.no_grad():
        model[0].weight[pruner.masks["0.weight"]] = float("nan")
    before, masks = copy.deepcopy(model.state_dict()), pruner.masks.digest()
    with pytest.raises(StateError, match=r"0.weight has .* NaN scores"):
        pruner.prune_to(0.9)
    with pytest.raises(ConfigError, match=r"write 0.9 for 90 %"):
        pruner.prune_to(90)
    assert pruner.masks.digest() == masks
    assert len(pruner.history) == 1
    assert torch.equal(model[2].weight, before["2.weight"])


def test_optimizer_state_and_gradients_of_pruned_weights_are_zeroed():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 10)).sum().backward()
    optimizer.step()
    pruner = Pruner(model)
    pruner.prune_to(0.5, [optimizer])
    for name, mask in pruner.masks.items():
        parameter = model.get_parameter(name)
        assert not parameter.grad[~mask].any()
        for key in ("exp_avg", "exp_avg_sq"):
            assert not optimizer.state[parameter][key][~mask].any()
            assert optimizer.state[parameter][key][mask].any()


def test_layer_targets_are_reached():
    pruner = Pruner(network(), PruningConfig(layers={"2": 0.25}))
    pruner.prune_to(0.9)
    assert pruner.masks.density("2.weight") == 0.75
    assert pruner.masks.density("0.weight") == pytest.approx(0.1)
    pruner = Pruner(network(), PruningConfig(layers={"2": 0.25, "*": 0.5}))
    assert pruner.layer_targets == {"2.weight": 0.25, "0.weight": 0.5}, "the first pattern wins"
    with pytest.raises(ConfigError, match="layers pattern 'fc' matches no parameter"):
        Pruner(network(), PruningConfig(layers={"fc": 0.25}))


def test_granularity_is_checked_at_construction():
    with pytest.raises(ConfigError, match=r"2:4 does not divide 0.weight, which has 10 inputs"):
        Pruner(network(), PruningConfig(granularity="2:4"))
    with pytest.raises(ConfigError, match=r"blocks of 3x3 do not tile 0.weight"):
        Pruner(network(), PruningConfig(granularity="block:3x3"))
    pruner = Pruner(network(), PruningConfig(granularity="1:2"))
    with pytest.raises(
        ConfigError, match=r"granularity '1:2' reaches sparsity 0.5 at most, got 0.9"
    ):
        pruner.prune_to(0.9)
    pruner.prune_to(0.5)
    agrees(pruner)


def test_given_masks_are_taken():
    model = network()
    pruner = Pruner(model)
    masks = {name: torch.rand(p.shape) < 0.5 for name, p in model.named_parameters() if p.dim() > 1}
    pruner.set_masks(masks)
    agrees(pruner)
    assert pruner.sparsity == Masks(masks).sparsity
    with pytest.raises(StateError, match=r"2.weight has no mask"):
        pruner.set_masks({"0.weight": masks["0.weight"]})


def test_saved_pruner_continues_after_loading():
    model = network()
    pruner = Pruner(model, PruningConfig("movement"))
    model(torch.randn(4, 10)).square().sum().backward()
    pruner.update()
    pruner.prune_to(0.5)
    state = pruner.state_dict()
    other = Pruner(network(), PruningConfig("movement"))
    other.load_state_dict(state)
    agrees(other)
    assert other.masks.digest() == pruner.masks.digest()
    assert (other.history, other.target) == (pruner.history, pruner.target)
    with torch.no_grad():
        other.model.load_state_dict(model.state_dict())
    pruner.prune_to(0.9)
    other.prune_to(0.9)
    assert other.masks.digest() == pruner.masks.digest(), "the criterion's evidence came along"


def test_state_of_another_model_raises_with_the_names():
    state = Pruner(network()).state_dict()
    with pytest.raises(StateError, match=r"0.weight is .* its mask|0.weight has no mask"):
        Pruner(nn.Sequential(nn.Linear(3, 3))).load_state_dict(state)


def test_random_events_differ_and_are_reproducible():
    def run():
        pruner = Pruner(network(), PruningConfig("random"))
        return [pruner.prune_to(s) and pruner.masks.digest() for s in (0.3, 0.6)]

    assert run() == run()


def test_movement_accumulates_every_gradient():
    model = network()
    pruner = Pruner(model, PruningConfig("movement"))
    with pytest.raises(StateError, match=r"movement has seen no gradient of 0.weight"):
        pruner.prune_to(0.5)
    for _ in range(2):
        model.zero_grad()
        model(torch.ones(1, 10)).sum().backward()
        pruner.update()
    wanted = -2 * (model[0].weight * model[0].weight.grad).detach()
    torch.testing.assert_close(pruner.criterion.scores("0.weight", model[0].weight), wanted)
    pruner.prune_to(0.5)
    agrees(pruner)


def test_pruner_says_whether_it_needs_gradients():
    assert Pruner(network(), PruningConfig("taylor")).needs_gradients
    assert not Pruner(network(), PruningConfig("movement")).needs_gradients
    assert not Pruner(network()).needs_gradients


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pruning_works_in_every_precision_and_layout(dtype, layout):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(8, 4, 3))
    pruner = Pruner(model.to(dtype=dtype, memory_format=layout))
    for sparsity in (0.5, 0.93):
        pruner.prune_to(sparsity)
        assert pruner.pruned == round(sparsity * 576)
        agrees(pruner)


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    pruner = Pruner(model)
    pruner.prune_to(0.5)
    assert (pruner.total, pruner.pruned) == (36, 18)
    assert model[1].weight is model[0].weight
    agrees(pruner)


def test_frozen_and_compiled_models_are_pruned():
    model = network().requires_grad_(False)
    pruner = Pruner(torch.compile(model, backend="eager"))
    pruner.prune_to(0.9)
    assert list(pruner.masks) == ["0.weight", "2.weight"]
    assert zeros(model) == 270


def test_members_of_a_parameter_list_are_selected_by_name():
    model = nn.Module()
    model.own = nn.ParameterList([torch.randn(4, 4), torch.randn(6)])
    pruner = Pruner(model, PruningConfig(include=["own.0", "own.1"]))
    pruner.prune_to(0.5)
    assert pruner.pruned == 11
    agrees(pruner)


def test_the_model_keeps_its_parameters_and_keys():
    model = network()
    parameters, keys = list(model.parameters()), list(model.state_dict())
    Pruner(model).prune_to(0.9)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(copy.deepcopy(model).state_dict()) == keys


def test_removed_values_are_restored_exactly():
    model = network()
    before = copy.deepcopy(model.state_dict())
    pruner = Pruner(model, keep_removed=True)
    for sparsity in (0.3, 0.6, 0.9):
        pruner.prune_to(sparsity)
    pruner.unprune("0")
    assert torch.equal(model[0].weight, before["0.weight"])
    assert pruner.masks.density("2.weight") < 1
    pruner.unprune()
    assert torch.equal(model[2].weight, before["2.weight"])
    assert pruner.sparsity == 0
    with pytest.raises(StateError, match="write keep_removed=True before pruning"):
        Pruner(network()).unprune()


def test_targets_of_layers_without_one_are_refused():
    pruner = Pruner(network(), PruningConfig(layers={"0.weight": 0.3}))
    with pytest.raises(ConfigError, match=r"own= has nonsense.*there are 0\.weight"):
        pruner.prune_to(0.5, own={"nonsense": 0.3})
    assert pruner.sparsity == 0


def test_units_that_came_back_in_part_are_named_when_they_exceed_the_target():
    torch.manual_seed(0)
    pruner = Pruner(nn.Linear(16, 16), PruningConfig(granularity="block:2x2"))
    pruner.prune_to(0.5)
    pruner.regrow(0.3)
    with pytest.warns(UserWarning, match=r"sparsity 0\.5508 instead of 0\.5: of block:2x2 units"):
        pruner.prune_to(0.5)


def test_moments_of_lbfgs_cannot_be_stored():
    net = network()
    pruner = Pruner(net, keep_removed="moments")
    with pytest.raises(ConfigError, match="cannot store the state of LBFGS"):
        pruner.prune_to(0.5, [torch.optim.LBFGS(net.parameters())])
    assert pruner.sparsity == 0
    assert pruner.prune_to(0.5, [torch.optim.Adam(net.parameters())])["after"] == pruner.sparsity
