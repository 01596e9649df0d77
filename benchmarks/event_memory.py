# SPDX-License-Identifier: MIT
"""Claim: an event needs under 2 bytes per weight of a rank, beside the working mask.

This holds for every built-in criterion and growth criterion except LAMP, which sorts whole layers.
The memory is that of the masks, one chunk, and up to 8 bytes for each weight of the layer that is
being written. Measured as peak resident memory with eight equal layers, in one process and over two
ranks (FSDP2, gloo), and for comparison with a single layer. The first working mask, as wide as the
weights, remains after an event and is not counted: these events change existing masks.
"""

import gc
import math
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
import torch.distributed as dist
from _bench import arguments, in_child, peak_extra, show
from scaling import FLOAT, LAYERS, network
from torch.distributed.device_mesh import init_device_mesh

from regrow.distributed.shard import local_tensor, to_dtensor_like
from regrow.pruning.config import PruningConfig
from regrow.pruning.drop_and_grow import draw_masks, drop_and_grow
from regrow.pruning.pruner import Pruner

EXTRA = "extra B/weight"
# glibc: what is freed is given back at once
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}


def prune(pruner):
    pruner.prune_to(0.9)


def grow(by, init, pruner):
    pruner.regrow(0.5, by=by, init=init)


def move(by, pruner):
    drop_and_grow(pruner, 0.3, grow=by)


# name -> (settings of the method, kept values, first event, the event)
EVENTS = {
    **{f"prune by {name}": ({"criterion": name}, False, 0.5, prune)
       for name in ("magnitude", "gradient", "taylor", "random", "movement")},
    "prune to 2:4": ({"granularity": "2:4"}, False, 0.0, lambda pruner: pruner.prune_to(0.5)),
    "prune in 4x4 blocks": ({"granularity": "block:4x4"}, False, 0.5, prune),
    **{f"regrow by {by}, {init}": ({}, by == "removed", 0.9, partial(grow, by, init))
       for by, init in (("random", "zero"), ("random", "he"), ("gradient", "zero"),
                        ("removed", "removed"))},
    "un-prune": ({}, True, 0.9, lambda pruner: pruner.unprune()),
    "RigL": ({}, False, 0.9, partial(move, "gradient")),
    "SET": ({}, False, 0.9, partial(move, "random")),
}  # fmt: skip


def measured(parameters, name, mesh=None, layers=LAYERS):
    settings, keep, first, act = EVENTS[name]
    net = network(parameters, FLOAT, mesh, layers)
    pruner = Pruner(net, PruningConfig(**settings), keep_removed=keep)
    if settings.get("criterion") == "movement":
        for target in pruner.targets:
            pruner.criterion.update(target.name, target.weight, target.weight)
    if first:
        (draw_masks if settings.get("criterion") else Pruner.prune_to)(pruner, first)
    if "gradient" in name or "taylor" in name or name == "RigL":
        for target in pruner.targets:
            grad = torch.randn(target.weight.shape)
            target.parameter.grad = to_dtensor_like(target.parameter, grad)
    own = sum(local_tensor(layer.weight).numel() for layer in net)
    gc.collect()  # garbage of an earlier event
    extra = peak_extra(lambda: act(pruner))
    return extra / own - (0 if first else 4)  # the working mask that was not there


def alone(parameters, names, layers=LAYERS):
    torch.set_num_threads(1)
    found = {}
    for name in names:
        measured(LAYERS * 1024, name)  # what it imports does not count
        found[name] = measured(parameters, name, layers=layers)
    return found


def as_rank(store, ranks, parameters, names, rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
    mesh, found = init_device_mesh("cpu", (ranks,)), {}
    for name in names:
        measured(LAYERS * 1024, name, mesh)
        found[name] = measured(parameters, name, mesh)
    dist.barrier()
    dist.destroy_process_group()
    return found


def together(ranks, parameters, names):
    """The worst of the ranks."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool,
    ):
        rank = partial(as_rank, f"{folder}/store", ranks, parameters, names)
        found = list(pool.map(rank, range(ranks)))
    return {name: max(one[name] for one in found) for name in names}


def sizes(parameters, layers=LAYERS):
    """About this many weights, in layers that blocks divide."""
    return layers * (64 * round(math.sqrt(parameters / layers) / 64)) ** 2


def main():
    parser = arguments(__doc__)
    parser.add_argument("--parameters", type=float, default=6.5e7)
    parser.add_argument("--events", nargs="*", choices=EVENTS, default=list(EVENTS))
    options = parser.parse_args()
    os.environ.update(GIVEN_BACK)
    parameters = sizes(options.parameters)
    one = in_child(alone, parameters, options.events)
    two = together(2, parameters, options.events)
    single = in_child(alone, sizes(options.parameters / 2, 1), options.events, 1)
    rows, claims = [], {}
    for name in options.events:
        row = {"1 rank": one[name], "2 ranks": two[name], "one layer": single[name]}
        rows.append({"event": name} | row)
        for what, extra in row.items():
            claims[f"{EXTRA}, {name}, {what}"] = extra, 9 if what == "one layer" else 2
    show(f"Extra bytes a weight, {parameters / 1e6:.3g} million weights", rows, claims, options.out)


if __name__ == "__main__":
    main()
