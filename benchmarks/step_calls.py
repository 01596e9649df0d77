# SPDX-License-Identifier: MIT
"""Claim: a training step without an event makes at most 14 Python calls of regrow's own functions.

And at most 6 of its frames lie between Lightning's hook and the mask enforcer when an event
happens. Both are counted with `sys.setprofile` in a fit of a small network with one
`MagnitudePruning`: automatic optimisation, one optimizer, no AMP.
"""

import logging
import sys
import warnings
from collections import Counter
from pathlib import Path

import lightning.pytorch as pl
import torch
from _bench import arguments, show
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader

import regrow
from regrow import MagnitudePruning
from regrow.pruning import enforcer

ROOT = str(Path(regrow.__file__).parent)
STEPS, EVENT = 12, 5


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Count(Callback):
    """Counts calls by file and function from each batch's start to the next one's."""

    def __init__(self):
        self.steps: list[Counter[str]] = []
        self.event: list[str] = []  # the frames from the hook to the enforcer

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.steps.append(Counter())
        sys.setprofile(self.profile)

    def on_train_end(self, trainer, pl_module):
        sys.setprofile(None)

    def profile(self, frame, kind, arg):
        code = frame.f_code
        if kind != "call" or not code.co_filename.startswith(ROOT):
            return
        self.steps[-1][f"{code.co_filename[len(ROOT) + 1 :]} {code.co_qualname}"] += 1
        checks = ("find_live", "is_sample_live")
        inside = code.co_filename == enforcer.__file__ and code.co_name not in checks
        if len(self.steps) == EVENT + 1 and inside:
            self.event = self.event or path_from_hook(frame)


def path_from_hook(frame):
    """Our frames above this one, the first of them called by Lightning."""
    found = []
    while frame is not None:
        if frame.f_code.co_filename.startswith(ROOT):
            found.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return found[::-1]


def main():
    options = arguments(__doc__.splitlines()[0]).parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    batch = (torch.randn(4, 8), torch.randint(2, (4,)))
    count = Count()
    pruning = MagnitudePruning(0.5, schedule="one_shot", begin=f"{EVENT}it", keep_removed=False)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[count, pruning],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), DataLoader([batch] * STEPS, batch_size=None))
    sys.setprofile(None)
    before, after = count.steps[EVENT - 2], count.steps[-3]
    rows = [
        {"function": name, "before the event": before[name], "after the event": after[name]}
        for name in sorted(before.keys() | after.keys())
    ]
    between = len(count.event) - 2  # without the hook itself and the enforcer's function
    print(" -> ".join(count.event))
    claims = {
        "calls a step before the event": (before.total(), 14),
        "calls a step after the event": (after.total(), 14),
        "frames between hook and enforcer": (between, 6),
    }
    show("calls of regrow's functions in a training step", rows, claims, options.out)


if __name__ == "__main__":
    main()
