# SPDX-License-Identifier: MIT
"""Unfair comparisons, too few seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from numbers import Real
from typing import Any, NamedTuple

from regrow.report.advice import Advice, Named, format_groups, listing, who_has_what
from regrow.report.hover_text import percent
from regrow.report.load import Run
from regrow.report.run_identity import SERVING
from regrow.report.statistics import Point, Series
from regrow.report.table import start_name

ENOUGH = 3


_NEAR = 0.02  # two densities within this fraction of each other are compared


def uncertain(series: Sequence[Series]) -> list[Advice]:
    """What the seeds of one task do not allow to say."""
    return [*_few_seeds(series), *_overlapping(series)]


def near(one: Point, other: Point) -> bool:
    """Whether two points have about the same sparsity of the same thing.

    The densities decide: 98 and 98.5 % are far apart, 30 and 30.5 % are not.
    """
    if one.rows[0].values["of"] != other.rows[0].values["of"]:
        return False
    less, more = sorted(1 - point.x["sparsity"].mean for point in (one, other))
    return more - less <= _NEAR * more


def _few_seeds(series: Sequence[Series]) -> Iterator[Advice]:
    few = tuple(
        f"{one.name} at {_at(point)}: {len(point.seeds)}."
        for one in series
        for point in one.points
        if len(point.seeds) < ENOUGH
    )
    if few:
        todo = "Add seeds, seed=0,1,2: finished jobs are not run again."
        yield Advice("Fewer than three seeds", few, todo)


def _overlapping(series: Sequence[Series]) -> Iterator[Advice]:
    """Pairs of methods whose intervals overlap."""
    pairs = [
        (a.x["sparsity"].mean, f"At {_at(a)}: {_told(one, a)} and {_told(other, b)}.")
        for one, other in combinations(series, 2)
        for a in one.points
        for b in other.points
        if near(a, b) and a.y["accuracy"].overlaps(b.y["accuracy"])
    ]
    if pairs:
        yield Advice(
            "No clear difference: the intervals mean ± standard deviation overlap",
            tuple(text for _, text in sorted(pairs)),
            "Do not rank these: say that they are level, or add seeds (seed=0,1,2,3,4).",
        )


def _told(series: Series, point: Point) -> str:
    return f"{series.name} {percent(point.y['accuracy'])}"


def _at(point: Point) -> str:
    return f"{100 * point.x['sparsity'].mean:.4g} %"


# What has a check of its own, or cannot change a network.
_OWN = {"lr", "batch_size", "seed", "max_epochs", "num_workers", "workers", "pin_memory"}
_OWN |= {"_partial_", "devices", "strategy", "accelerator", "fast_dev_run", "deterministic"}


class Same(NamedTuple):
    """What must be the same for all methods of a task."""

    title: str
    value: Callable[[Run], Any]
    what: str
    todo: str


def total_epochs(run: Run) -> str:
    """The epochs of all training before and after pruning, in words."""
    epochs = run.result.get("epochs")
    if isinstance(epochs, Real):
        return str(epochs)
    fitted = (run.settings.get("trainer") or {}).get("max_epochs")
    return f"{fitted} after a checkpoint of unknown training"


def batches(run: Run) -> str:
    """The batch size of the fit in which pruning took place, and on how many devices."""
    devices = (run.settings.get("trainer") or {}).get("devices", 1)
    return str(run.batch_size) + (f" on each of {devices} devices" if devices != 1 else "")


def timed_on(run: Run) -> str | None:
    """Where and how latency was measured; None where it was not."""
    latency = (run.pruned or {}).get("latency_ms")
    if not latency:
        return None
    threads = f"threads {latency.get('threads')}, batch {latency.get('batch')}"
    return f"{latency.get('device')} {run.result.get('device', '')}".strip() + f", {threads}"


def versions(run: Run) -> str:
    """What the numbers were made with."""
    return listing((f"{name} {version}" for name, version in run.result["versions"].items()), 99)


SAME = (
    Same(
        "Different total epochs",
        total_epochs,
        "Epochs in all, dense training included",
        "Give every method the same budget: trainer.max_epochs=... and dense_epochs=...",
    ),
    Same(
        "Different learning rates",
        lambda run: run.rate if run.pruned is not None else None,
        "Learning rate of the fit with pruning",
        "Write the same finetune.lr=... (or optimizer.lr=...) for all, or tune it for each method "
        "on validation and say so",
    ),
    Same(
        "Different batch sizes",
        lambda run: batches(run) if run.pruned is not None else None,
        "Batch size of the fit with pruning",
        "Write the same finetune.batch_size=... (or data.batch_size=...) for all",
    ),
    Same(
        "Different versions",
        versions,
        "Made with",
        "Run the older jobs again in one environment: force=true",
    ),
    Same(
        "Latency measured differently",
        timed_on,
        "Device, threads and batch",
        "Compare latencies of one device only: measure all jobs on the same one, with the same "
        "threads=... and latency.batch=...",
    ),
    Same(
        "Sparsity of different things",
        lambda run: run.result.get("of") if run.pruned is not None else None,
        "Sparsity counts",
        "Compare them by compression, MACs or latency, not by sparsity",
    ),
)


def unfair(runs: Named) -> list[Advice]:
    """What makes the runs of one task unfair to compare, apart from their seeds.

    Args:
        runs: The runs of one data set and model, with the names of their methods.
    """
    found = [advice for check in SAME for advice in _differing(runs, check)]
    pruned = [(name, run) for name, run in runs if run.pruned is not None]
    return [*found, *_training(pruned), *_starts(pruned), *_chosen_on_test(runs)]


def _differing(runs: Named, check: Same) -> Iterator[Advice]:
    values = who_has_what(runs, check.value)
    values.pop(None, None)
    if len(values) > 1:
        yield Advice(check.title, (f"{check.what}: {format_groups(values)}.",), f"{check.todo}.")


def _training(runs: Named) -> Iterator[Advice]:
    """Optimizer, schedule, augmentation and the like, setting by setting."""
    every = [(name, _flat(_how(run))) for name, run in runs]
    differing = []
    for key in dict.fromkeys(key for _, flat in every for key in flat):
        values: dict[Hashable, list[str]] = {}
        for name, flat in every:
            names = values.setdefault(flat.get(key, "not set"), [])
            if name not in names:
                names.append(name)
        if len(values) > 1:
            differing.append(f"{key} is {format_groups(values)}.")
    if differing:
        yield Advice(
            "Different training",
            tuple(differing),
            "Train all methods alike, or say that the difference belongs to the method.",
        )


def _starts(runs: Named) -> Iterator[Advice]:
    """Different trained networks to start from, at the same seed.

    Starting from scratch is no checkpoint, but differs from one that was given, whose training
    nobody counted. How long a job trains its own dense network first is its affair where all have
    the same epochs in all.
    """
    alike = len({total_epochs(run) for _, run in runs}) == 1
    by_seed: dict[int, dict[str, tuple[Run, list[str]]]] = {}
    for name, run in runs:
        _, names = by_seed.setdefault(run.result["seed"], {}).setdefault(
            _start(run, alike), (run, [])
        )
        if name not in names:
            names.append(name)
    for seed, starts in sorted(by_seed.items()):
        given = any(
            run.settings.get("start") not in (None, "scratch") for run, _ in starts.values()
        )
        kinds = starts if given else {k: v for k, v in starts.items() if k != "scratch"}
        if len(kinds) > 1:
            parts = (
                f"{start_name(run) if kind.startswith('sha') else kind} ({listing(names)})"
                for kind, (run, names) in kinds.items()
            )
            yield Advice(
                "Different starting checkpoints",
                (f"At seed {seed}: {listing(parts, 6)}.",),
                "Start all methods from one network: start=PATH of one dense run of that seed.",
            )
            return  # one seed shows it


def _start(run: Run, any_epochs: bool) -> str:
    """Where the weights before pruning came from; `_how` covers other differences."""
    if run.settings.get("start") is not None:
        return str(run.settings["start"])
    trainer, optimizer = run.settings.get("trainer") or {}, run.settings.get("optimizer") or {}
    own = run.settings.get("dense_epochs")
    epochs = (
        "" if any_epochs else f" for {trainer.get('max_epochs') if own is None else own} epochs"
    )
    batch = (run.settings.get("data") or {}).get("batch_size")
    return f"trained dense first{epochs}, lr={optimizer.get('lr')}, batch {batch}"


def _chosen_on_test(runs: Named) -> Iterator[Advice]:
    names = dict.fromkeys(n for n, run in runs if any(m.startswith("test") for m in _monitors(run)))
    if names:
        yield Advice(
            "Chosen on the test set",
            (f"A checkpoint or a sparsity was chosen by test accuracy: {listing(names)}.",),
            "Choose on validation, monitor=val/accuracy: what is chosen on the test set looks "
            "better there than it is.",
        )


def _monitors(run: Run) -> Iterator[str]:
    """Every metric by which something is chosen."""
    for key, value in _flat(run.settings).items():
        if key.rpartition(".")[2] == "monitor":
            yield json.loads(value) or ""


def _how(run: Run) -> dict[str, Any]:
    """How a network is trained, apart from what has its own check."""
    data = {k: v for k, v in (run.settings.get("data") or {}).items() if k in SERVING}
    parts = {name: run.settings.get(name) for name in ("optimizer", "scheduler", "trainer")}
    return {**parts, "data": data}


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """Nested settings as dotted names with JSON values."""
    if not isinstance(value, Mapping):
        return {name: json.dumps(value, default=str)}
    flat: dict[str, str] = {}
    for key, inner in value.items():
        if key not in _OWN or not name:
            flat |= _flat(inner, f"{name}.{key}" if name else str(key))
    return flat
