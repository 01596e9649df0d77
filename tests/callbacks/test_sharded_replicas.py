# SPDX-License-Identifier: MIT
"""Replicas of a sharded model (HSDP): ranks with the same rows must have equal values."""

import gloo_ranks
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.guard]

PROGRAM = """
from types import SimpleNamespace
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from regrow import Pruner
from regrow.callbacks.core.consistency import check_ranks_agree
from regrow.utils.errors import StateError
from regrow.distributed.shard import local_tensor

dist.init_process_group("gloo", rank=RANK, world_size=WORLD)
mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))

def gathered(tensor):
    got = [torch.empty_like(tensor) for _ in range(WORLD)]
    dist.all_gather(got, tensor)
    return torch.stack(got)

strategy = SimpleNamespace(root_device=torch.device("cpu"), all_gather=gathered)
made = SimpleNamespace(world_size=WORLD, strategy=strategy)

torch.manual_seed(1)
model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
fully_shard(model[0], mesh=mesh)
pruner = Pruner(model)
pruner.prune_to(0.5)
check_ranks_agree(made, pruner.enforcer, "a try")

def refused():
    try:
        check_ranks_agree(made, pruner.enforcer, "a try")
    except StateError as error:
        return str(error)
    return ""

rows = local_tensor(model[0].weight.detach())
assert rows.shape == (4, 6)
if RANK == 3:  # its twin is rank 1
    rows[0, 0] += 1
said["rows"] = refused()
if RANK == 3:
    rows[0, 0] -= 1
if RANK == 2:
    model[1].weight.detach()[0, 0] += 1  # every rank holds this one
said["whole"] = refused()
"""

CHECKPOINT = """
import torch.distributed.checkpoint as dcp
from regrow.io.sharded_checkpoints import load_shards, move_shards

model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 5))
for parameter in model.parameters():
    dist.broadcast(parameter.data, 0)
fully_shard(model[0], mesh=mesh)
pruner = Pruner(model, keep_removed=True)
expected = {name: local_tensor(p.detach()).clone() for name, p in model.named_parameters()}
pruner.prune_to(0.5)
with pruner.state.shards.keep_sharded():
    checkpoint = {"callbacks": {"key": {"pruner": pruner.state_dict()}}, "optimizer_states": []}
move_shards(checkpoint, "key")
[moved] = checkpoint.pop("optimizer_states")
assert list(moved) == ["key['pruner']['removed_weights']['0.weight']"]
dcp.save({"optimizer_0": moved}, checkpoint_id=OUT / "folder")

with torch.no_grad():
    for parameter in model.parameters():
        local_tensor(parameter).zero_()
again = Pruner(model, keep_removed=True)
load_shards(checkpoint, "key", OUT / "folder", dict(model.named_parameters()))
again.load_state_dict(checkpoint["callbacks"]["key"]["pruner"])
again.unprune()
for name, parameter in model.named_parameters():
    if name.endswith("weight"):
        value = local_tensor(parameter.detach())
        gone = ~pruner.enforcer.mask(name)
        assert gone.any() and torch.equal(value[gone], expected[name][gone]), name
said["back"] = True
"""


def test_replicas_that_differ_raise_and_checkpoints_store_rows_once(tmp_path):
    for said in gloo_ranks.run(PROGRAM + CHECKPOINT, tmp_path, ranks=4):
        assert "weights of rank 3 differ" in said["rows"]
        assert "weights of rank 2 differ" in said["whole"]
        assert said["back"]
