# SPDX-License-Identifier: MIT
"""Claim: with gzip, a sparse file is smaller than the dense file; every bit of it comes back.

    python benchmarks/file_size.py

Networks with random weights, pruned by magnitude to the same sparsity in each layer: LeNet-300-100
and the layers of a ResNet-18 (11.2 million weights). Peers: the dense safetensors file, that file
with gzip and with xz, and `torch.save` of CSR tensors with 32-bit indices. Sizes are fractions of
the dense file, errors of rounded values fractions of the largest weight of a layer. Seconds are
those of writing a sparse file, which include reading it back and comparing all bits. From 80 % of
single weights on, the sparse file is the smaller one without gzip, too.
"""

import gzip
import io
import lzma
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _bench import Row, arguments, lenet, resnet18, show
from torch import nn

import regrow

LEVELS = [("weight", level) for level in (0.5, 0.8, 0.9, 0.95, 0.98)]
GROUPS = [("2:4", 0.5), ("1:4", 0.75)]
BLOCKS = [("block:16x16", 0.9), ("block:1x16", 0.9)]
CASES: dict[str, tuple[Callable[[], nn.Module], list[tuple[str, float]]]] = {
    "LeNet-300-100": (lenet, LEVELS + GROUPS),  # whose rows no block of 16 divides
    "ResNet-18": (resnet18, LEVELS + GROUPS + BLOCKS),
}


def csr_bytes(model: nn.Module) -> int:
    saved, buffer = {}, io.BytesIO()
    for name, value in model.state_dict().items():
        csr = value.flatten(1).to_sparse_csr()
        rows, columns = csr.crow_indices().int(), csr.col_indices().int()
        saved[name] = (value.shape, rows, columns, csr.values())
    torch.save(saved, buffer)
    return buffer.tell()


def row_of(
    name: str, make: Callable[[], nn.Module], granularity: str, level: float, folder: Path
) -> Row:
    torch.manual_seed(0)
    model = make()
    regrow.prune(model, level, distribution="uniform", granularity=granularity, on_misfit="skip")
    plain, sparse = folder / "plain.safetensors", folder / "sparse.safetensors"
    dense = regrow.export(model, plain).bytes
    start = time.perf_counter()
    size = regrow.export(model, sparse, sparse=True).bytes
    seconds = time.perf_counter() - start
    again = regrow.load(make, sparse).state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())
    row: Row = {
        "network": name,
        "granularity": granularity,
        "sparsity": regrow.sparsity(model),
        "gzip": len(gzip.compress(plain.read_bytes(), 6)) / dense,
        "xz": len(lzma.compress(plain.read_bytes())) / dense,
        "CSR": csr_bytes(model) / dense,
        "sparse": size / dense,
        "sparse, gzip": len(gzip.compress(sparse.read_bytes(), 6)) / dense,
    }
    for values in ("fp16", "int8"):
        done = regrow.export(model, folder / "rounded.safetensors", sparse=True, values=values)
        row |= {values: done.bytes / dense, f"{values} error": done.error}
    return row | {"seconds": seconds}


def main() -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row_of(name, make, granularity, level, Path(folder))
            for name, (make, cases) in CASES.items()
            for granularity, level in cases
        ]
    single = [r for r in rows if r["granularity"] == "weight" and r["sparsity"] > 0.79]
    claims = {
        "sparse with gzip / gzip": (max(r["sparse, gzip"] / r["gzip"] for r in rows), 1.0),
        "sparse / gzip, from 80 %": (max(r["sparse"] / r["gzip"] for r in single), 1.0),
        "sparse / CSR": (max(r["sparse"] / r["CSR"] for r in rows), 1.0),
    }
    show("Size of files, as a fraction of the dense file", rows, claims, options.out)


if __name__ == "__main__":
    main()
