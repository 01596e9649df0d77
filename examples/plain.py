# SPDX-License-Identifier: MIT
"""Gradual pruning in a plain PyTorch training loop: `python examples/plain.py`."""

import argparse
import os
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import regrow
from regrow.schedules.time import Timeline

PIXELS, LABELS = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
IMAGES, TRAIN = PIXELS.float() / 16, 1437  # the other 360 are the test set


def network():
    """The same network every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def batches(epoch):
    """Batches in an order that depends only on the epoch, so that a resumed run is exact."""
    return torch.randperm(TRAIN, generator=torch.Generator().manual_seed(epoch)).split(64)


def accuracy(net):
    """Fraction of the test set that is classified correctly."""
    with torch.no_grad():
        return (net(IMAGES[TRAIN:]).argmax(1) == LABELS[TRAIN:]).double().mean().item()


def train(net, sparsity, epochs, file):
    """Train with gradual pruning, and resume from the file if it exists."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    pruner = regrow.Pruner(net, keep_removed=True)
    parts = {"net": net, "optimizer": optimizer, "pruner": pruner}
    first, steps = 0, len(batches(0))
    plan = regrow.Cubic(0.2, 0.75, "10it").plan(sparsity, Timeline(epochs * steps))
    due = dict(plan)  # step: sparsity
    if file.exists():
        state = torch.load(file, weights_only=True)
        first = state["epoch"] + 1
        for name, part in parts.items():
            part.load_state_dict(state[name])
    pruner.hook(optimizer)  # masks weights after each step
    for epoch in range(first, epochs):
        for step, places in enumerate(batches(epoch), start=epoch * steps):
            if step in due:
                pruner.prune_to(due[step], [optimizer])
            optimizer.zero_grad()
            cross_entropy(net(IMAGES[places]), LABELS[places]).backward()
            optimizer.step()
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"epoch": epoch}, f"{file}.part")
        os.replace(f"{file}.part", file)  # atomic: an interrupted save keeps the old file
        print(f"epoch {epoch}: sparsity {pruner.sparsity:.4f}", flush=True)
    return pruner


def undone(net):
    """Whether every weight is exactly as before after pruning and un-pruning."""
    before = [parameter.clone() for parameter in net.parameters()]
    pruner = regrow.Pruner(net, keep_removed=True)
    pruner.prune_to(0.9)
    print(f"pruned in one shot: accuracy {accuracy(net):.4f}, sparsity {pruner.sparsity:.4f}")
    pruner.unprune()
    return all(map(torch.equal, before, net.parameters()))


def main():
    """Compare a dense network, one pruned in one shot, and one pruned while it trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("outputs/plain"), help="checkpoints")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    dense, sparse = network(), network()
    train(dense, 0.0, options.epochs, options.folder / "dense.pt")
    print(f"dense: accuracy {accuracy(dense):.4f}")
    print(f"un-pruned: weights restored exactly: {undone(dense)}")
    pruner = train(sparse, 0.9, options.epochs, options.folder / "sparse.pt")
    print(f"pruned gradually: accuracy {accuracy(sparse):.4f}, sparsity {pruner.sparsity:.4f}")


if __name__ == "__main__":
    main()
