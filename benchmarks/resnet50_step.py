# SPDX-License-Identifier: MIT
"""Claim: a whole training step of ResNet-50 with masks costs at most 1.05 times a dense one.

Batches of 32 noise images of 224 x 224, SGD with momentum, one thread, within `Trainer.fit`:
forward, backward, optimizer and callbacks. Four fits run in one process and take turns step by
step, every round in another order, so that other load on the machine affects all of them equally.
Masks exist from the first step, which is not timed: 80 % of the weights, or channels with half of
the MACs, masked but not cut out.
"""

import logging
import statistics
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import lightning.pytorch as pl
import torch
import torchvision
from _bench import arguments, ratio, show
from torch.utils.data import DataLoader
from trainer_overhead import Ring

from regrow import ChannelPruning, MagnitudePruning
from regrow.app.training.classifier import Classifier

DENSE, AGAIN, BASE = "dense", "dense again (null control)", "mean of both dense"
WEIGHTS = "MagnitudePruning, 80 % of the weights"
CHANNELS = "ChannelPruning, half of the MACs, masked"
SPARSITY = 0.8


class Clock(pl.Callback):
    """CPU time of each step but the first, from the start of a step to the start of the next."""

    def __init__(self, ring, member):
        self.ring, self.member, self.times, self.start = ring, member, [], None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx > 1:
            self.times.append(time.thread_time() - self.start)
        if batch_idx:
            self.ring.hand_on()
        self.ring.wait(self.member)
        self.start = time.thread_time()

    def on_train_end(self, *_):
        self.ring.hand_on()


class Patient(Ring):
    """Take turns that may last minutes."""

    def wait(self, member):
        with self.moved:
            assert self.moved.wait_for(lambda: self.turn == member, timeout=1800)


def weights():
    return [MagnitudePruning(SPARSITY, schedule="one_shot", begin=0, keep_removed=False)]


def channels():
    # found on small images: the network is the same
    example = torch.zeros(2, 3, 64, 64)
    return [
        ChannelPruning(
            0.5, of="macs", schedule="one_shot", begin=0, compact=None, example_input=example
        )
    ]


VARIANTS = {DENSE: list, WEIGHTS: weights, CHANNELS: channels, AGAIN: list}


def fit(clock, callbacks, batches):
    """Seconds of CPU time of each timed step."""
    torch.set_num_threads(1)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[clock, *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    network = torchvision.models.resnet50()
    model = Classifier(network, sgd, num_classes=1000, input_shape=(3, 224, 224))
    trainer.fit(model, DataLoader(batches, batch_size=None))
    for callback in callbacks:
        print(f"{type(callback).__name__}: {callback.sparsity:.4f} masked", flush=True)
        assert abs(callback.sparsity - callback.final) < 0.02
    return clock.times


def main():
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pixels", type=int, default=224)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    images = torch.randn(options.batch, 3, options.pixels, options.pixels)
    # the last step has no next one to end at
    batches = [(images, torch.randint(1000, (options.batch,)))] * (options.rounds + 2)
    ring = Patient(len(VARIANTS))
    with ThreadPoolExecutor(len(VARIANTS)) as pool:
        fits = {
            name: pool.submit(fit, Clock(ring, member), make(), batches)
            for member, (name, make) in enumerate(VARIANTS.items())
        }
        found = {name: running.result() for name, running in fits.items()}
    controls = zip(found[DENSE], found[AGAIN], strict=True)
    found[BASE] = [(one + other) / 2 for one, other in controls]
    rows = [
        {
            "variant": name,
            "seconds a step": statistics.median(found[name]),
            f"time / {BASE}": ratio(found, name, BASE),
        }
        for name in VARIANTS
    ]
    claims = {
        f"step with {name} / {BASE}": (ratio(found, name, BASE), 1.05)
        for name in (WEIGHTS, CHANNELS)
    }
    title = f"ResNet-50, a step of {options.batch} images of {options.pixels} pixels, one thread"
    show(title, rows, claims, options.out)


if __name__ == "__main__":
    main()
