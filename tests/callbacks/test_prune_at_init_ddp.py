# SPDX-License-Identifier: MIT
"""Ranks that prune before the first step have equal masks, from the batches of all ranks."""

import gloo_ranks
import pytest
import torch
from tiny_fits import WEIGHTS, equal

pytestmark = [pytest.mark.slow, pytest.mark.guard]

CASES = {
    "snip": {"method": "snip"},
    "snip, ahead": {"method": "snip", "batches": 3},
    "grasp": {"method": "grasp"},
    "grasp, ahead": {"method": "grasp", "batches": 3},
    "synflow": {"method": "synflow", "rounds": 10},
    "random": {"method": "random"},
}

ALIKE = f"""
from regrow import PruneAtInit

class Forward(Net):
    def forward(self, inputs):
        return self.body(inputs)

CASES = {CASES!r}
for name, settings in CASES.items():
    module, pruning = Forward(ADAM), PruneAtInit(0.7, **settings)
    own = torch.utils.data.Subset(samples(32), range(RANK, 32, WORLD))
    job(pruning, accumulate_grad_batches=2, use_distributed_sampler=False).fit(
        module, DataLoader(own, 4))
    said[name] = {{"masks": dict(pruning.masks), "state": state(module)}}
    if RANK == 0:  # alone, with batches that hold what both ranks see
        whole = PruneAtInit(0.7, **settings)
        trainer(whole, max_steps=1).fit(Forward(ADAM), DataLoader(samples(32), 8))
        said[name]["alone"] = dict(whole.masks)
"""


def test_masks_use_the_batches_of_all_ranks(tmp_path):
    first, other = gloo_ranks.run(ALIKE, tmp_path)
    for name in CASES:
        mine, theirs = first[name], other[name]
        assert equal(mine["masks"], theirs["masks"]), name
        assert equal(mine["state"], theirs["state"]), name
        assert equal(mine["masks"], mine["alone"]), name
        pruned = sum(int((~mask).sum()) for mask in mine["masks"].values())
        assert pruned == round(0.7 * WEIGHTS)
        for parameter, mask in mine["masks"].items():
            assert not mine["state"][parameter][~mask].view(torch.int32).any(), name


SHARDED = """
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from regrow import PruneAtInit
from regrow.utils.errors import ConfigError

class Sharded(Net):
    def configure_model(self):
        if not any(isinstance(parameter, DTensor) for parameter in self.parameters()):
            fully_shard(self.body, mesh=self.device_mesh["data_parallel"])

    def forward(self, inputs):
        return self.body(inputs)

for method in ("random", "snip", "grasp", "synflow"):
    pruning = PruneAtInit(0.7, method=method)
    strategy = ModelParallelStrategy(data_parallel_size=WORLD, tensor_parallel_size=1,
                                     save_distributed_checkpoint=False,
                                     process_group_backend="gloo")
    fitted = trainer(pruning, devices=1, num_nodes=WORLD, strategy=strategy)
    try:
        fitted.fit(Sharded(), DataLoader(samples(32), 4))
        said[method] = pruning.sparsity
    except ConfigError as error:
        said[method] = str(error)
"""


def test_sharded_weights_raise_except_for_random_masks(tmp_path):
    for said in gloo_ranks.run(SHARDED, tmp_path):
        assert said["random"] == round(0.7 * WEIGHTS) / WEIGHTS
        for method in ("snip", "grasp", "synflow"):
            assert "body.0.weight is sharded among ranks" in said[method], method
            assert "method='random'" in said[method]
