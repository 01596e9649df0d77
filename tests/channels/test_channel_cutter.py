# SPDX-License-Identifier: MIT
"""Whole channels: masked everywhere, cut out, restored bit-exactly."""

import copy

import numpy as np
import pytest
import torch
from hand_cut_network import PLACES, equal, net, output, pruner, taken, train

from regrow.utils.errors import ConfigError, StateError


def test_channels_of_smallest_l2_norm_become_zero():
    model = net()
    rows = model[0].weight.detach().numpy(), model[3].weight.detach().numpy()
    columns = rows[1], model[5].weight.detach().numpy()
    norms = [np.sqrt((r**2).sum(1) + (c**2).sum(0)) for r, c in zip(rows, columns, strict=True)]
    scores = np.concatenate([n / n.mean() for n in norms])
    least = np.argsort(scores, kind="stable")[:10]
    made = pruner(model)
    entry = made.prune_to(0.5)
    assert made.sparsity == entry["after"] == 0.5
    expected = {"0": least[least < 12], "3": least[least >= 12] - 12}
    assert entry["channels"] == {name: len(gone) for name, gone in expected.items()}
    for name, gone in expected.items():
        assert made.removed[name].tolist() == sorted(gone.tolist())
        for member, dim in PLACES[name].items():
            tensor = dict(model.named_parameters())[member]
            assert not taken(tensor, dim, made.removed[name]).view(torch.int64).any(), member
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert zeros == made.pruned == entry["pruned"]


@pytest.mark.parametrize("of", ["channels", "macs", "params"])
def test_size_never_exceeds_the_target(of):
    model = net()
    made = pruner(model, of=of)
    full = {"channels": 20, "macs": 6 * 12 + 12 * 8 + 8 * 3}
    full["params"] = sum(p.numel() for p in model.parameters())
    for sparsity in (0.2, 0.45, 0.7):
        made.prune_to(sparsity)
        made.compact()
        a, b = model[0].out_features, model[3].out_features
        size = {"channels": a + b, "macs": 6 * a + a * b + b * 3}
        size["params"] = sum(p.numel() for p in model.parameters())
        assert size[of] <= (1 - sparsity) * full[of] + 1e-9
        assert made.sparsity == pytest.approx(1 - size[of] / full[of])


def test_small_model_computes_what_the_masked_one_did():
    model = net()
    made = pruner(model)
    made.prune_to(0.5)
    masked, parameters = output(model), [*model.parameters()]
    plan = made.compact()
    assert [model[i].weight.shape for i in (0, 1, 3, 5)] != [(12, 6), (12,), (8, 12), (3, 8)]
    assert model[0].out_features == model[1].num_features == model[3].in_features
    assert (output(model) - masked).abs().max() <= 1e-9
    assert plan.error <= 1e-9
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert made.compact() is None


@pytest.mark.parametrize("steps", [0, 4])
def test_unprune_is_exact(steps):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    made = pruner(model)
    train(model, optimizer)
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    made.prune_to(0.5, [optimizer])
    removed = copy.deepcopy(made.removed)
    hook = made.enforcer.hook(optimizer)
    train(model, optimizer, made, steps)
    hook.remove()
    made.unprune(optimizers=[optimizer])
    assert made.sparsity == 0
    if not steps:
        assert equal(before, model.state_dict())
    after = dict(model.state_dict())
    for name, gone in removed.items():
        for member, dim in PLACES[name].items():
            assert torch.equal(taken(before[member], dim, gone), taken(after[member], dim, gone))
    for member in ("1.running_mean", "1.running_var"):
        assert torch.equal(before[member][removed["0"]], after[member][removed["0"]])
    # moments of what comes back are zero, as after any regrowth
    for number, (member, parameter) in enumerate(model.named_parameters()):
        for name, gone in removed.items():
            if member in PLACES[name]:
                moment = optimizer.state[parameter]["exp_avg"]
                assert not taken(moment, PLACES[name][member], gone).any()
                assert state["state"][number]["exp_avg"].any()


def test_unprune_works_by_name_and_raises_after_a_cut():
    model = net()
    before = output(model)
    made = pruner(model)
    made.prune_to(0.5)
    made.unprune("0")
    assert not len(made.removed["0"])
    assert len(made.removed["3"])
    assert torch.equal(model[0].weight, net()[0].weight)
    made.unprune()
    assert torch.equal(output(model), before)
    made.prune_to(0.5)
    made.compact()
    with pytest.raises(StateError, match=r"were cut, not only masked \(\d of 0, \d of 3\).*expand"):
        made.unprune()
    with pytest.raises(StateError, match="were cut"):
        made.prune_to(0)
    assert made.target == 0.5


def test_expand_restores_shapes_and_values_exactly():
    model = net()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    made = pruner(model)
    for sparsity in (0.3, 0.6):
        made.prune_to(sparsity)
        made.compact()
    made.prune_to(0.75)
    entry = made.expand([optimizer])
    assert entry["before"] == 0.75
    assert entry["after"] == made.sparsity == made.target == 0
    assert equal(before, model.state_dict())
    assert str(model) == str(net())
    assert not made.plan.kept
    made.prune_to(0.3)  # and it goes on from there
    made.compact([optimizer])
    train(model, optimizer, made)
    survivors = copy.deepcopy(model.state_dict())
    kept = dict(made.plan.kept)
    made.expand([optimizer])
    train_state = optimizer.state[model[3].weight]["exp_avg"]
    assert train_state.shape == (8, 12)
    for name, dims in kept.items():
        found = model.state_dict()[name]
        for dim, keep in dims.items():
            found = found.index_select(dim, keep.nonzero().flatten())
        assert torch.equal(found, survivors[name])
    train(model, optimizer, made)


@pytest.mark.parametrize("by", ["random", "removed"])
def test_regrown_channels_keep_the_output_and_then_train(by):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    made = pruner(model)
    made.prune_to(0.6)
    made.enforcer.hook(optimizer)
    before, gone = output(model), copy.deepcopy(made.removed)
    norms = made.masker.removed_values() if by == "removed" else None
    entry = made.regrow(count=4, by=by, optimizers=[optimizer])
    assert (output(model) - before).abs().max() <= 1e-12
    assert entry["count"] == 4
    assert made.sparsity == pytest.approx(0.6 - 4 / 20)
    back = {n: gone[n][~torch.isin(gone[n], made.removed[n])] for n in gone}
    if norms is not None:
        size = {
            (name, int(c)): sum(
                float(norms[m].select(dim, int(c)).square().sum())
                for m, dim in PLACES[name].items()
                if norms[m].ndim > 1
            )
            for name in gone
            for c in gone[name]
        }
        most = sorted(size, key=size.get)[-4:]
        assert {(n, int(c)) for n in back for c in back[n]} == {*most}
    start = copy.deepcopy(dict(model.named_parameters()))
    assert all(start[f"{name}.weight"][c].any() for name, cs in back.items() for c in cs)
    train(model, optimizer, made, 4)
    for name, channels in back.items():
        for member, dim in PLACES[name].items():
            now, then = dict(model.named_parameters())[member], start[member]
            for c in channels:
                assert not torch.equal(now.select(dim, c), then.select(dim, c)), (member, c)


def test_regrow_with_removed_values_is_exact_and_other_values_raise():
    model = net()
    before = copy.deepcopy(model.state_dict())
    made = pruner(model)
    made.prune_to(0.5)
    made.regrow(1.0, init="removed")
    assert equal(before, model.state_dict())
    made.prune_to(0.5)
    with pytest.raises(ConfigError, match="zeros on both sides, which never learns: write"):
        made.regrow(0.5, init="zero")
    with pytest.raises(ConfigError, match="'random' or 'removed', got 'gradient'"):
        made.regrow(0.5, by="gradient")
    bare = pruner(net(), keep_removed=False)
    bare.prune_to(0.5)
    with pytest.raises(StateError, match="write keep_removed=True"):
        bare.regrow(0.5, by="removed")
    for act in (bare.unprune, bare.expand):
        with pytest.raises(StateError, match="write keep_removed=True"):
            act()


def test_state_loads_into_a_model_of_either_shape():
    model = net()
    made = pruner(model)
    made.prune_to(0.3)
    made.compact()
    made.prune_to(0.5)
    for other in (net(1), copy.deepcopy(model)):
        again = pruner(other)
        again.load_state_dict(copy.deepcopy(made.state_dict()))
        other.load_state_dict(model.state_dict())
        assert again.sparsity == 0.5
        assert torch.equal(output(other), output(model))
        again.prune_to(0.7)
        again.expand()
        assert equal(other.state_dict(), net().state_dict())
