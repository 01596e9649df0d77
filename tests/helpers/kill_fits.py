# SPDX-License-Identifier: MIT
"""Kill short fits at random moments and resume them; print the counts as JSON.

Usage: python kill_fits.py FOLDER SEED KILLS NAMES...

One process imports torch and Lightning, once; each fit runs in a fork of it.
"""

import gc
import json
import logging
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import fsspec.implementations.local as local
import lightning.pytorch.core.saving  # noqa: F401  # what a fit would import: forks share it
import torch
from fault_scenarios import SCENARIOS
from interrupted_fits import end_of, run
from tiny_fits import equal

import regrow.pruning.enforcer
import regrow.pruning.removed_weights
import regrow.pruning.state
import regrow.schedules.progress
from regrow import SparseModelCheckpoint
from regrow.io.checkpoints import read_checkpoint

# Where a fit may be stopped to the line: before or after these calls.
POINTS = [
    (torch, "save"), (local.LocalFileOpener, "write"), (os, "replace"), (local.shutil, "move"),
    (regrow.pruning.enforcer.MaskEnforcer, "set_mask"),
    (regrow.pruning.removed_weights.RemovedWeights, "store"),
    (regrow.pruning.state.MaskState, "record_event"), (regrow.pruning.state.MaskState, "enforce"),
    (regrow.schedules.progress.Progress, "mark_done"),
]  # fmt: skip


def fit(folder, make):
    """Trains from last.ckpt, if there is one, saving at every step."""
    last = folder / "last.ckpt"
    saving = SparseModelCheckpoint(folder, monitor="train/loss", every_n_train_steps=1)
    callbacks, settings = make()
    ckpt = last if last.exists() else None
    run(folder / "end.ckpt", *callbacks, saving, ckpt_path=ckpt, enable_checkpointing=True,
        **settings)  # fmt: skip


def die_at(draw):
    """Has this process kill itself at a random call of a random point."""
    owner, name = draw.choice(POINTS)
    left, after, whole = draw.randrange(1, 12), draw.random() < 0.5, getattr(owner, name)

    def act(*args, **kwargs):
        nonlocal left
        left -= 1
        if left == 0 and name == "write":  # half of a file is there
            whole(args[0], args[1][: len(args[1]) // 2])
            args[0].flush()
        if left == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = whole(*args, **kwargs)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, act)


def forked(folder, make, seed=None, wait=None, sign=None):
    """Runs a fit in a fork, kills it there, and returns the status with which it ended."""
    child = os.fork()
    if child == 0:
        try:
            sys.stdout = sys.stderr = open(folder / "log.txt", "a")  # noqa: SIM115
            if seed is not None:
                die_at(random.Random(seed))
            fit(folder, make)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc(file=sys.stderr)
            sys.stderr.flush()
            os._exit(1)
    if wait is not None:
        time.sleep(wait)
        os.kill(child, sign)  # a zombie takes it too
    return os.waitpid(child, 0)[1]


def broken_files(folder):
    """Files with their final name that are not whole."""
    bad = []
    for path in folder.glob("*.ckpt"):
        try:
            read_checkpoint(path)
        except Exception as error:
            bad.append(f"{path.name}: {error}")
    return bad


def campaign(folder, seed, kills, names):
    """Kill and resume fits until `kills` is reached; returns the counts."""
    draw = random.Random(seed)
    seen = {"kills": 0, "timer": 0, "term": 0, "point": 0, "runs": 0, "wrong": [], "broken": []}
    wholes, spans = {}, {}
    (folder / "warm").mkdir()
    fit(folder / "warm", SCENARIOS[names[0]])  # what a first fit imports, forks have
    gc.freeze()
    for name in names:
        (folder / name).mkdir(parents=True)
        start = time.monotonic()
        assert forked(folder / name, SCENARIOS[name]) == 0, (folder / name / "log.txt").read_text()
        spans[name], wholes[name] = time.monotonic() - start, end_of(folder / name / "end.ckpt")
    while seen["kills"] < kills:
        name = names[seen["runs"] % len(names)]
        place = folder / f"{name}-{seen['runs']}"
        place.mkdir()
        for _ in range(draw.randrange(3, 9)):
            kind = draw.choice(["timer", "point", "point", "term"])
            wait = None if kind == "point" else draw.uniform(0, 0.8 * spans[name])
            sign = signal.SIGTERM if kind == "term" else signal.SIGKILL
            point = draw.randrange(2**32) if kind == "point" else None
            status = forked(place, SCENARIOS[name], point, wait, sign)
            stopped = status != 0
            seen["kills"] += stopped
            seen[kind] += stopped
            seen["broken"] += [f"{place.name}: {bad}" for bad in broken_files(place)]
            if not stopped:
                break
        status = forked(place, SCENARIOS[name])
        if status or not equal(end_of(place / "end.ckpt"), wholes[name]):
            seen["wrong"].append(
                f"{place.name}: {status} {(place / 'log.txt').read_text()[-2000:]}"
            )
        seen["runs"] += 1
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    where, seed, kills, *names = sys.argv[1:]
    print(json.dumps(campaign(Path(where), int(seed), int(kills), names)))
