# SPDX-License-Identifier: MIT
"""Warnings about unfair comparisons and too few seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from numbers import Real
from typing import Any, NamedTuple

from regrow.report.load import Run
from regrow.report.run_identity import SERVING
from regrow.report.statistics import Point, Series
from regrow.report.table import describe_start, names_by_value
from regrow.utils.errors import join_limited

MIN_SEEDS = 3
_NEAR = 0.02  # points whose densities differ by at most this fraction are compared
# Settings that have a check of their own, or cannot change a network.
_NOT_COMPARED = {
    *("lr", "batch_size", "seed", "max_epochs", "num_workers", "workers", "pin_memory"),
    *("_partial_", "devices", "strategy", "accelerator", "fast_dev_run", "deterministic"),
}
NamedRuns = Sequence[tuple[str, Run]]  # runs with the names of their methods


class Advice(NamedTuple):
    """One warning; its text is the title, and the finding if there is one only."""

    title: str  # what makes the comparison unfair
    findings: tuple[str, ...]  # one sentence each, with the methods concerned
    todo: str

    def __str__(self) -> str:
        only = self.findings[0] if len(self.findings) == 1 else ""
        return f"{self.title}: {only}" if only else self.title


def count_of(number: int, noun: str) -> str:
    """Format a number with its noun."""
    return f"{number} {noun}{'s' * (number != 1)}"


def format_groups(groups: Mapping[Hashable, Iterable[str]]) -> str:
    """Format values and their methods, such as "0.1 (gmp, imp); 0.01 (rigl)"."""
    parts = [f"{value} ({join_limited(names, 8)})" for value, names in groups.items()]
    return "; ".join(parts[:8]) + (f"; and {len(parts) - 8} more values" * (len(parts) > 8))


def is_comparable(one: Point, other: Point) -> bool:
    """Return whether two points have about the same sparsity, of the same thing.

    Densities are compared: 98 and 98.5 % sparsity differ much, 30 and 30.5 % do not.
    """
    if one.run.result["of"] != other.run.result["of"]:
        return False
    less, more = sorted(1 - point.x["sparsity"].mean for point in (one, other))
    return more - less <= _NEAR * more


def find_few_seeds(series: Sequence[Series]) -> Iterator[Advice]:
    """Find the points of one task that have too few seeds."""
    few = tuple(
        f"{one.name} at {_percent(point)}: {len(point.seeds)}."
        for one in series
        for point in one.points
        if len(point.seeds) < MIN_SEEDS
    )
    if few:
        todo = "Add seeds, seed=0,1,2: finished jobs are not run again."
        yield Advice("Fewer than three seeds", few, todo)


def find_overlaps(series: Sequence[Series]) -> Iterator[Advice]:
    """Find pairs of methods whose accuracies overlap at comparable sparsities."""
    pairs = []
    for one, other in combinations(series, 2):
        for a, b in product(one.points, other.points):
            if is_comparable(a, b) and a.y["accuracy"].overlaps(b.y["accuracy"]):
                text = f"At {_percent(a)}: {_describe(one, a)} and {_describe(other, b)}."
                pairs.append((a.x["sparsity"].mean, text))
    if pairs:
        yield Advice(
            "No clear difference: the intervals mean ± standard deviation overlap",
            tuple(text for _, text in sorted(pairs)),
            "Do not rank these: report them as equal, or add seeds (seed=0,1,2,3,4).",
        )


def _percent(point: Point) -> str:
    return f"{100 * point.x['sparsity'].mean:.4g} %"


def _describe(series: Series, point: Point) -> str:
    accuracy = point.y["accuracy"]
    return f"{series.name} {accuracy.format()} % (n = {accuracy.n})"


class Check(NamedTuple):
    """A value that must be the same for all methods of a task."""

    title: str  # of the warning
    value: Callable[[Run], Any]  # None is not compared
    label: str
    todo: str


def describe_epochs(run: Run) -> str:
    """Describe the total epochs of training, before and after pruning."""
    epochs = run.result.get("epochs")
    if isinstance(epochs, Real):
        return str(epochs)
    planned = run.setting("trainer.max_epochs")
    if run.setting("start") in (None, "scratch"):
        return f"at most {planned} with pruning, ended by a metric, steps or time"
    return f"{planned} after a checkpoint of unknown training"


def describe_batch(run: Run) -> str:
    """Describe the batch size of the fit with pruning, and the number of devices."""
    devices = run.setting("trainer.devices") or 1
    return str(run.fit_setting("data.batch_size")) + (
        f" on each of {devices} devices" if devices != 1 else ""
    )


def describe_latency(run: Run) -> str | None:
    """Describe how latency was measured; None if it was not."""
    latency = (run.pruned or {}).get("latency_ms")
    if not latency:
        return None
    threads = f"threads {latency.get('threads')}, batch {latency.get('batch')}"
    return f"{latency.get('device')} {run.result.get('device', '')}".strip() + f", {threads}"


CHECKS = (
    Check(
        "Different total epochs",
        describe_epochs,
        "Total epochs, dense training included",
        "Train every method for the same total: trainer.max_epochs=... and dense_epochs=...",
    ),
    Check(
        "Different learning rates",
        lambda run: run.lr if run.pruned is not None else None,
        "Learning rate of the fit with pruning",
        "Use the same finetune.lr=... (or optimizer.lr=...) for all, or tune it for each method "
        "on validation data and say so",
    ),
    Check(
        "Different batch sizes",
        lambda run: describe_batch(run) if run.pruned is not None else None,
        "Batch size of the fit with pruning",
        "Use the same finetune.batch_size=... (or data.batch_size=...) for all",
    ),
    Check(
        "Different versions",
        lambda run: ", ".join(f"{name} {v}" for name, v in run.result["versions"].items()),
        "Versions",
        "Run the older jobs again in one environment: force=true",
    ),
    Check(
        "Latency measured differently",
        describe_latency,
        "Device, threads and batch",
        "Compare latencies of one device only: measure all jobs on the same one, with the same "
        "threads=... and latency.batch=...",
    ),
    Check(
        "Sparsity of different things",
        lambda run: run.result.get("of") if run.pruned is not None else None,
        "Sparsity counts",
        "Compare them by compression, MACs or latency, not by sparsity",
    ),
)


def find_unfair(runs: NamedRuns) -> list[Advice]:
    """Return warnings about differences of one task's runs that make a comparison unfair."""
    advice = []
    for check in CHECKS:
        values = names_by_value((name, check.value(run)) for name, run in runs)
        values.pop(None, None)
        if len(values) > 1:
            finding = f"{check.label}: {format_groups(values)}."
            advice.append(Advice(check.title, (finding,), f"{check.todo}."))
    pruned = [(name, run) for name, run in runs if run.pruned is not None]
    return [*advice, *_check_training(pruned), *_check_starts(pruned), *_check_monitors(runs)]


def _check_training(runs: NamedRuns) -> Iterator[Advice]:
    """Compare optimizer, schedule, augmentation and the like, setting by setting."""
    flat = [(name, _flatten(_training_settings(run))) for name, run in runs]
    findings = []
    for key in dict.fromkeys(key for _, settings in flat for key in settings):
        values = names_by_value((name, settings.get(key, "not set")) for name, settings in flat)
        if len(values) > 1:
            findings.append(f"{key} is {format_groups(values)}.")
    if findings:
        todo = "Train all methods alike, or say that the difference belongs to the method."
        yield Advice("Different training", tuple(findings), todo)


def _check_starts(runs: NamedRuns) -> Iterator[Advice]:
    """Compare the networks that training started from, at equal seeds.

    A fit from scratch differs from one that starts from a given checkpoint, whose training is not
    counted. Dense training within a job may differ in length if total epochs are equal.
    """
    same_epochs = len({describe_epochs(run) for _, run in runs}) == 1
    for seed in sorted({run.result["seed"] for _, run in runs}):
        equal = [(name, run) for name, run in runs if run.result["seed"] == seed]
        kinds = names_by_value((name, _start(run, same_epochs)) for name, run in equal)
        if all(run.setting("start") in (None, "scratch") for _, run in equal):
            kinds.pop("scratch", None)
        if len(kinds) > 1:
            parts = [f"{kind} ({join_limited(names, 8)})" for kind, names in kinds.items()]
            yield Advice(
                "Different starting checkpoints",
                (f"At seed {seed}: {join_limited(parts, 6)}.",),
                "Start all methods from one network: start=PATH of one dense run of that seed.",
            )
            return  # one seed is enough as an example


def _start(run: Run, any_epochs: bool) -> str:
    """Describe where the weights before pruning come from."""
    if run.setting("start") is not None:
        return describe_start(run)
    own = run.setting("dense_epochs")
    epochs = f" for {run.setting('trainer.max_epochs') if own is None else own} epochs"
    training = f"lr={run.setting('optimizer.lr')}, batch {run.setting('data.batch_size')}"
    return f"trained dense first{'' if any_epochs else epochs}, {training}"


def _check_monitors(runs: NamedRuns) -> Iterator[Advice]:
    """Find methods whose checkpoint or sparsity was chosen on the test set."""
    names = dict.fromkeys(
        name
        for name, run in runs
        for key, value in _flatten(run.settings).items()
        if key.rpartition(".")[2] == "monitor" and value.startswith('"test')
    )
    if names:
        yield Advice(
            "Chosen on the test set",
            (f"A checkpoint or a sparsity was chosen by test accuracy: {join_limited(names, 8)}.",),
            "Choose on validation data, monitor=val/accuracy: accuracy is biased on the data on "
            "which a network was chosen.",
        )


def find_mixed_splits(runs: NamedRuns) -> Iterator[Advice]:
    """Find runs that were measured on the validation set, beside others on the test set."""
    names = names_by_value((name, run.split) for name, run in runs)
    if len(names) > 1:
        validated = join_limited(names["val"], 8)
        yield Advice(
            "Measured on different sets",
            (f"Measured on the validation set, which also chose the checkpoint: {validated}.",),
            "Give these runs a test set, or do not compare their accuracies with the others.",
        )


def _training_settings(run: Run) -> dict[str, Any]:
    data = {k: v for k, v in (run.setting("data") or {}).items() if k in SERVING}
    parts = {name: run.setting(name) for name in ("optimizer", "scheduler", "trainer")}
    return {**parts, "data": data}


def _flatten(value: Any, name: str = "") -> dict[str, str]:
    """Map dotted names of nested settings to JSON values."""
    if not isinstance(value, Mapping):
        return {name: json.dumps(value, default=str)}
    flat: dict[str, str] = {}
    for key, inner in value.items():
        if key not in _NOT_COMPARED or not name:
            flat |= _flatten(inner, f"{name}.{key}" if name else str(key))
    return flat
