# SPDX-License-Identifier: MIT
"""Claim: accelerate makes unstructured and block sparsity faster than dense torch, or says no gain.

    python benchmarks/runtime.py [--rounds 30]

Dense and accelerated networks with random weights, pruned by magnitude to the same sparsity in each
layer, on one thread: the two Linear layers of an MLP of ViT-B with 197 positions, the 1x1
convolutions of a bottleneck of ResNet-50 at 14 x 14 positions, and LeNet-300-100 with single
examples and with 64. Then a trained network end to end: LeNet-300-100 of the recipe `gmp`, its test
accuracy before and after. Ratios are medians of the dense pass / medians of the accelerated one,
with the 95 % bootstrap interval of `compare_latency`.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from _bench import LENET, Row, arguments, show, sweep
from torch import Tensor, nn

import regrow
from regrow.app.experiment.evaluate import load_network
from regrow.app.experiment.load_run import load_run
from regrow.io.files import read_json

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


def trained_rows(folder: Path, rounds: int) -> list[Row]:
    """A trained sparse network, dense and accelerated: accuracy on the test set, and speed."""
    sweep(("gmp",), ("0",), folder)
    [file] = (folder.absolute() / f"{LENET}gmp").rglob("result.json")
    cfg, checkpoint = load_run(file.parent / read_json(file)["checkpoint"])
    module, data = load_network(cfg, checkpoint)
    data.setup("test")
    batches = [(x, y) for x, y in data.test_dataloader()]
    network = module.network.eval()

    def accuracy() -> float:
        with torch.inference_mode():
            right = sum(int((network(x).argmax(1) == y).sum()) for x, y in batches)
        return right / sum(len(y) for _, y in batches)

    rows, dense = [], accuracy()
    for batch in (1, 64):
        result = regrow.accelerate(network, batches[0][0][:batch], repeats=rounds)
        rows.append(
            {
                "trained network, batch": f"LeNet-300-100, {batch}",
                "sparsity": read_json(file)["sparsity"],
                "accuracy, dense kernels": dense,
                "accuracy, accelerated": accuracy(),
                "layers run as": ", ".join(choice.form for choice in result.layers),
                "dense / accelerated": str(result.speedup or "no layer faster"),
            }
        )
        result.undo()
    return rows


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(rounds=30)
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmarks"))
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
    trained = trained_rows(options.folder, options.rounds)
    worst = max(abs(r["accuracy, dense kernels"] - r["accuracy, accelerated"]) for r in trained)
    claims = {"difference of test accuracies": (worst, 0.0002)}
    show("A trained network", trained, claims, options.out.with_stem("runtime_trained"))


if __name__ == "__main__":
    main()
