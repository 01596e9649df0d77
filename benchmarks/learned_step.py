# SPDX-License-Identifier: MIT
"""Claim: the time of a step that learns masks, relative to a dense step, within `Trainer.fit`.

LeNet-300-100, batches of 128, SGD with momentum, one thread: few operations per weight, so that the
relative cost of work per weight is largest. Fits take turns as in `trainer_overhead`; steps of the
second epoch are timed, during which masks are learned.
"""

import lightning.pytorch as pl
import torch
from _bench import arguments, ratio, show
from torch.utils.data import DataLoader
from trainer_overhead import AGAIN, BASE, BATCH, DENSE, LeNet, in_turns, rows_of

from regrow import LearnedMasks, MagnitudePruning, Table

SPARSITY = 0.9
SOFT = "soft=True"
LIMITS = {"str": 2.0, "cs": 2.5, "l0": 4.0, "edge_popup": 3.5}


def learned(method):
    return lambda: [LearnedMasks(method, SPARSITY, end="1000000it", keep_removed=False)]


def soft():
    return [MagnitudePruning(schedule=Table({"1it": SPARSITY}), soft=True)]


VARIANTS = {DENSE: list, SOFT: soft} | {m: learned(m) for m in LIMITS} | {AGAIN: list}


class Stop(pl.Callback):
    """End the fit after the timed epoch, while callbacks plan for a longer fit."""

    def on_train_epoch_end(self, trainer, *_):
        trainer.should_stop = trainer.current_epoch == 1


def fit(clock, callbacks, batches):
    """Seconds of CPU time of each step."""
    torch.set_num_threads(1)
    trainer = pl.Trainer(
        max_epochs=10**6,
        accelerator="cpu",
        callbacks=[clock, *callbacks, Stop()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(LeNet(), DataLoader(batches, batch_size=None))
    for callback in callbacks:
        assert getattr(callback, "changes_between_events", False) or callback.soft, (
            "it was not learning"
        )
    return clock.times


def main():
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=600, help="steps of an epoch")
    options = parser.parse_args()
    found = in_turns(VARIANTS, fit, options.steps)
    claims = {f"step of {m} / {BASE}": (ratio(found, m, BASE), most) for m, most in LIMITS.items()}
    title = f"learning masks, LeNet-300-100, batch {BATCH}, one thread"
    show(title, rows_of([found]), claims, options.out)


if __name__ == "__main__":
    main()
