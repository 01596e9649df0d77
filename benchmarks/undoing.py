# SPDX-License-Identifier: MIT
"""Claim: pruning can be undone, at any moment of a fit.

LeNet-300-100 on Fashion-MNIST with the settings of the recipes, 10 epochs, several seeds. At epoch
2, 98 % of the weights are pruned and restored at once: the network then equals the one that was
never pruned, bit-exactly, also an epoch later. At epoch 3 they are pruned again, and at epoch 6
they return in several ways. Writes docs/undoing.csv, and docs/undoing.svg with matplotlib
(`pip install regrow[plots]`).
"""

import csv
import logging
import statistics
import tempfile
import warnings
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from _bench import arguments, show
from _undoing_plot import draw
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import SGD

from regrow import MagnitudePruning, OneShot, Regrow
from regrow.app.data.fashion_mnist import FashionMNIST
from regrow.app.models.lenet import LeNet300100
from regrow.app.training.classifier import Classifier
from regrow.app.training.lr_schedules import cosine
from regrow.callbacks.core.base import Callback

SPARSITY, FIFTH = 0.98, 0.2
TRIED, PRUNED, BACK, REST, END = 2, 3, 6, 8, 10  # epochs
LOOKS = 4  # measurements of accuracy per epoch
DENSE, GROWN, STAYS = "never pruned", "a fifth by gradient, then the rest", "stays pruned"
# actions by epoch, beside those that all arms but the first have in common
ARMS = {
    DENSE: {},
    GROWN: {REST: lambda pruning: pruning.unprune()},  # and Regrow in its Trainer
    STAYS: {},
    "un-pruned": {BACK: lambda pruning: pruning.unprune()},
    "largest fifth un-pruned": {
        BACK: lambda pruning: pruning.regrow(FIFTH, by="removed", init="removed")
    },
    "He-initialised": {BACK: lambda pruning: pruning.regrow(1.0, init="he")},
    "He-initialised, survivors held": {
        BACK: lambda pruning: pruning.regrow(1.0, init="he", train="regrown")
    },
}


class Script(Callback):
    """Apply an arm's actions at the start of epochs, and measure before and after."""

    def __init__(self, pruning, acts, samples):
        self.pruning, self.acts = pruning, acts
        self.images, self.labels = samples
        self.rows, self.weights = [], {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        epoch, steps = trainer.current_epoch, trainer.num_training_batches
        looks = [round(look * steps / LOOKS) for look in range(LOOKS)]
        if batch_idx in looks:
            self.measure(pl_module, epoch + looks.index(batch_idx) / LOOKS)
        if batch_idx:
            return
        if epoch == TRIED and self.pruning is not None:
            self.pruning.prune_to(SPARSITY)
            self.pruning.unprune()
        if epoch in (TRIED, PRUNED):
            self.weights[epoch] = [p.detach().clone() for p in pl_module.parameters()]
        if epoch in self.acts:
            self.acts[epoch](self.pruning)

    def on_prune_event(self, trainer, pl_module, event):
        self.measure(pl_module, float(trainer.current_epoch), event.entry["kind"])

    def on_train_end(self, trainer, pl_module):
        self.measure(pl_module, float(END))

    @torch.no_grad()
    def measure(self, pl_module, epoch, event=""):
        right = pl_module.network(self.images).argmax(1) == self.labels
        sparsity = 0.0 if self.pruning is None else self.pruning.sparsity
        accuracy = 100 * right.double().mean().item()
        self.rows.append(
            {"epoch": epoch, "event": event, "sparsity": sparsity, "accuracy": accuracy}
        )


def fit(arm, seed, folder):
    """One fit; arms that are equal until `BACK` start from the first one's checkpoint."""
    pl.seed_everything(seed, verbose=False)
    data = FashionMNIST(batch_size=128, val_size=0.1, seed=seed)
    data.prepare_data()
    data.setup()
    parts = [*data.val_dataloader()]
    samples = tuple(torch.cat([part[place] for part in parts]) for place in range(2))
    optimizer = partial(SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    model = Classifier(LeNet300100(), optimizer, cosine, num_classes=10)
    pruning = None
    if arm != DENSE:
        once = OneShot(f"{PRUNED}ep")
        pruning = MagnitudePruning(SPARSITY, schedule=once, keep_removed="moments")
    script = Script(pruning, ARMS[arm], samples)
    callbacks = [script] if pruning is None else [script, pruning]
    if arm == GROWN:
        callbacks.append(Regrow(f"{BACK}ep", FIFTH, by="gradient", init="zero"))
        callbacks.append(ModelCheckpoint(folder, f"{seed}", every_n_epochs=BACK))
    trainer = pl.Trainer(
        max_epochs=END,
        accelerator="cpu",
        callbacks=callbacks,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=arm == GROWN,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    shared = arm not in (DENSE, GROWN)
    trainer.fit(model, datamodule=data, ckpt_path=folder / f"{seed}.ckpt" if shared else None)
    return script


def trained(seeds, folder):
    """Rows by arm and seed, and by how much two epochs' weights differ from the dense fit's."""
    rows, differences = {arm: [] for arm in ARMS}, []
    for seed in seeds:
        scripts = {arm: fit(arm, seed, folder) for arm in ARMS}
        common = [row for row in scripts[GROWN].rows if row["epoch"] < BACK]
        for arm, script in scripts.items():
            rows[arm].append(script.rows if arm in (DENSE, GROWN) else common + script.rows)
        for epoch, weights in scripts[DENSE].weights.items():
            pairs = zip(weights, scripts[GROWN].weights[epoch], strict=True)
            differences += [(one - other).abs().max().item() for one, other in pairs]
    return rows, differences


def curves(rows):
    """One row for each arm and time: mean, lowest and highest accuracy over seeds."""
    found = []
    for arm, fits in rows.items():
        for moment in zip(*fits, strict=True):
            accuracies = [row["accuracy"] for row in moment]
            found.append(
                {
                    "arm": arm,
                    "epoch": moment[0]["epoch"],
                    "event": moment[0]["event"],
                    "sparsity": round(moment[0]["sparsity"], 6),
                    "accuracy": round(statistics.mean(accuracies), 4),
                    "lowest": round(min(accuracies), 4),
                    "highest": round(max(accuracies), 4),
                }
            )
    return found


def at(points, arm, epoch, last=True):
    """Accuracy of an arm at an epoch, after its actions or before them."""
    here = [p["accuracy"] for p in points if p["arm"] == arm and p["epoch"] == epoch]
    return here[-1 if last else 0]


def main():
    parser = arguments(__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the picture")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        rows, differences = trained(seeds, Path(folder))
    points = curves(rows)
    options.docs.mkdir(exist_ok=True)
    with (options.docs / "undoing.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, points[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(points)
    draw(options.docs / "undoing.csv", options.docs / "undoing.svg")
    table = [
        {
            "from epoch 6 on": arm,
            "just before": at(points, arm, BACK, last=False),
            "at once": at(points, arm, BACK),
            "an epoch later": at(points, arm, BACK + 1),
            "at the end": at(points, arm, END),
        }
        for arm in ARMS
    ]
    tried = [[r["accuracy"] for r in one if r["epoch"] == TRIED] for one in rows[GROWN]]
    dense, stays, back = (at(points, arm, END) for arm in (DENSE, STAYS, "un-pruned"))
    claims = {
        "largest difference of a weight from never pruned, at once and an epoch later": (
            max(differences),
            0,
        ),
        "largest difference of accuracy, before pruning and after un-pruning": (
            max(abs(one[0] - one[-1]) for one in tried),
            0,
        ),
        "share of the loss that is left, un-pruned at epoch 6": (
            (dense - back) / (dense - stays),
            0.5,
        ),
    }
    title = f"LeNet-300-100, Fashion-MNIST, 98 %, validation accuracy, {len(seeds)} seeds"
    show(title, table, claims, options.out)


if __name__ == "__main__":
    main()
