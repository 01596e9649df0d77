# SPDX-License-Identifier: MIT
"""Program text for `gloo_ranks.run`: fits whose parameters FSDP2 shards among the ranks."""

SHARDED = """
class Sharded(Net):
    def configure_model(self):
        if not any(isinstance(parameter, DTensor) for parameter in self.parameters()):
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.body[0], mesh=mesh)
            fully_shard(self.body, mesh=mesh)
"""

SETUP = (
    SHARDED
    + """
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from regrow import (
    AccuracyBudget,
    ChannelPruning,
    DynamicSparseTraining,
    MagnitudePruning,
    Regrow,
    Rewind,
    SparseModelCheckpoint,
    SparsityMonitor,
)
from regrow.utils.errors import ConfigError, StateError
from regrow.distributed.shard import reshard_fsdp, local_tensor

def sharded(*callbacks, parts=False, **kw):
    strategy = ModelParallelStrategy(
        data_parallel_size=WORLD, tensor_parallel_size=1, save_distributed_checkpoint=parts,
        process_group_backend="gloo",
    )
    kw = {"use_distributed_sampler": True, "max_epochs": 2} | kw
    return trainer(*callbacks, devices=1, num_nodes=WORLD, strategy=strategy, **kw)

def data():
    return DataLoader(samples(64), 4)

def whole(module):
    reshard_fsdp(module)
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in module.named_parameters()
    }

def saver(name):
    return ModelCheckpoint(OUT / name, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)

KEPT = {"enable_checkpointing": True}
"""
)
