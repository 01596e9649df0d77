# SPDX-License-Identifier: MIT
"""Claim: global pruning is exact, at a fraction of the usual time and memory, and scales linearly.

At most 1/20 of the time of `torch.nn.utils.prune.global_unstructured` at 11 million weights, and
at most 2 bytes a weight of memory beyond the weights, the returned masks included.
"""

import copy
import statistics

import torch
from _bench import arguments, in_child, interleaved, peak_extra, ratio, resnet18, show
from torch.nn.utils import prune as torch_prune

import regrow
from regrow.masks.topk import global_topk_masks

SPARSITY = 0.9
OURS, WHOLE, TORCH = "regrow keep_highest", "regrow.prune", "torch global_unstructured"


def select(layers):
    weights = [layer.weight for layer in layers]
    count = round(SPARSITY * sum(weight.numel() for weight in weights))
    return lambda: global_topk_masks(weights, count, magnitude=True)


def prune(layers):
    return lambda: regrow.prune(layers, SPARSITY)


def prune_by_torch(layers):
    pairs = [(layer, "weight") for layer in layers]
    method = torch_prune.L1Unstructured
    return lambda: torch_prune.global_unstructured(pairs, method, amount=SPARSITY)


VARIANTS = {OURS: select, WHOLE: prune, TORCH: prune_by_torch}


def memory(name):
    torch.set_num_threads(1)
    layers = resnet18()
    VARIANTS[name](layers)  # what it imports does not count
    return peak_extra(VARIANTS[name](layers)) / sum(p.numel() for p in layers.parameters())


def scaling(millions):
    """(ns a weight, peak extra bytes a weight) of keep_highest over tensors of 4 million."""
    torch.set_num_threads(1)
    global_topk_masks([torch.randn(1000)], 500, magnitude=True)
    weights = [torch.randn(2000, 2000) for _ in range(millions // 4)]
    total = sum(weight.numel() for weight in weights)

    def run():
        return global_topk_masks(weights, round(SPARSITY * total), magnitude=True)

    extra = peak_extra(run) / total
    found = interleaved({"ours": lambda: run}, 3)
    return 1e9 * statistics.median(found["ours"]) / total, extra


def main():
    parser = arguments(__doc__)
    parser.add_argument("--largest", type=int, default=500, help="millions of weights, scaling")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = resnet18()
    total = sum(parameter.numel() for parameter in model.parameters())
    found = interleaved(
        {name: lambda m=make: m(copy.deepcopy(model)) for name, make in VARIANTS.items()},
        options.rounds,
    )
    extra = {name: in_child(memory, name) for name in VARIANTS}
    rows = [
        {
            "variant": name,
            "million weights": total / 1e6,
            "ns a weight": 1e9 * statistics.median(found[name]) / total,
            "time / torch": ratio(found, name, TORCH),
            "peak extra bytes a weight": extra[name],
        }
        for name in VARIANTS
    ]
    claims = {
        f"time of {OURS} / torch": (ratio(found, OURS, TORCH), 0.05),
        f"time of {WHOLE} / torch": (ratio(found, WHOLE, TORCH), 0.05),
        f"peak extra bytes a weight, {OURS}": (extra[OURS], 2),
    }
    sizes = [n for n in (12, 48, 100, 200, 500) if n <= options.largest]
    times = {}
    for millions in sizes:
        times[millions], more = in_child(scaling, millions)
        rows.append(
            {
                "variant": OURS,
                "million weights": float(millions),
                "ns a weight": times[millions],
                "time / torch": "",
                "peak extra bytes a weight": more,
            }
        )
        claims[f"peak extra bytes a weight at {millions} million"] = (more, 2)
    claims["ns a weight, largest / smallest"] = (times[sizes[-1]] / times[sizes[0]], 1.3)
    show(f"Global selection at sparsity {SPARSITY}", rows, claims, options.out)


if __name__ == "__main__":
    main()
