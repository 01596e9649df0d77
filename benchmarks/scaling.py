# SPDX-License-Identifier: MIT
"""Claims: time and memory of an event are proportional to the weights of a rank, and the bytes that
ranks send are independent of the number of weights.

An event is `Pruner.prune_to`, magnitude, global. Bytes sent are those of every tensor that a rank
hands to a collective, seen by PyTorch's dispatcher. Each point runs in fresh processes.
"""

import json
import math
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist
from _bench import arguments, in_child, peak_extra, show
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from regrow.distributed.shard import local_tensor
from regrow.pruning.pruner import Pruner

LAYERS = 8
HISTOGRAM = 8 * (1 << 16)  # bytes: 65,536 counts of int64
FIRST, LATER = 0.5, (0.6, 0.7, 0.8, 0.9)
FLOAT, HALF = "float32", "bfloat16"
BYTES = {FLOAT: 4, HALF: 2}
EXTRA, SENT = "extra B/weight", "bytes sent"  # the first of the peak, beside the working mask
MEANS = 10**6  # fewer weights need less than a process grows by itself
# which argument of a collective holds what this rank sends
HANDED = {"allreduce_": 0, "allgather_": 1, "gather_": 1, "broadcast_": 0}


class Sent(TorchDispatchMode):
    """Count the bytes this rank passes to collectives; an unknown collective raises an error."""

    def __init__(self):
        super().__init__()
        self.bytes = self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            given = tree_leaves(args[HANDED[func._opname]])
            self.bytes += sum(t.nbytes for t in given if isinstance(t, torch.Tensor))
            self.calls += 1
        return func(*args, **(kwargs or {}))


def network(parameters, dtype, mesh=None, layers=LAYERS):
    """Square linear layers of about as many weights in all, cut among the ranks of a mesh."""
    width = round(math.sqrt(parameters / layers))
    with torch.device("meta"):
        made = [nn.Linear(width, width, bias=False) for _ in range(layers)]
        net = nn.Sequential(*made).to(getattr(torch, dtype))
    for layer in net if mesh is not None else ():
        fully_shard(layer, mesh=mesh)
    net.to_empty(device="cpu")
    for layer in net:
        local_tensor(layer.weight.detach()).normal_()
    return net


def events(parameters, dtype, mesh=None):
    """One point: weights here, peak extra bytes a weight beside the working mask, ns, bytes sent.

    Memory is measured at the first event, which makes the working mask; time at the later ones.
    """
    net = network(parameters, dtype, mesh)
    own = sum(local_tensor(layer.weight).numel() for layer in net)
    pruner = Pruner(net)
    extra = peak_extra(lambda: pruner.prune_to(FIRST)) - own * BYTES[dtype]
    seconds, sent = [], set()
    for sparsity in LATER:
        with Sent() as counted:
            start = time.process_time()
            pruner.prune_to(sparsity)
            seconds.append(time.process_time() - start)
        sent.add((counted.bytes, counted.calls))
    total = pruner.total
    assert pruner.pruned == round(LATER[-1] * total)
    [(sent, calls)] = sent  # the same at every event
    return {
        "million": total / 1e6,
        "of a rank": own / 1e6,
        "s": statistics.median(seconds),
        "ns/weight": 1e9 * statistics.median(seconds) / own,
        EXTRA: extra / own if own > MEANS else "",
        SENT: sent,
        "in": calls,
    }


def alone(parameters, dtype):
    torch.set_num_threads(1)
    Pruner(network(LAYERS * 100, dtype)).prune_to(FIRST)  # what it imports does not count
    return {"ranks": 1, "dtype": dtype} | events(parameters, dtype)


def as_rank(store, ranks, sizes, rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    Pruner(network(LAYERS * 100, FLOAT, mesh)).prune_to(FIRST)
    found = [{"ranks": ranks, "dtype": FLOAT} | events(size, FLOAT, mesh) for size in sizes]
    dist.barrier()
    dist.destroy_process_group()
    return found


def together(ranks, sizes):
    """The points of several sizes, one list a rank, over gloo in fresh processes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool,
    ):
        return list(pool.map(partial(as_rank, f"{folder}/store", ranks, sizes), range(ranks)))


def line(points):
    """Seconds = a + b n with the least sum of squared relative errors."""
    numbers = torch.tensor([[1.0, 1e6 * p["million"]] for p in points], dtype=torch.float64)
    seconds = torch.tensor([p["s"] for p in points], dtype=torch.float64)[:, None]
    base, slope = torch.linalg.lstsq(numbers / seconds, torch.ones_like(seconds)).solution[:, 0]
    return float(base), float(slope)


def fitting(parameters):
    """The widest type whose weights, working mask and masks leave a third of the memory free."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(text.split()[1]) for text in lines if text.startswith("MemAvailable")) * 1024
    needs = {dtype: parameters * (2 * size + 2) for dtype, size in BYTES.items()}
    return next((dtype for dtype, need in needs.items() if need < free * 2 / 3), None)


def main():
    parser = arguments(__doc__)
    parser.add_argument("--largest", type=float, default=1e9, help="parameters, in one process")
    parser.add_argument("--sharded", type=float, default=1e8, help="parameters, over ranks")
    options = parser.parse_args()
    rows, claims = [], {}
    for power in range(6, round(math.log10(options.largest)) + 1):
        if (dtype := fitting(10**power)) is None:
            print(f"1e{power} left out: not enough memory is free")
            continue
        rows.append(in_child(alone, 10**power, dtype))
        print(rows[-1], flush=True)
    base, slope = line([row for row in rows if row["dtype"] == FLOAT])
    for ranks in (2, 3, 4):
        found = []
        for power in range(5, round(math.log10(options.sharded)) + 1):
            points = [point for [point] in together(ranks, [10**power])]
            found.append(max(points, key=lambda point: point[EXTRA] or 0))
            print(found[-1], flush=True)
        rows += found
        sent = [row[SENT] for row in found]
        claims[f"bytes sent, largest / smallest network, {ranks} ranks"] = max(sent) / min(sent), 1
        claims[f"bytes sent / two histograms, {ranks} ranks"] = max(sent) / (2 * HISTOGRAM), 1.01
    for row in rows:
        if row[EXTRA] != "":
            what = f"{row['million']:.4g} million, ranks: {row['ranks']}"
            claims[f"peak extra bytes a weight of a rank, {what}"] = row[EXTRA], 2
    large = [row["ns/weight"] for row in rows if row["ranks"] == 1 and row["million"] > 5]
    if large:
        claims["ns a weight, largest / 10 million"] = large[-1] / large[0], 1.3
    show("Cost of an event", rows, claims, options.out)
    said = {f"{n:.0e}": base + slope * n for n in (1e10, 7e10)}
    print(f"the line: {base:.3g} s + {1e9 * slope:.3g} ns a weight; in one process {said} s")
    whole = json.loads(options.out.read_text())
    whole["line"] = {"base s": base, "s a weight": slope, "extrapolated s": said}
    options.out.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
