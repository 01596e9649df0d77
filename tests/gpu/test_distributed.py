# SPDX-License-Identifier: MIT
"""DDP and FSDP2 on one device: NCCL carries what ranks agree on."""

import gloo_ranks
import pytest
from sharded_fits import SHARDED

pytestmark = pytest.mark.usefixtures("real_device")

SETUP = (
    SHARDED
    + """
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from device_fits import Placed, on
from regrow import DynamicSparseTraining, MagnitudePruning, Regrow, Table
from regrow.distributed.shard import local_tensor, reshard_fsdp

DEVICE = torch.device(KIND)
BACKEND = "nccl" if KIND == "cuda" else "gloo"
LEVELS = Table({"3it": 0.5, "9it": 0.8})
METHODS = {
    "gradual": lambda: [MagnitudePruning(0.8, schedule=LEVELS)],
    "movement": lambda: [MagnitudePruning(0.8, schedule=LEVELS, criterion="movement")],
    "soft": lambda: [MagnitudePruning(0.8, schedule=LEVELS, soft=True)],
    "rigl": lambda: [DynamicSparseTraining(0.8, every="4it")],
    "regrow": lambda: [MagnitudePruning(0.8, schedule=LEVELS),
                       Regrow("12it", 0.25, by="gradient", init="zero")],
}

def sharded(*callbacks, parts=False, **kw):
    strategy = ModelParallelStrategy(1, 1, save_distributed_checkpoint=parts,
                                     process_group_backend=BACKEND)
    return trainer(*callbacks, strategy=strategy, **on(DEVICE), **kw)

def ddp(*callbacks, **kw):
    return trainer(*callbacks, strategy=DDPStrategy(process_group_backend=BACKEND), **on(DEVICE),
                   **kw)

def whole(module):
    reshard_fsdp(module)
    return {name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().cpu().clone()
            for name, p in module.named_parameters()}

def check(module, pruning, placed):
    assert placed.kinds == {KIND}, placed.kinds
    for name, value in whole(module).items():
        if name in pruning.masks:
            mask = pruning.masks[name]
            mask = mask.full_tensor() if isinstance(mask, DTensor) else mask
            assert not value[~mask.cpu()].any(), name
"""
)

COMPARED = """
for name, make in METHODS.items():
    masks, ends = [], []
    for how, job, module in (("ddp", ddp, Net(ADAM)), ("fsdp2", sharded, Sharded(ADAM))):
        callbacks, placed = make(), Placed()
        job(*callbacks, placed, max_epochs=2).fit(module, loader(), loader(2))
        check(module, callbacks[0], placed)
        masks.append({k: m.full_tensor().cpu() if isinstance(m, DTensor) else m.cpu()
                      for k, m in callbacks[0].masks.items()})
        ends.append(callbacks[0].pruner.pruned)
    said[name] = ends[0]
    assert ends[0] == ends[1], name
    assert all(torch.equal(mask, masks[1][key]) for key, mask in masks[0].items()), name
    print(name, flush=True)
"""

RESUMED = """
for parts in (False, True):
    straight, pruning = Sharded(ADAM), MagnitudePruning(0.8, schedule=LEVELS)
    saver = ModelCheckpoint(OUT / str(parts), "{epoch}", save_top_k=-1,
                            save_on_train_epoch_end=True)
    sharded(pruning, saver, parts=parts, enable_checkpointing=True).fit(straight, loader())
    again, resumed = Sharded(ADAM), MagnitudePruning(0.8, schedule=LEVELS)
    path = str(OUT / str(parts) / "epoch=0.ckpt")
    sharded(resumed, parts=parts).fit(again, loader(), ckpt_path=path)
    one, other = whole(straight), whole(again)
    assert resumed.history == pruning.history
    assert all(torch.equal(value, other[key]) for key, value in one.items()), parts
    pruning.unprune()
    said[str(parts)] = float(pruning.sparsity)
"""


def run(program, device, folder):
    return gloo_ranks.run(f"KIND = {device.type!r}\n{SETUP}{program}", folder, ranks=1)[0]


def test_masks_of_ddp_and_of_fsdp2_are_equal_on_the_device(device, tmp_path):
    said = run(COMPARED, device, tmp_path)
    assert said["gradual"] == said["movement"] == said["soft"] == round(0.8 * 144)
    assert said["regrow"] == round(0.8 * 144) - round(0.25 * round(0.8 * 144))


def test_sharded_fits_resume_exactly_and_are_un_pruned(device, tmp_path):
    assert run(RESUMED, device, tmp_path) == {"False": 0.0, "True": 0.0}
