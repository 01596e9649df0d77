# SPDX-License-Identifier: MIT
"""Claim: a network that is pruned once, without training, keeps its accuracy by a refit.

    python benchmarks/calibration.py [--models lenet300 lenet5 resnet8] [--seeds 3]

Test accuracy in % on Fashion-MNIST, with 1,024 unlabelled training images: the masks of each
criterion as they are ("raw"), with batch-norm statistics estimated again ("bn"), with kept weights
refitted layer by layer ("refit") and then together ("joint", of magnitude and OBS masks), and after
an epoch of training with the masks ("finetune", of magnitude masks; "refit, finetune" of refitted
weights). "2:4" is two of every four inputs; "channels" has half the
MACs. Each result is a row of docs/calibration.csv, and rows that exist are not computed again; the
dense networks are cached. Needs the package dataset-fashion-mnist, or
~/.cache/regrow/fashion-mnist.
"""

import argparse
import copy
import csv
import gzip
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import regrow
from regrow import Masks, calibrate
from regrow.app.models.cifar_resnet import CifarResNet
from regrow.app.models.lenet import LeNet5, LeNet300100
from regrow.calibration.calibrate import calibrated_layers
from regrow.calibration.joint_refit import refit_jointly
from regrow.calibration.moments import Data
from regrow.channels import recalibrate

CACHE = Path("~/.cache/regrow").expanduser()
FOLDERS = (Path("/usr/share/datasets/fashion-mnist"), CACHE / "fashion-mnist")
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.98)
CRITERIA = ("magnitude", "wanda", "obs", "sparsegpt")
FIELDS = ("model", "seed", "criterion", "pattern", "sparsity", "after", "accuracy", "seconds")
Key = tuple[str, ...]  # the values of FIELDS up to "after"
Images = tuple[torch.Tensor, torch.Tensor]


def resnet8() -> nn.Module:
    return CifarResNet(8, in_channels=1, width=8)


# how to make a network, and the epochs and the learning rate of its training
MODELS = {
    "lenet300": (LeNet300100, 8, 0.1),
    "lenet5": (LeNet5, 8, 0.05),
    "resnet8": (resnet8, 5, 0.1),
}


def images(split: str) -> Images:
    """Normalised images (N, 1, 28, 28) and labels of "train" or "t10k"."""
    folder = next(f for f in FOLDERS if f.is_dir())
    raw, labels = (
        gzip.decompress((folder / f"{split}-{name}-ubyte.gz").read_bytes())
        for name in ("images-idx3", "labels-idx1")
    )
    pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    x = (torch.from_numpy(pixels.astype(np.float32)) / 255 - 0.2860) / 0.3530
    return x, torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))


def train(
    model: nn.Module, data: Images, epochs: int, lr: float, seed: int, masks: Masks | None = None
) -> None:
    """SGD with momentum 0.9 and weight decay 5e-4, batches of 128, a cosine from lr to 0."""
    torch.manual_seed(seed)
    x, y = data
    optimizer = torch.optim.SGD(model.parameters(), lr, 0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(x) // 128))
    model.train()
    with regrow.enforce(model, {} if masks is None else masks, optimizer):
        for _ in range(epochs):
            for batch in torch.randperm(len(x)).split(128)[: len(x) // 128]:
                loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    model.eval()


def dense(name: str, seed: int, data: Images) -> nn.Module:
    """A trained network, from the cache if it is there."""
    make, epochs, lr = MODELS[name]
    file = CACHE / f"calibration-{name}-{epochs}-{seed}.pt"
    torch.manual_seed(seed)
    model = make()
    if file.exists():
        model.load_state_dict(torch.load(file))
    else:
        train(model, data, epochs, lr, seed)
        CACHE.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Images) -> float:
    """In %."""
    parts = zip(*(part.split(1000) for part in data), strict=True)
    return 100 * sum(int((model.eval()(x).argmax(1) == y).sum()) for x, y in parts) / len(data[1])


@torch.no_grad()
def masked(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of a model with zeros where masks say so."""
    model = copy.deepcopy(model)
    for name, mask in masks.items():
        model.get_parameter(name).mul_(mask)
    return model


def prune_weights(
    network: nn.Module,
    data: Images,
    seed: int,
    criterion: str,
    pattern: str,
    sparsity: float,
    epochs: int,
    missing: set[str],
) -> Iterator[tuple[str, nn.Module]]:
    """Networks pruned in one way, by what was done afterwards."""
    few = sample(data, seed)
    refitted = copy.deepcopy(network)
    granularity = "weight" if pattern == "any" else pattern
    masks = calibrate(
        refitted, few, sparsity, criterion=criterion, granularity=granularity, on_misfit="skip"
    ).masks
    yield "refit", refitted
    yield "raw", masked(network, masks)
    if "joint" in missing:
        joint = copy.deepcopy(refitted)  # as by calibrate(..., refit="joint")
        refit_jointly(joint, network, calibrated_layers(joint, None, None), masks, Data(few))
        yield "joint", joint
    if "bn" in missing:
        recalibrated = masked(network, masks)
        recalibrate(recalibrated, few)
        yield "bn", recalibrated
    if missing & {"finetune", "refit, finetune"}:
        trained = masked(network, masks)
        train(trained, data, epochs, 0.01, seed, masks)
        yield "finetune", trained
        train(refitted, data, epochs, 0.01, seed, masks)
        yield "refit, finetune", refitted


def prune_channels(network: nn.Module, data: Images, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """Networks with half of the MACs."""
    few = sample(data, seed)
    for after, refit in (("raw", None), ("refit", few)):
        model = copy.deepcopy(network)
        regrow.channels.prune(model, few[0][:2], 0.5, of="macs", round_to=1, refit=refit)
        yield after, model
        if after == "raw" and has_norms(network):
            recalibrate(model, few)
            yield "bn", model


def sample(data: Images, seed: int) -> list[torch.Tensor]:
    """1,024 training images in batches, as a loader gives them."""
    chosen = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(seed))
    return [*data[0][chosen[:1024]].split(128)]


def has_norms(model: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def rows_of(
    name: str, seed: int, given: argparse.Namespace, data: Images
) -> Iterator[tuple[Key, list[str], Callable[[set[str]], Iterator[tuple[str, nn.Module]]]]]:
    """The rows of one network without "after", the values of that, and how some are computed."""
    network, epochs = dense(name, seed, data), given.finetune
    start, norms = (name, str(seed)), ["bn"] * has_norms(network)
    yield (*start, "", "", "0"), ["dense"], lambda _: iter([("dense", network)])
    channels = (*start, "l2", "channels", "0.5")
    yield channels, ["raw", "refit", *norms], lambda _: prune_channels(network, data, seed)
    wanted = [(c, "any", level) for level in given.levels for c in given.criteria]
    for way in wanted + [(c, "2:4", 0.5) for c in given.criteria]:
        key, afters = (*start, *map(str, way)), ["refit", "raw", *norms]
        if way[0] in ("magnitude", "obs"):
            afters.append("joint")
        if way[0] == "magnitude" and epochs:
            afters += ["finetune", "refit, finetune"]
        yield (
            key,
            afters,
            lambda new, way=way: prune_weights(network, data, seed, *way, epochs, new),
        )


def read(file: Path) -> dict[Key, dict[str, str]]:
    """The rows of a file by their keys."""
    if not file.exists():
        return {}
    with file.open() as lines:
        return {tuple(row[f] for f in FIELDS[:6]): row for row in csv.DictReader(lines)}


def write(file: Path, key: Key, accuracy_: float, seconds: float) -> None:
    """Append a row."""
    new = not file.exists()
    with file.open("a", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        if new:
            writer.writerow(FIELDS)
        writer.writerow([*key, f"{accuracy_:.2f}", f"{seconds:.1f}"])


def show(rows: dict[Key, dict[str, str]], models: list[str]) -> None:
    """Print means over seeds."""
    for name in models:
        found: dict[tuple[str, str], dict[str, list[float]]] = {}
        for (model, _, criterion, pattern, level, after), row in rows.items():
            if model == name and criterion:
                column = level if pattern == "any" else pattern
                by_column = found.setdefault((criterion, after), {})
                by_column.setdefault(column, []).append(float(row["accuracy"]))
        whole = [float(r["accuracy"]) for k, r in rows.items() if k[0] == name and k[5] == "dense"]
        if not whole:
            continue
        table = Table(title=f"{name}, dense {statistics.mean(whole):.2f} %, {len(whole)} seeds")
        columns = sorted({column for by_column in found.values() for column in by_column})
        for title in ("criterion", "after", *columns):
            table.add_column(title)
        for (criterion, after), by_column in found.items():
            means = [statistics.mean(by_column[c]) if c in by_column else None for c in columns]
            table.add_row(criterion, after, *("" if m is None else f"{m:.1f}" for m in means))
        Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=[*MODELS])
    parser.add_argument("--criteria", nargs="+", default=[*CRITERIA], choices=[*CRITERIA])
    parser.add_argument("--levels", nargs="+", type=float, default=[*LEVELS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--finetune", type=int, default=1, help="epochs; 0: none")
    out = Path(__file__).parent.parent / "docs" / "calibration.csv"
    parser.add_argument("--out", type=Path, default=out)
    given = parser.parse_args()
    data, tests = images("train"), images("t10k")
    for seed in range(given.seeds):
        for name in given.models:
            for key, afters, networks in rows_of(name, seed, given, data):
                known = read(given.out)
                missing = {after for after in afters if (*key, after) not in known}
                start, found = time.perf_counter(), []
                for after, network in networks(missing) if missing else ():
                    seconds = time.perf_counter() - start
                    if after in missing:
                        found.append(((*key, after), accuracy(network, tests), seconds))
                    start = time.perf_counter()
                for row in found:  # together, so that a stopped run leaves no part of them
                    write(given.out, *row)
    show(read(given.out), given.models)


if __name__ == "__main__":
    main()
