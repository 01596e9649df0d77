# SPDX-License-Identifier: MIT
"""Gradual pruning with Lightning Fabric: `python examples/fabric.py --devices 2 --strategy ddp`."""

import argparse
import os
from pathlib import Path

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.fsdp import fully_shard
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


def sharded(net, mesh):
    """Shards the network among ranks, layer by layer."""
    for layer in (net[0], net[2], net):
        fully_shard(layer, mesh=mesh["data_parallel"])
    return net


def strategy(name, devices):
    """Fabric's strategy, with gloo, which needs no GPU."""
    if name == "fsdp2":
        return ModelParallelStrategy(sharded, devices, 1, False, process_group_backend="gloo")
    return DDPStrategy(process_group_backend="gloo") if name == "ddp" else "auto"


def accuracy(fabric, model):
    """Fraction of the test set that is classified correctly."""
    with torch.no_grad():
        found = model(fabric.to_device(IMAGES[TRAIN:])).argmax(1).cpu()
    return (found == LABELS[TRAIN:]).double().mean().item()


def train(fabric, sparsity, epochs, file):
    """Train with gradual pruning, and resume from the file if it exists."""
    net = network()
    model = fabric.setup_module(net)
    optimizer = fabric.setup_optimizers(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    pruner = regrow.Pruner(net, keep_removed=True)  # of the unwrapped network: plain names
    state = {"model": model, "optimizer": optimizer, "pruner": pruner, "epoch": -1}
    if file.exists():
        fabric.load(file, state, weights_only=True)
    pruner.hook(optimizer)  # masks weights after each step
    steps, rank, ranks = len(batches(0)), fabric.global_rank, fabric.world_size
    plan = regrow.Cubic(0.2, 0.75, "10it").plan(sparsity, Timeline(epochs * steps))
    due = dict(plan)  # step: sparsity
    for epoch in range(state["epoch"] + 1, epochs):
        for step, places in enumerate(batches(epoch), start=epoch * steps):
            if step in due:
                pruner.prune_to(due[step], [optimizer])  # the same on every rank
            mine = places[rank::ranks]
            optimizer.zero_grad()
            images, labels = fabric.to_device((IMAGES[mine], LABELS[mine]))
            fabric.backward(cross_entropy(model(images), labels))
            optimizer.step()
        state["epoch"] = epoch
        fabric.save(f"{file}.part", state)
        if fabric.is_global_zero:
            os.replace(f"{file}.part", file)  # atomic: an interrupted save keeps the old file
        fabric.print(f"epoch {epoch}: sparsity {pruner.sparsity:.4f}")
    return model, pruner


def undone(fabric, model):
    """Whether every weight is exactly as before after pruning and un-pruning."""
    before = [parameter.clone() for parameter in model.parameters()]
    pruner = regrow.Pruner(model.module, keep_removed=True)
    pruner.prune_to(0.9)
    found = accuracy(fabric, model)
    fabric.print(f"pruned in one shot: accuracy {found:.4f}, sparsity {pruner.sparsity:.4f}")
    pruner.unprune()
    return all(map(torch.equal, before, model.parameters()))


def main():
    """Compare a dense network, one pruned in one shot, and one pruned while it trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("outputs/fabric"), help="checkpoints")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--strategy", choices=("auto", "ddp", "fsdp2"), default="auto")
    options = parser.parse_args()
    fabric = Fabric(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=strategy(options.strategy, options.devices),
    )
    fabric.launch()
    options.folder.mkdir(parents=True, exist_ok=True)

    model, pruner = train(fabric, 0.0, options.epochs, options.folder / "dense.pt")
    fabric.print(f"dense: accuracy {accuracy(fabric, model):.4f}")
    fabric.print(f"un-pruned: weights restored exactly: {undone(fabric, model)}")
    model, pruner = train(fabric, 0.9, options.epochs, options.folder / "sparse.pt")
    found = accuracy(fabric, model)
    fabric.print(f"pruned gradually: accuracy {found:.4f}, sparsity {pruner.sparsity:.4f}")
    if torch.distributed.is_initialized():  # else threads of gloo may abort the process at exit
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
