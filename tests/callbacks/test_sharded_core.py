# SPDX-License-Identifier: MIT
"""The core on parameters sharded by FSDP2 equals one process with whole parameters."""

import gloo_ranks
import pytest

SETUP = """
import os, copy, itertools
import numpy as np
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard as Cut, distribute_tensor
import regrow
from regrow import Pruner
from regrow.pruning.drop_and_grow import draw_masks, drop_and_grow
from regrow.utils.errors import ConfigError, StateError
from regrow.masks.masks import Masks
from regrow.pruning.config import PruningConfig
from regrow.masks.topk import global_topk_masks
from regrow.distributed.parameters import Shards
from regrow.distributed.shard import reshard_fsdp, local_tensor

dist.init_process_group("gloo", rank=RANK, world_size=WORLD)
mesh = init_device_mesh("cpu", (WORLD,))

def network(dtype=torch.float32):
    "Rows that no number of ranks divides, fewer rows than ranks, a transposed convolution."
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 17, 3), nn.Conv2d(17, 4, (1, 3), bias=False), nn.ConvTranspose2d(4, 6, 2),
        nn.Flatten(), nn.Linear(6, 1), nn.Linear(40, 29),
    ).to(dtype)

def cut(model):
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return model

def with_gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        grad = torch.randn(parameter.shape, generator=generator)
        if isinstance(parameter, DTensor):
            grad = distribute_tensor(grad, mesh, [Cut(0)])
        parameter.grad = grad.to(parameter.dtype)
    return model

def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

def same(one, other):
    "Whether a sharded model holds a whole one's values, to the bit."
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return all(torch.equal(whole(p).detach(), q.detach()) for (_, p), (_, q) in pairs)

def same_masks(one, other):
    assert one.masks.pruned == other.masks.pruned == other.pruned == one.pruned
    return all(torch.equal(whole(m), other.masks[n]) for n, m in one.masks.items())
"""

SELECTION = """
random = np.random.default_rng(0)
for case in range(24):
    shapes = [(int(random.integers(1, 40)), int(random.integers(1, 30))) for _ in range(3)]
    values = [torch.from_numpy(random.standard_normal(s)).float() for s in shapes]
    if case % 2:  # many ties
        values = [(v * 2).round() / 2 for v in values]
    if case % 5 == 0:
        values = [v.bfloat16() for v in values]
    kept = [torch.from_numpy(random.random(s) < 0.8) for s in shapes]
    parts = [i < 2 or case % 3 > 0 for i in range(3)]  # the third is whole on every rank at times
    tensors = [distribute_tensor(v, mesh, [Cut(0)]) if p else v for v, p in zip(values, parts)]
    shards = Shards({str(i): t for i, t in enumerate(tensors)})
    rows = [distribute_tensor(k, mesh, [Cut(0)]) for k in kept]
    mine = [local_tensor(r) if p else k for r, k, p in zip(rows, kept, parts)]
    gone = sum(int((~k).sum()) for k in kept)
    live = sum(int(k.sum()) for k in kept)
    least = sum(bool(k.any()) for k in kept)
    for count in {gone, gone + (live - least) // 2, gone + live - least}:
        for magnitude in (True, False):
            expected = global_topk_masks(values, count, kept, magnitude=magnitude)
            scores = [local_tensor(t) for t in tensors]
            found = global_topk_masks(scores, count, mine, magnitude=magnitude,
                                      shards=list(shards.values()))
            for i, (mask, shard) in enumerate(zip(found, shards.values())):
                rows = slice(None) if shard is None else slice(shard.start, shard.stop)
                assert torch.equal(mask, expected[i][rows]), (case, count, magnitude, i)
bad = torch.ones(7, 3); bad[6, 0] = float("nan")  # on the last rank that has rows
tensor = distribute_tensor(bad, mesh, [Cut(0)])
try:
    shards = list(Shards({"fc": tensor}).values())
    global_topk_masks([local_tensor(tensor)], 3, names=["fc"], shards=shards)
except StateError as error:
    said["nan"] = str(error)
"""

EVENTS = """
def normed(weight):  # looks at a whole layer
    return weight.abs() / weight.norm()

methods = [
    PruningConfig(criterion, distribution)
    for criterion in ("magnitude", "random", "gradient", "taylor", normed)
    for distribution in ("global", "uniform", "erk")
]
methods += [
    PruningConfig(granularity="1:2", include=["5.weight"]),
    PruningConfig("taylor", granularity="2:4", include=["5.weight"]),
    PruningConfig(granularity="block:1x5", include=["5.weight"]),
    PruningConfig(layers={"0.weight": 0.3, "5.weight": 0.7}),
]
for method in methods:
    final = 0.5 if ":" in method.granularity and "block" not in method.granularity else 0.6
    one, other = with_gradients(cut(network())), with_gradients(network())
    mine, theirs = Pruner(one, method, keep_removed=True), Pruner(other, method, keep_removed=True)
    for sparsity in (final / 2, final):
        for pruner in (mine, theirs):
            pruner.prune_to(sparsity)
        assert same_masks(mine, theirs), method
        assert same(one, other), method
    packed, expected = mine.state_dict(), theirs.state_dict()
    assert equal(packed["masks"], expected["masks"])
    if RANK == 0:  # the vault goes to the first alone
        assert equal(packed["removed_weights"], expected["removed_weights"])
    again = Pruner(cut(network()), method, keep_removed=True)
    again.load_state_dict(expected)
    assert same_masks(again, theirs)
    again.unprune()
    for pruner in (mine, theirs):
        pruner.unprune()
    assert same(one, network()) and same(other, network())
said["methods"] = len(methods)
"""

THRESHOLDS = """
for criterion, low, high in (("magnitude", 0.02, 0.1), ("relative_magnitude", 0.3, 1.2)):
    method = PruningConfig(criterion, min_density=0.3)
    pruners = [Pruner(model, method) for model in (cut(network()), network())]
    for threshold in (low, high):
        for pruner in pruners:
            pruner.prune_below(threshold)
        assert same_masks(*pruners) and 0 < pruners[0].sparsity <= 0.7, (criterion, threshold)
"""

RETURNS = """
for by, init in itertools.product(("random", "gradient", "removed"),
                                  ("zero", "he", "removed", "xavier", "kaiming_normal")):
    one, other = with_gradients(cut(network())), with_gradients(network())
    pruners = [Pruner(model, keep_removed=True) for model in (one, other)]
    for pruner in pruners:
        pruner.prune_to(0.8)
        with_gradients(pruner.model, 1)
        pruner.regrow(0.3, by=by, init=init)
    assert same_masks(*pruners) and same(one, other), (by, init)
one, other = with_gradients(cut(network())), with_gradients(network())
pruners = [Pruner(model, PruningConfig(include=["5.weight", "0.weight"])) for model in (one, other)]
for pruner in pruners:
    pruner.prune_to(0.8)
    with_gradients(pruner.model, 1)
    pruner.regrow(count=50, init="sparse_he")
assert same_masks(*pruners) and same(one, other)

for grow in ("gradient", "random"):
    for drop in ("magnitude", "random", "taylor"):
        one, other = with_gradients(cut(network())), with_gradients(network())
        pruners = [Pruner(model, PruningConfig(distribution="erk")) for model in (one, other)]
        for pruner in pruners:
            draw_masks(pruner, 0.7)
            for seed in (1, 2):
                with_gradients(pruner.model, seed)
                entry = drop_and_grow(pruner, 0.3, grow=grow, drop=drop, init="he")
        assert same_masks(*pruners) and same(one, other), (grow, drop)
        mine, theirs = (p.history[-1] for p in pruners)
        assert mine == theirs

# steps: moments of pruned places are zero, weights stay +0.0
model = cut(network())
pruner = Pruner(model, keep_removed="moments")
adam = torch.optim.Adam(model.parameters(), lr=0.1)
hook = pruner.enforcer.hook(adam)
for seed in range(4):
    with_gradients(model, seed)
    if seed == 2:
        pruner.prune_to(0.7, [adam])
    pruner.enforcer.prepare()
    adam.step()
for name, mask in pruner.masks.items():
    weight = dict(model.named_parameters())[name]
    gone = ~local_tensor(mask)
    assert not local_tensor(weight)[gone].view(torch.int32).any()
    assert not local_tensor(adam.state[weight]["exp_avg"])[gone].any()
    assert local_tensor(weight)[~gone].all()
said["moments"] = len(pruner.state.removed_weights.values)

# functions without a pruner, and hooks
model = cut(network())
masks = regrow.prune(model, 0.5)
plain = network()
expected = regrow.prune(plain, 0.5)
assert all(torch.equal(whole(masks[name]), mask) for name, mask in expected.items())
assert masks.sparsity == expected.sparsity and same(model, plain)
sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
with regrow.enforce(model, masks, sgd):
    with_gradients(model)
    sgd.step()
for name, mask in masks.items():
    assert not local_tensor(dict(model.named_parameters())[name])[~local_tensor(mask)].any()

# a forward pass without a backward one leaves whole copies, which must not be computed with
net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 1, bias=False))
fully_shard(net, mesh=mesh)
x = torch.ones(2, 4)
with torch.no_grad():
    net(x)

reshard_fsdp(net)
pruner = Pruner(net, PruningConfig(include=["1.weight"]))
with torch.no_grad():
    net(x)
pruner.prune_to(0.8)
with torch.no_grad():
    found = net(x)
kept = whole(pruner.masks["1.weight"])
hidden = whole(net[0].weight) @ torch.ones(4) + whole(net[0].bias)
weight = whole(net[1].weight)
assert int((weight != 0).sum()) == 1 == int(kept.sum())
assert torch.allclose(found[0], (hidden * weight[0]).sum())
"""

REFUSED = """
def refusal(act):
    try:
        act()
    except ConfigError as error:
        return str(error)
model = with_gradients(cut(network()))
said["lamp"] = refusal(lambda: Pruner(model, PruningConfig(distribution="lamp")))
two_four = PruningConfig(granularity="2:4", include=["2.weight"])
said["rows"] = refusal(lambda: Pruner(model, two_four))
block = PruningConfig(granularity="block:29x1", include=["5.weight"])
said["block"] = refusal(lambda: Pruner(model, block))
pruner = Pruner(model, keep_removed=True)
pruner.prune_to(0.5)
said["rule"] = refusal(lambda: pruner.regrow(0.1, by=lambda *given: given[0].weight))
said["init"] = refusal(lambda: pruner.regrow(0.1, init="orthogonal"))
said["own init"] = refusal(lambda: pruner.regrow(0.1, init=lambda back: back.weight))
said["train"] = refusal(lambda: pruner.regrow(0.1, train="regrown"))
pruner.state_dict()  # what was refused has changed nothing
gone = pruner.pruned
pruner.set_masks({name: whole(mask) for name, mask in pruner.masks.items()})
assert pruner.pruned == gone
said["digest"] = pruner.masks.digest() == Masks(
    {name: whole(mask) for name, mask in pruner.masks.items()}).digest()

class Steps:  # gathers what nobody can cut
    def update(self, name, weight, grad): ...
    def scores(self, name, weight): return weight.abs()
    def state_dict(self): return {"steps": torch.zeros(())}
    def load_state_dict(self, state): ...
said["tracks"] = refusal(lambda: Pruner(model, PruningConfig(Steps())))

# after a forward pass alone FSDP2 shows whole copies, which nobody may mask
net = nn.Sequential(nn.Linear(4, 6))
fully_shard(net, mesh=mesh)
with torch.no_grad():
    net(torch.ones(1, 4))
pruner = Pruner(net)
pruner.prune_to(0.5)
reshard_fsdp(net)
assert int((whole(net[0].weight) == 0).sum()) == 12 == pruner.pruned
with torch.no_grad():
    net(torch.ones(1, 4))
masks = regrow.prune(net, 0.75)
reshard_fsdp(net)
assert int((whole(net[0].weight) == 0).sum()) == 18 == masks.pruned

odd = nn.Linear(12, 6)
fully_shard(odd, mesh=mesh, shard_placement_fn=lambda parameter: Cut(parameter.dim() - 1))
said["dimension"] = refusal(lambda: Pruner(odd))
"""


@pytest.mark.guard
@pytest.mark.slow
def test_masks_values_and_moments_equal_those_of_one_process(tmp_path):
    program = SETUP + SELECTION + EVENTS + THRESHOLDS + RETURNS + REFUSED
    heard = gloo_ranks.run(program, tmp_path, timeout=300)
    assert heard[0]["moments"] == 5 * 3  # a value and two moments a layer
    for said in heard:
        assert "fc has 1 NaN scores" in said["nan"]
        assert said["methods"] == 19
        for key, words in {
            "lamp": "'lamp' sums over all weights",
            "rows": "splits units",
            "block": "splits units",
            "rule": "would see some of its rows alone",
            "init": "init='orthogonal' needs all of its rows",
            "own init": "needs all of its rows",
            "train": "write train='all'",
            "tracks": "Steps has its own state",
            "dimension": "along their first dimension",
        }.items():
            assert words in said[key], key


@pytest.mark.guard
@pytest.mark.slow
def test_three_ranks_equal_one_process(tmp_path):
    """One of them holds no row of the small layers."""
    for said in gloo_ranks.run(
        SETUP + SELECTION + THRESHOLDS + RETURNS + REFUSED, tmp_path, ranks=3, timeout=300
    ):
        assert "10 rows each, which splits units" in said["block"]
        assert said["digest"]
