# SPDX-License-Identifier: MIT
"""Claim: accelerate makes unstructured and block sparsity faster than dense torch, or says no gain.

    python benchmarks/runtime.py [--rounds 30]

Dense and accelerated networks with random weights, pruned by magnitude to the same sparsity in each
layer, on one thread: the two Linear layers of an MLP of ViT-B with 197 positions, the 1x1
convolutions of a bottleneck of ResNet-50 at 14 x 14 positions, and LeNet-300-100 with single
examples and with 64. Ratios are medians of the dense pass / medians of the accelerated one, with
the 95 % bootstrap interval of `compare_latency`.
"""

from collections.abc import Callable

import torch
from _bench import Row, arguments, show
from torch import Tensor, nn

import regrow

LEVELS = (0.8, 0.85, 0.9, 0.95, 0.98)
CLAIM = ("ViT-B MLP", "weight", 0.95)  # at least twice as fast


def vit_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))


def pointwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1024, 256, 1), nn.ReLU(), nn.Conv2d(256, 1024, 1))


def lenet() -> nn.Module:
    sizes = nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    return nn.Sequential(*sizes)


# how to make a network, the shape of its input, the granularities
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "ViT-B MLP": (vit_mlp, (1, 197, 768), ("weight", "block:16x16")),
    "ResNet-50 1x1": (pointwise, (1, 1024, 14, 14), ("weight", "block:16x16")),
    "LeNet-300-100, 1": (lenet, (1, 784), ("weight",)),
    "LeNet-300-100, 64": (lenet, (64, 784), ("weight",)),
}


def row_of(
    name: str, make: Callable[[], nn.Module], x: Tensor, granularity: str, level: float, rounds: int
) -> Row:
    torch.manual_seed(0)
    model = make().eval()
    regrow.prune(model, level, distribution="uniform", granularity=granularity)
    result = regrow.accelerate(model, x, repeats=rounds)
    return {
        "network, batch": name,
        "granularity": granularity,
        "sparsity": level,
        "layers run as": ", ".join(choice.form for choice in result.layers),
        "dense / accelerated": "no layer faster" if result.speedup is None else str(result.speedup),
        "gain": result.speedup.ratio if result.gains else 1.0,
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(rounds=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row_of(name, make, torch.randn(shape), granularity, level, options.rounds)
        for name, (make, shape, granularities) in CASES.items()
        for granularity in granularities
        for level in LEVELS
    ]
    gains = {(r["network, batch"], r["granularity"], r["sparsity"]): r["gain"] for r in rows}
    claims = {"accelerated / dense, {} ({}) at {:.0%}".format(*CLAIM): (1 / gains[CLAIM], 0.5)}
    show("Sparse networks run by torch's kernels", rows, claims, options.out)


if __name__ == "__main__":
    main()
