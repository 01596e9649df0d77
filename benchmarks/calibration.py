# SPDX-License-Identifier: MIT
"""Prune trained networks on Fashion-MNIST without training, with 1,024 unlabelled images.

    python benchmarks/calibration.py [--models lenet300 lenet5 resnet8] [--seeds 3]

Test accuracy in %, mean over seeds: one-shot masks of each criterion as they are ("raw"), with
batch-norm statistics estimated again ("bn", for networks with batch norm), and with kept weights
refitted by least squares ("refit"). Needs the package dataset-fashion-mnist, or
~/.cache/regrow/fashion-mnist.
"""

import argparse
import copy
import gzip
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from regrow import Masks, calibrate
from regrow.app.models.cifar_resnet import CifarResNet
from regrow.app.models.lenet import LeNet5, LeNet300100
from regrow.channels import recalibrate

FOLDERS = (
    Path("/usr/share/datasets/fashion-mnist"),
    Path("~/.cache/regrow/fashion-mnist").expanduser(),
)
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.98)
CRITERIA = ("magnitude", "wanda", "obs", "sparsegpt")


def resnet8() -> nn.Module:
    return CifarResNet(8, in_channels=1)


MODELS = {"lenet300": LeNet300100, "lenet5": LeNet5, "resnet8": resnet8}


def images(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images (N, 1, 28, 28) and labels of "train" or "t10k"."""
    folder = next(f for f in FOLDERS if f.is_dir())
    raw, labels = (
        gzip.decompress((folder / f"{split}-{name}-ubyte.gz").read_bytes())
        for name in ("images-idx3", "labels-idx1")
    )
    pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    x = (torch.from_numpy(pixels.astype(np.float32)) / 255 - 0.2860) / 0.3530
    return x, torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int, seed: int) -> None:
    """SGD with momentum 0.9 and weight decay 5e-4, batches of 128, a cosine from 0.1."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4)
    steps = epochs * (len(x) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(128)[: len(x) // 128]:
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """In %."""
    model.eval()
    right = sum(
        int((model(a).argmax(1) == b).sum())
        for a, b in zip(x.split(1000), y.split(1000), strict=True)
    )
    return 100 * right / len(x)


@torch.no_grad()
def masked(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of a model with zeros where masks say so."""
    model = copy.deepcopy(model)
    for name, mask in masks.items():
        model.get_parameter(name).mul_(mask)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=[*MODELS])
    parser.add_argument("--criteria", nargs="+", default=[*CRITERIA], choices=[*CRITERIA])
    parser.add_argument("--levels", nargs="+", type=float, default=[*LEVELS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    x, y = images("train")
    tests = images("t10k")
    for name in given.models:
        found: dict[tuple[str, str, float], list[float]] = {}
        seconds: dict[str, list[float]] = {}
        dense = []
        for seed in range(given.seeds):
            torch.manual_seed(seed)
            trained = MODELS[name]()
            train(trained, x, y, given.epochs, seed)
            dense.append(accuracy(trained, *tests))
            data = [x[torch.randperm(len(x))[:1024]]]
            for criterion in given.criteria:
                for level in given.levels:
                    model = copy.deepcopy(trained)
                    start = time.perf_counter()
                    masks = calibrate(model, data, level, criterion=criterion).masks
                    seconds.setdefault(criterion, []).append(time.perf_counter() - start)
                    made = {"raw": masked(trained, masks), "refit": model}
                    if any(isinstance(m, nn.BatchNorm2d) for m in trained.modules()):
                        made["bn"] = masked(trained, masks)
                        recalibrate(made["bn"], data)
                    for way, network in made.items():
                        key = criterion, way, level
                        found.setdefault(key, []).append(accuracy(network, *tests))
        table = Table(title=f"{name}, dense {statistics.mean(dense):.2f} %")
        table.add_column("criterion")
        table.add_column("after")
        for level in given.levels:
            table.add_column(f"{level:.0%}", justify="right")
        table.add_column("seconds", justify="right")
        for criterion, way in dict.fromkeys(key[:2] for key in found):
            means = [statistics.mean(found[criterion, way, level]) for level in given.levels]
            time_ = f"{statistics.median(seconds[criterion]):.1f}" if way == "refit" else ""
            table.add_row(criterion, way, *(f"{mean:.1f}" for mean in means), time_)
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
