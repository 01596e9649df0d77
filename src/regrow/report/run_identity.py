# SPDX-License-Identifier: MIT
"""Task, method, operating point, control of a run.

Settings decide, not names: two runs of equal settings but for the seed are one operating point,
operating points of equal settings but for the sparsity are one method.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from regrow.report.load import Run

_SEEDS = {"seed", "reinit"}


# How the data are served; everything else says which data they are.
SERVING = {"batch_size", "seed", "augment", "val_size", "num_workers", "workers", "pin_memory"}


# Overrides that change no result, or that the seed and the sparsity tell already.
_PLAIN = ("recipe", "seed", "force", "threads", "pruning.sparsity", "data.root", "data.download")


_PLAIN_GROUPS = ("hydra", "paths", "latency", "logger")


def fingerprint(value: Any) -> str:
    """A short hash of plain containers: equal content, equal hash."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def without_seeds(value: Any) -> Any:
    """Plain containers with every seed in them made the same; a seed that is unset stays unset.

    Example:
        >>> without_seeds({"lr": 0.1, "data": {"seed": 3}, "rewind": {"reinit": None}})
        {'lr': 0.1, 'data': {'seed': 'seed'}, 'rewind': {'reinit': None}}
    """
    if isinstance(value, Mapping):
        return {
            key: "seed" if key in _SEEDS and inner is not None else without_seeds(inner)
            for key, inner in value.items()
        }
    return [without_seeds(inner) for inner in value] if isinstance(value, list) else value


def task_key(run: Run) -> str:
    """The same for runs whose accuracies can be compared: same data, same model."""
    return fingerprint([_data(run), run.settings.get("model")])


def point_key(run: Run) -> str:
    """The same for runs that differ by their seed alone."""
    settings = without_seeds(dict(run.settings))
    if str(settings.get("start")).startswith("sha256:"):
        settings["start"] = "file"  # each seed may have its own
    return fingerprint(settings)


def method_key(run: Run) -> str:
    """The same for runs that differ by seed and sparsity alone."""
    settings = without_seeds(dict(run.settings))
    if str(settings.get("start")).startswith("sha256:"):
        settings["start"] = "file"
    settings["pruning"] = {**(settings.get("pruning") or {}), "sparsity": None}
    return fingerprint(settings)


def control_key(run: Run, *, seeds: bool = True) -> str:
    """The same for runs with the same dense control; without seeds, with the same but for those."""
    settings = {**run.settings, "pruning": {}}
    return fingerprint(settings if seeds else without_seeds(settings))


def data_name(run: Run) -> str:
    """The data, as `Digits` or `ImageFolder(size=64)`."""
    return called(_data(run))


def model_name(run: Run) -> str:
    """The exact architecture, as `ResNet(depth=20, width=16)`."""
    return called(run.settings.get("model") or {})


def called(node: Mapping[str, Any]) -> str:
    """A node with `_target_` as the call that it means, without its package.

    Example:
        >>> called({"_target_": "regrow.app.models.VGG", "depth": 16})
        'VGG(depth=16)'
    """
    name = str(node.get("_target_", "?")).rpartition(".")[2]
    given = [f"{k}={v}" for k, v in node.items() if not k.startswith("_")]
    return f"{name}({', '.join(given)})" if given else name


def method_names(runs: Sequence[Run]) -> dict[str, str]:
    """A short name for each method of one task, by `method_key`.

    The recipe's last word, and the overrides that not all of the methods have.
    """
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(method_key(run), run)
    words = {key: _telling(run) for key, run in first.items()}
    counts = Counter(word for given in words.values() for word in given)
    long = _ambiguous(str(run.result["recipe"]) for run in first.values())
    names = {}
    for key, run in first.items():
        recipe = str(run.result["recipe"])
        short = recipe if long else recipe.rpartition("/")[2].removesuffix(".yaml")
        own = [word for word in words[key] if counts[word] < len(first)]
        names[key] = " ".join([short, *own])
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    return {key: f"{name} #{key[:4]}" if name in twice else name for key, name in names.items()}


def _telling(run: Run) -> list[str]:
    """The overrides that may tell methods apart."""

    def plain(word: str) -> bool:
        name = word.partition("=")[0].lstrip("+~")
        return name in _PLAIN or name.partition(".")[0] in _PLAIN_GROUPS

    return [word for word in run.overrides if not plain(word)]


def _ambiguous(recipes: Iterable[str]) -> bool:
    """Whether two different recipes end in the same word."""
    ends = Counter(recipe.rpartition("/")[2] for recipe in {*recipes})
    return any(count > 1 for count in ends.values())


def _data(run: Run) -> dict[str, Any]:
    data = run.settings.get("data") or {}
    return {key: value for key, value in data.items() if key not in SERVING}
