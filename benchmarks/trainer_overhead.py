# SPDX-License-Identifier: MIT
"""Claim: training with masks costs at most 1.08 times dense training, within `Trainer.fit`.

LeNet-300-100, batches of 128, SGD with momentum, one thread, compared with Lightning's
`ModelPruning`. Four fits run in one process and take turns, so that other load on the machine
affects all of them equally. A turn lasts several steps, of which the first are not timed, because a
fit that runs alone finds its weights in the cache. Each fit prunes in its first epoch; steps of the
second epoch are timed. That is repeated in five processes, since where memory lies matters: medians
and the range of the five are printed. Most of the cost is two passes over all weights, which other
load on the memory slows down more than matrix products.
"""

import itertools
import logging
import statistics
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import lightning.pytorch as pl
import torch
from _bench import arguments, in_child, ratio, show
from lightning.pytorch.callbacks import Callback, ModelPruning
from torch import nn
from torch.utils.data import DataLoader

from regrow import MagnitudePruning

DENSE, AGAIN, BASE = "dense", "dense again (null control)", "mean of both dense"
OURS, THEIRS = "regrow MagnitudePruning", "Lightning ModelPruning"
BATCH, SPARSITY = 128, 0.9
BLOCK, WARM = 20, 3  # steps of a turn, and how many of them warm up the cache


class LeNet(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
        )

    def training_step(self, batch, _):
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Ring:
    """Run threads one at a time, each once per cycle, every cycle in another order."""

    def __init__(self, members):
        orders = itertools.cycle(itertools.permutations(range(members)))
        self.turns = itertools.chain.from_iterable(orders)
        self.turn, self.moved = next(self.turns), threading.Condition()

    def wait(self, member):
        with self.moved:
            mine = self.moved.wait_for(lambda: self.turn == member, timeout=300)
            assert mine, "another fit is stuck"

    def hand_on(self):
        with self.moved:
            self.turn = next(self.turns)
            self.moved.notify_all()


class Clock(Callback):
    """CPU time of each step of the second epoch, from the start of a step to the next start."""

    def __init__(self, ring, member):
        self.ring, self.member, self.times, self.start = ring, member, [], None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch != 1:
            return
        place = batch_idx % BLOCK
        if place > WARM:
            self.times.append(time.thread_time() - self.start)
        if place == 0:
            if batch_idx:
                self.ring.hand_on()
            self.ring.wait(self.member)
        self.start = time.thread_time()

    def on_train_epoch_end(self, trainer, *_):
        if trainer.current_epoch == 1:
            self.ring.hand_on()


def ours():
    return [MagnitudePruning(SPARSITY, schedule="one_shot", begin=0, keep_removed=False)]


def theirs():
    return [
        ModelPruning(
            "l1_unstructured",
            parameter_names=["weight"],
            amount=SPARSITY,
            apply_pruning=lambda epoch: epoch == 0,
            use_lottery_ticket_hypothesis=False,
        )
    ]


VARIANTS = {DENSE: list, OURS: ours, THEIRS: theirs, AGAIN: list}


def fit(clock, callbacks, batches):
    """Seconds of CPU time of each step."""
    torch.set_num_threads(1)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[clock, *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = LeNet()
    trainer.fit(model, DataLoader(batches, batch_size=None))
    weights = [layer.weight for layer in model.net if isinstance(layer, nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros == (round(SPARSITY * 266_200) if callbacks else 0), zeros
    return clock.times


def in_turns(variants, run, steps):
    """Seconds of CPU time of each step of fits that take turns; `BASE` is the mean of both dense.

    Args:
        variants: Callbacks by name, `DENSE` and `AGAIN` among them.
        run: `(clock, callbacks, batches) -> seconds`.
        steps: Of an epoch.
    """
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    images, labels = torch.randn(60, BATCH, 784), torch.randint(10, (60, BATCH))
    batches = [(images[i % 60], labels[i % 60]) for i in range(steps)]
    ring = Ring(len(variants))
    with ThreadPoolExecutor(len(variants)) as pool:
        fits = {
            name: pool.submit(run, Clock(ring, member), make(), batches)
            for member, (name, make) in enumerate(variants.items())
        }
        found = {name: running.result() for name, running in fits.items()}
    torch.set_num_threads(1)
    controls = zip(found[DENSE], found[AGAIN], strict=True)
    return found | {BASE: [(one + other) / 2 for one, other in controls]}


def rows_of(runs):
    """A row for each variant, of the results of `in_turns` of one or more processes."""
    rows = []
    for name in runs[0]:
        if name != BASE:
            ratios = [ratio(found, name, BASE) for found in runs]
            times = [statistics.median(found[name]) for found in runs]
            row = {"variant": name, "microseconds a step": 1e6 * statistics.median(times)}
            row[f"time / {BASE}"] = statistics.median(ratios)
            rows.append(row | {"lowest": min(ratios), "highest": max(ratios)})
    return rows


def main():
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=1200, help="steps of an epoch")
    parser.add_argument("--runs", type=int, default=5, help="processes")
    options = parser.parse_args()
    runs = [in_child(in_turns, VARIANTS, fit, options.steps) for _ in range(options.runs)]
    rows = rows_of(runs)
    [measured] = (row[f"time / {BASE}"] for row in rows if row["variant"] == OURS)
    claims = {f"step of {OURS} / {BASE}": (measured, 1.08)}
    title = f"Trainer.fit, LeNet-300-100, batch {BATCH}, one thread"
    show(title, rows, claims, options.out)


if __name__ == "__main__":
    main()
