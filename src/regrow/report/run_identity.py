# SPDX-License-Identifier: MIT
"""Decide which runs belong together (task, method, operating point, dense baseline).

Settings decide, not names: runs whose settings differ by the seed alone are one operating point;
operating points whose settings differ by the sparsity alone are one method.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from regrow.report.load import Run

_SEEDS = {"seed", "reinit"}
# Settings of how data are loaded; all other data settings identify the data.
SERVING = {"batch_size", "seed", "augment", "val_size", "num_workers", "workers", "pin_memory"}
# Overrides that change no result, or that repeat the seed or the sparsity.
_IRRELEVANT = {
    *("recipe", "seed", "force", "threads", "pruning.sparsity", "data.root", "data.download"),
    *("hydra", "paths", "latency", "logger"),
}


def hash_settings(value: Any) -> str:
    """Compute a short hash of nested settings; equal content has an equal hash."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def without_seeds(value: Any) -> Any:
    """Replace every seed in nested settings by the same word; unset seeds stay unset."""
    if isinstance(value, Mapping):
        return {
            key: "seed" if key in _SEEDS and inner is not None else without_seeds(inner)
            for key, inner in value.items()
        }
    return [without_seeds(inner) for inner in value] if isinstance(value, list) else value


def task_key(run: Run) -> str:
    """Return a key of the data, the model, and the metric if it is another than accuracy."""
    return hash_settings([_data(run), run.setting("model"), *other_metric(run)])


def other_metric(run: Run) -> list[str]:
    """Return the name of the metric that the run has in place of the accuracy, if any."""
    metric = str(run.result.get("metric", "accuracy"))
    return [] if metric == "accuracy" else [metric]


def point_key(run: Run) -> str:
    """Return a key of all settings but the seed."""
    settings = without_seeds(dict(run.settings))
    if str(settings.get("start")).startswith("sha256:"):
        settings["start"] = "file"  # each seed may have its own
    return hash_settings(settings)


def method_key(run: Run) -> str:
    """Return a key of all settings but the seed and the sparsity."""
    pruning = {**(run.setting("pruning") or {}), "sparsity": None}
    return point_key(Run(run.folder, {"settings": {**run.settings, "pruning": pruning}}))


def baseline_key(run: Run, *, seeds: bool = True) -> str:
    """Return a key of the settings of a run's dense baseline, with or without its seeds."""
    settings = {**run.settings, "pruning": {}}
    return hash_settings(settings if seeds else without_seeds(settings))


def data_name(run: Run) -> str:
    """Name the data, such as `Digits` or `ImageFolder(size=64)`."""
    return format_call(_data(run))


def model_name(run: Run) -> str:
    """Name the model with its arguments, such as `ResNet(depth=20, width=16)`."""
    return format_call(run.setting("model") or {})


def format_call(node: Mapping[str, Any]) -> str:
    """Format a config node with `_target_` as a call without the package, `VGG(depth=16)`."""
    name = str(node.get("_target_", "?")).rpartition(".")[2]
    arguments = [f"{k}={v}" for k, v in node.items() if not k.startswith("_")]
    return f"{name}({', '.join(arguments)})" if arguments else name


def method_names(runs: Sequence[Run]) -> dict[str, str]:
    """Make a short name for each method of one task, by `method_key`.

    The name is the last part of the recipe, with the overrides that not all methods have.
    """
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(method_key(run), run)
    overrides = {key: _relevant_overrides(run) for key, run in first.items()}
    counts = Counter(word for words in overrides.values() for word in words)
    recipes = {key: str(run.result["recipe"]) for key, run in first.items()}
    ends = Counter(recipe.rpartition("/")[2] for recipe in {*recipes.values()})
    names = {}
    for key, recipe in recipes.items():
        short = recipe.rpartition("/")[2].removesuffix(".yaml")
        own = [word for word in overrides[key] if counts[word] < len(first)]
        names[key] = " ".join([recipe if max(ends.values()) > 1 else short, *own])
    repeated = {name for name, count in Counter(names.values()).items() if count > 1}
    return {key: f"{name} #{key[:4]}" if name in repeated else name for key, name in names.items()}


def _relevant_overrides(run: Run) -> list[str]:
    """Return the overrides that may distinguish methods."""
    names = [word.partition("=")[0].lstrip("+~") for word in run.overrides]
    return [
        word
        for word, name in zip(run.overrides, names, strict=True)
        if not {name, name.partition(".")[0]} & _IRRELEVANT
    ]


def _data(run: Run) -> dict[str, Any]:
    return {k: value for k, value in (run.setting("data") or {}).items() if k not in SERVING}
