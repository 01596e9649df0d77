# SPDX-License-Identifier: MIT
"""Make results of jobs in the format of `regrow train`, without training."""

import copy
import hashlib
import json
from pathlib import Path

from regrow.report.load import Run
from regrow.report.tasks import make_tasks

TRAINER = {"_target_": "lightning.Trainer", "max_epochs": 20, "devices": 1, "precision": "32-true"}
SETTINGS = {
    "model": {"_target_": "somewhere.Net", "width": 16},
    "data": {"_target_": "somewhere.Digits", "batch_size": 64, "seed": 0, "augment": None},
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9},
    "scheduler": {"_target_": "somewhere.cosine"},
    "pruning": {"_target_": "regrow.MagnitudePruning", "sparsity": 0.9, "seed": 0},
    "trainer": TRAINER,
    "callbacks": {},
    "seed": 0,
    "start": "scratch",
    "dense_epochs": None,
    "finetune": {"lr": None, "batch_size": None},
    "monitor": "val/accuracy",
    "monitor_mode": "max",
}
LATENCY = {"median": 2.0, "p25": 1.9, "p75": 2.2, "device": "cpu", "threads": 1, "batch": 1}
# 1000 parameters, of which 800 can be pruned
DENSE = {"accuracy": 0.97, "loss": 0.1, "params": 1000, "macs": 5000, "bytes": 4000}


def merged(old, new):
    """Nested dicts, the new values over the old ones."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {key: merged(old.get(key), value) for key, value in new.items()}


def settings(method="gmp", sparsity=0.9, seed=0, **changes):
    pruning = {"name": method, "sparsity": sparsity}
    own = {"pruning": pruning, "seed": seed, "data": {"seed": seed}}
    return merged(merged(copy.deepcopy(SETTINGS), own), changes)


def result(method="gmp", sparsity=0.9, seed=0, accuracy=0.95, control=0.97, setting=(), **changes):
    """A result; `setting` changes its settings, `changes` the result itself."""
    params = 1000 - round(800 * sparsity)
    content = {
        "format": 2,
        "recipe": f"digits/{method}",
        "overrides": [f"recipe=digits/{method}", f"pruning.sparsity={sparsity}", f"seed={seed}"],
        "settings": settings(method, sparsity, seed, **dict(setting)),
        "seed": seed,
        "versions": {"python": "3.11.7", "regrow": "0.1.0", "torch": "2.13.0"},
        "device": "x86_64",
        "threads": 1,
        "batch": 1,
        "dense": DENSE | {"accuracy": control, "latency_ms": LATENCY},
        "pruned": DENSE | {"accuracy": accuracy, "params": params, "macs": 5 * params}
        | {"latency_ms": LATENCY | {"median": 1.6}},
        "epochs": 20,
        "levels": [],
        "history": [],
        "of": "weights",
        "sparsity": sparsity,
        "sparsity_total": 0.8 * sparsity,
        "layers": {"conv.weight": sparsity / 2, "fc.weight": sparsity},
        "excluded": {"fc.bias": "bias of Linear: only when included by name"},
        "accuracy_drop": control - accuracy,
        "compression": 1000 / params,
        "theoretical_speedup": 1000 / params,
        "measured_speedup": 1.25,
        "speed": {"ratio": 1.25, "low": 1.2, "high": 1.3, "noise": 1.05, "verdict": "faster"},
        "seconds": 7.5,
        "verdict": "2 points lost",
    }  # fmt: skip
    content = merged(content, changes)
    told = json.dumps(content["settings"], sort_keys=True).encode()
    return {"config_hash": hashlib.sha256(told).hexdigest()[:16]} | content


def dense_result(seed=0, accuracy=0.97):
    """Of a run without pruning: the block has no latency."""
    block = DENSE | {"accuracy": accuracy}
    content = result("dense", 0.0, seed) | {"dense": block, "pruned": None}
    content["settings"]["pruning"] = {}
    gone = ("of", "sparsity", "sparsity_total", "layers", "excluded", "accuracy_drop")
    gone += ("compression", "theoretical_speedup", "measured_speedup", "speed")
    return {key: value for key, value in content.items() if key not in gone} | {
        "config_hash": f"dense{seed}"
    }


def write(folder, content, metrics=None):
    """A job's folder with its result."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(content))
    (folder / "run.json").write_text("{}")
    if metrics is not None:
        (folder / "logs").mkdir(exist_ok=True)
        (folder / "logs" / "metrics.csv").write_text(metrics)
    return folder


def runs(*contents):
    """Runs that were never written."""
    return [Run(Path(f"job{i}"), content, f"job{i}") for i, content in enumerate(contents)]


def task(*contents):
    """The one task of some results."""
    (one,) = make_tasks(runs(*contents))
    return one
