# SPDX-License-Identifier: MIT
"""Claim: the speedup of a cut network is close to its reduction of MACs.

Half of the channels of each layer are removed, rounded to multiples that kernels run fast, and
compared with a cut by Torch-Pruning of about the same MACs: milliseconds of one forward pass on one
thread, interleaved medians. In eager PyTorch, with batch norms folded into convolutions, and for
single examples exported and run by ONNX Runtime, which folds them too and has less overhead for
each operator. A budget of latency then says how many MACs must go for a given speedup, and the time
of each kind of layer says where the rest is.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from _bench import Row, arguments, interleaved, ratio, show
from _vision import build, heads, needed
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import regrow
from regrow.channels import prune
from regrow.profiling.latency import compare_latency
from regrow.profiling.macs import count_macs

MODELS = ("resnet18", "resnet50", "vgg16_bn", "mobilenet_v2")
DENSE, OURS, PEER = "dense", "regrow", "Torch-Pruning"
FORMATS = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}
EXPORTED = "ONNX Runtime"
CLAIMS = {"resnet50": 1 / 2.5, "mobilenet_v2": 1 / 2}  # of the dense time, batch 1
ASKED = {"resnet50": 3.6, "mobilenet_v2": 2.3}  # speedups asked of a budget of latency
FOLDED = "norms folded"
PASSES = 3  # of single examples


def cut_by_us(model: nn.Module, x: Tensor) -> nn.Module:
    prune(model, x, 0.5, distribution="uniform")
    return model


def cut_by_peer(model: nn.Module, x: Tensor) -> nn.Module:
    import torch_pruning as tp

    importance = tp.importance.GroupMagnitudeImportance(p=2)
    given = {"importance": importance, "pruning_ratio": 0.5, "ignored_layers": heads(model)}
    tp.pruner.BasePruner(model, x, **given).step()
    return model


def timed(model: nn.Module, x: Tensor, passes: int) -> Callable[[], Callable[[], object]]:
    def run() -> None:
        with torch.inference_mode():
            for _ in range(passes):
                model(x)

    return lambda: run


def exported(nets: dict[str, nn.Module], x: Tensor) -> dict[str, Callable[[], Any]]:
    """Passes by ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1

    def made(net: nn.Module) -> Callable[[], Any]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "net.onnx"
            regrow.export(copy.deepcopy(net).eval(), file, x)
            session = onnxruntime.InferenceSession(file, options)
        given = {session.get_inputs()[0].name: x.numpy()}
        return lambda: [session.run(None, given) for _ in range(PASSES)]

    runs = {variant: made(net) for variant, net in nets.items()}
    return {variant: lambda run=run: run for variant, run in runs.items()}


def rows_of(name: str, rounds: int, batches: dict[int, tuple[int, int]]) -> list[Row]:
    """One row a format, batch size and variant."""
    small = torch.randn(2, 3, 64, 64)
    dense = build("torchvision", name)
    nets = {DENSE: dense}
    nets[OURS] = cut_by_us(copy.deepcopy(dense), small)
    nets[PEER] = cut_by_peer(copy.deepcopy(dense), small)
    one = torch.randn(1, 3, 224, 224)
    macs = {variant: count_macs(net, one).macs for variant, net in nets.items()}
    rows: list[Row] = []

    def add(batch: int, words: str, passes: int, found: dict[str, list[float]]) -> None:
        for variant in nets:
            row: dict[str, Any] = {"model": name, "batch": batch, "format": words}
            row["variant"] = variant
            row["MACs / dense"] = macs[variant] / macs[DENSE]
            row["ms"] = 1e3 * statistics.median(found[variant]) / passes
            row["time / dense"] = ratio(found, variant, DENSE)
            rows.append(row)

    for batch, (passes, share) in batches.items():
        for words, memory in FORMATS.items():
            x = torch.randn(batch, 3, 224, 224).to(memory_format=memory)
            moved = {v: copy.deepcopy(net).to(memory_format=memory) for v, net in nets.items()}
            made = {v: timed(net, x, passes) for v, net in moved.items()}
            add(batch, words, passes, interleaved(made, max(2, rounds // share)))
    folded = {v: fuse(copy.deepcopy(net).eval()) for v, net in nets.items()}
    made = {v: timed(net, one, PASSES) for v, net in folded.items()}
    add(1, FOLDED, PASSES, interleaved(made, rounds))
    add(1, EXPORTED, PASSES, interleaved(exported(nets, one), rounds))
    return rows


def kind(layer: nn.Module) -> str:
    name = type(layer).__name__
    if not isinstance(layer, nn.Conv2d):
        return name
    size = "depthwise" if layer.groups > 1 else "x".join(map(str, layer.kernel_size))
    return f"{name} {size}"


def layer_times(nets: Sequence[nn.Module], x: Tensor, passes: int) -> list[Counter[str]]:
    """Milliseconds of the layers of each kind, medians over passes of the networks in turn."""
    times, began = defaultdict[nn.Module, list[float]](list), dict[nn.Module, float]()

    def start(layer: nn.Module, _: object) -> None:
        began[layer] = time.perf_counter()

    def stop(layer: nn.Module, *_: object) -> None:
        times[layer].append(1e3 * (time.perf_counter() - began[layer]))

    leaves = [[layer for layer in net.modules() if not any(layer.children())] for net in nets]
    for layer in chain(*leaves):
        layer.register_forward_pre_hook(start)
        layer.register_forward_hook(stop)
    with torch.inference_mode():
        for _ in range(passes):
            for net in nets:
                net(x)
    spent = [Counter[str]() for _ in nets]
    for own, total in zip(leaves, spent, strict=True):
        for layer in own:
            total[kind(layer)] += statistics.median(times[layer])  # type: ignore[assignment]
    return spent


def kind_rows(name: str, rounds: int) -> list[Row]:
    dense = build("torchvision", name).eval()
    x = torch.randn(1, 3, 224, 224)
    first, second = layer_times([dense, cut_by_us(copy.deepcopy(dense), x)], x, 10 * rounds)
    return [
        {"model": name, "kind": k, DENSE: ms, OURS: second[k], "ratio": ms / second[k]}
        for k, ms in first.most_common()
        if ms > 0.02
    ]


def budget_row(name: str, speedup: float) -> Row:
    dense = build("torchvision", name).eval()
    x = torch.randn(1, 3, 224, 224)
    small = copy.deepcopy(dense)
    prune(small, x, 1 - 1 / speedup, of="latency", distribution="uniform")
    found = compare_latency(dense, small, x).speedup
    macs = count_macs(dense, x).macs / count_macs(small, x).macs
    return {"model": name, "asked": speedup, "measured": str(found), "times fewer MACs": macs}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="*", default=MODELS)
    options = parser.parse_args()
    needed("torchvision", "torch_pruning")
    torch.set_num_threads(1)
    rows = []
    for name in options.models:
        # many examples take long: fewer rounds, and fewer examples for the largest
        large = 8 if name.startswith("vgg") else 32
        rows += rows_of(name, options.rounds, {1: (PASSES, 1), large: (1, 4)})
    claims = {
        f"time of {name}, batch 1, {words}, / dense": (row["time / dense"], CLAIMS[name])
        for row in rows
        if (name := row["model"]) in CLAIMS and row["batch"] == 1 and row["variant"] == OURS
        for words in [row["format"]]
    }
    show("Half of the channels gone", rows, claims, options.out)
    known = [name for name in options.models if name in ASKED]
    for title, out, extra in (
        (
            "Milliseconds of layers, batch 1",
            "layers",
            [kind_rows(n, options.rounds) for n in known],
        ),
        ("Budgets of latency", "budgets", [[budget_row(n, ASKED[n])] for n in known]),
    ):
        every = [row for one in extra for row in one]
        if every:
            show(title, every, {}, options.out.with_stem(f"{options.out.stem}_{out}"))


if __name__ == "__main__":
    main()
