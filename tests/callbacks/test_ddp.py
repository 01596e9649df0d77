# SPDX-License-Identifier: MIT
"""Ranks prune, regrow and roll back equally; a change on one rank raises on all."""

import gloo_ranks
import pytest
import torch
from tiny_fits import Net, fit, loader

from regrow import DynamicSparseTraining, MagnitudePruning

MANY = """
from regrow import (
    AccuracyBudget,
    DynamicSparseTraining,
    Exponential,
    MagnitudePruning,
    Regrow,
    Rewind,
    Table,
)

class Judged(Net):
    def validation_step(self, batch, batch_idx):  # not synchronised: ranks see other numbers
        alive = int((self.body[0].weight != 0).sum())
        self.log("val/score", float(alive >= 50) + 0.01 * RANK)

CASES = {
    "gradual": lambda: [MagnitudePruning(0.8, every="1it")],
    "gradients": lambda: [MagnitudePruning(0.8, criterion="snip", every="2it")],
    "movement": lambda: [MagnitudePruning(0.6, criterion="movement", every="2it")],
    "random": lambda: [MagnitudePruning(0.8, criterion="random", every="2it")],
    "rigl": lambda: [DynamicSparseTraining(0.7, grow="gradient", every="2it")],
    "set": lambda: [DynamicSparseTraining(0.7, grow="random", every="2it", init="he")],
    "regrown": lambda: [MagnitudePruning(0.7, end=0.5, every="2it"),
                        Regrow(at="7it", fraction=0.4, by="random", init="he")],
    "by gradient": lambda: [MagnitudePruning(0.7, end=0.5, every="2it"),
                            Regrow(at="7it", fraction=0.4, by="gradient", init="zero")],
    "rewound": lambda: [MagnitudePruning(0.7, schedule=Exponential(rate=0.5, every="4it"),
                                         rewind=Rewind("2it", ("weights", "lr", "optimizer")))],
    "budget": lambda: [MagnitudePruning(0.9, schedule=Table({"1it": 0.3, "4it": 0.9})),
                       AccuracyBudget("val/score", 0.5, recover="2it", reference=1.0,
                                      resolution=0.05)],
}
methods = said["methods"] = {}
for name, make in CASES.items():
    module, callbacks = Judged(ADAM), make()
    job(*callbacks, accumulate_grad_batches=2, max_epochs=4, num_sanity_val_steps=0).fit(
        module, DataLoader(samples(8 * WORLD + 5), 2, shuffle=True), DataLoader(samples(8), 4))
    pruner = callbacks[0]
    methods[name] = {"state": state(module), "masks": dict(pruner.masks),
                     "history": pruner.history, "sparsity": pruner.sparsity}
"""

SAME = """
from torch.utils.data import DistributedSampler
from regrow import DynamicSparseTraining, MagnitudePruning

both = said["both batches"] = {}
for name, pruner in {
    "weights": MagnitudePruning(0.75, every="1it"),
    "gradients": MagnitudePruning(0.75, criterion="gradient", every="1it"),
    "grown": DynamicSparseTraining(0.6, grow="gradient", every="2it"),
}.items():
    module, data = Net().double(), samples(64)
    own = DistributedSampler(data, WORLD, RANK, shuffle=False)  # every second sample
    job(pruner, precision="64-true", use_distributed_sampler=False).fit(
        module, DataLoader(data, 4, sampler=own))
    both[name] = {"state": state(module), "masks": dict(pruner.masks)}
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What two ranks found, in one start of their processes."""
    return gloo_ranks.run(MANY + SAME, tmp_path_factory.mktemp("ranks"))


def check(first, *others):
    """Whether the ranks have pruned equally, and the methods have acted."""
    for name, mine in first.items():
        for other in others:
            theirs = other[name]
            assert mine["history"] == theirs["history"], name
            for key in ("state", "masks"):
                assert all(torch.equal(v, theirs[key][n]) for n, v in mine[key].items()), name
        for parameter, mask in mine["masks"].items():
            assert not mine["state"][parameter][~mask].any(), name
    assert first["gradual"]["sparsity"] == pytest.approx(0.8, abs=0.005)
    kinds = {name: [e["kind"] for e in found["history"]] for name, found in first.items()}
    assert "rollback" in kinds["budget"]
    assert "regrow" in kinds["regrown"]
    assert "regrow" in kinds["by gradient"]
    assert kinds["rewound"].count("rewind") + kinds["rewound"].count("prune") >= 2


@pytest.mark.guard
@pytest.mark.slow
def test_ranks_have_equal_masks_and_weights(two_ranks):
    check(*(said["methods"] for said in two_ranks))


@pytest.mark.guard
@pytest.mark.slow
def test_three_ranks_have_equal_masks_and_weights(tmp_path):
    check(*(said["methods"] for said in gloo_ranks.run(MANY, tmp_path, 3)))


ALONE = """
from regrow import MagnitudePruning
from regrow.utils.errors import StateError

class Meddler(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if RANK == 1 and trainer.global_step == 3:
            module.body[0].weight.data[0, 0] += 1.0

try:
    job(Meddler(), MagnitudePruning(0.5, every="1it")).fit(Net(), DataLoader(samples(64), 4))
    said["error"] = ""
except StateError as error:
    said["error"] = str(error)
"""


@pytest.mark.guard
@pytest.mark.slow
def test_a_change_on_one_rank_raises_on_all(tmp_path):
    for said in gloo_ranks.run(ALONE, tmp_path):
        assert "rank 1 differ from those of the first rank" in said["error"]
        assert "the event at step" in said["error"]


@pytest.mark.guard
@pytest.mark.slow
def test_two_ranks_equal_one_process_with_both_batches(two_ranks):
    found = two_ranks[0]["both batches"]
    alone = {
        "weights": MagnitudePruning(0.75, every="1it"),
        "gradients": MagnitudePruning(0.75, criterion="gradient", every="1it"),
        "grown": DynamicSparseTraining(0.6, grow="gradient", every="2it"),
    }
    for name, pruner in alone.items():
        module = Net().double()
        fit(module, pruner, data=loader(8, 8), precision="64-true")
        for parameter, mask in pruner.masks.items():
            assert torch.equal(mask, found[name]["masks"][parameter]), name
        for key, value in module.state_dict().items():
            torch.testing.assert_close(value, found[name]["state"][key], rtol=1e-9, atol=1e-12)


WAYS = """
from regrow import DynamicSparseTraining, MagnitudePruning

WAYS = {"plain": {}, "views": {"gradient_as_bucket_view": True}, "static": {"static_graph": True},
        "unused": {"find_unused_parameters": True}}
for name, ddp in WAYS.items():
    module = Net()
    pruners = (MagnitudePruning(0.5, every="2it", include=["0"]),
               DynamicSparseTraining(0.6, every="2it", include=["2"]))
    job(*pruners, ddp=ddp, gradient_clip_val=0.1).fit(module, DataLoader(samples(64), 4))
    said[name] = state(module)
"""


@pytest.mark.guard
@pytest.mark.slow
def test_settings_of_ddp_do_not_change_the_result(tmp_path):
    for said in gloo_ranks.run(WAYS, tmp_path):
        plain = said.pop("plain")
        assert len(said) == 3
        for name, other in said.items():
            assert all(torch.equal(value, other[key]) for key, value in plain.items()), name
