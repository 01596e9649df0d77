# SPDX-License-Identifier: MIT
"""Find jobs, and read their result.json or failed.json, and their training curves."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrow.utils.errors import DataError, one_line
from regrow.utils.imports import import_optional
from regrow.utils.logging import info

if TYPE_CHECKING:
    from pandas import DataFrame

FORMAT = 2
FILE, FAILED, CLAIMED = "result.json", "failed.json", "run.json"
_ADVICE = "remove it and run the job again"
_NOT_JOBS = {"checkpoints", "levels", "logs", ".hydra"}  # folders within a job
_METRICS = ("accuracy", "loss")  # a metric whose name contains one of these is a curve

# Required fields and their types: of every result, of one with a pruned network, of list items.
_NETWORK_FIELDS = ("accuracy", "params", "macs", "bytes")
_FIELDS: dict[str, type] = {
    **dict.fromkeys(("recipe", "config_hash"), str),
    **dict.fromkeys(("overrides", "levels", "history"), list),
    **dict.fromkeys(("settings", "versions", "dense"), dict),
    **{f"dense.{name}": Real for name in _NETWORK_FIELDS},
    "seed": int,
}
_PRUNED_FIELDS: dict[str, type] = {
    **dict.fromkeys(("sparsity", "sparsity_total", "accuracy_drop"), Real),
    **dict.fromkeys(("compression", "theoretical_speedup"), Real),
    **dict.fromkeys(("layers", "excluded", "pruned"), dict),
    **{f"pruned.{name}": Real for name in _NETWORK_FIELDS},
    "of": str,
}
_ITEM_FIELDS: dict[str, dict[str, type]] = {
    "levels": {"sparsity": Real, "test_accuracy": Real},
    "history": {"kind": str, "after": Real},
}


@dataclass(frozen=True)
class Run:
    """One finished job."""

    folder: Path
    result: Mapping[str, Any]  # content of its result.json
    name: str = ""  # its folder relative to that of the report

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.result["settings"])

    def setting(self, path: str) -> Any:
        """Return a setting by its dotted path, such as "optimizer.lr"; None if it is not set."""
        return look_up(self.result["settings"], path)

    @property
    def overrides(self) -> list[str]:
        """The command-line overrides, without the recipe."""
        return _without_recipe(self.result["overrides"])

    @property
    def dense(self) -> dict[str, Any]:
        """Measurements of the dense baseline."""
        return dict(self.result["dense"])

    @property
    def pruned(self) -> dict[str, Any] | None:
        """Measurements of the pruned network; None for a dense run."""
        network = self.result.get("pruned")
        return None if network is None else dict(network)

    @property
    def split(self) -> str:
        """What the networks were measured on: "test", or "val" where there is no test set."""
        return str(self.result.get("split", "test"))

    @property
    def lr(self) -> Any:
        """The initial learning rate of the fit with pruning."""
        return self.result.get("lr", self.fit_setting("optimizer.lr"))

    def fit_setting(self, path: str) -> Any:
        """Return a setting of the fit with pruning, such as "optimizer.lr" or "data.batch_size".

        Fine-tuning of a trained network may have its own.
        """
        own = self.setting(f"finetune.{path.rpartition('.')[2]}")
        return self.setting(path) if own is None or self.setting("start") == "scratch" else own


def look_up(value: Any, path: str) -> Any:
    """Return a value of nested mappings by its dotted path; None if there is none."""
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def read_run(folder: Path, name: str = "") -> Run:
    """Read the result of a job; a damaged one, or one of another format, raises `DataError`."""
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
        result = json.loads(text, parse_constant=_raise_not_finite)
    except ValueError as error:
        raise DataError(f"{FILE} is damaged ({error}): {_ADVICE}") from error
    if not isinstance(result, dict):
        raise DataError(f"{FILE} contains no result: {_ADVICE}")
    if result.get("format") != FORMAT:
        version = look_up(result, "versions.regrow") or "of unknown version"
        raise DataError(
            f"{FILE} has format {result.get('format')!r}, this version of regrow reads {FORMAT}: "
            f"run the job again, or make the report with the one that wrote it (regrow {version})"
        )
    if (metric := str(result.get("metric", "accuracy"))) != "accuracy":
        _show_as_accuracy(result, metric)
    _check(result, _FIELDS)
    if result.get("pruned") is not None:
        _check(result, _PRUNED_FIELDS)
    for items, types in _ITEM_FIELDS.items():
        for item in result[items]:
            _check(item, types, f"{items}.")
    _check_fractions(result, metric)
    return Run(folder, result, name)


def _show_as_accuracy(result: dict[str, Any], metric: str) -> None:
    """Copy another metric of a result, such as an F1 score, to the fields of the accuracy."""
    for network in _networks(result):
        network["accuracy"] = network.get(metric)
    _check_fractions(result, metric)
    _check(result, {"levels": list})
    for level in result["levels"]:
        _check(level, {f"test_{metric}": Real, "monitored": Real}, "levels.")
        level["test_accuracy"], level["val_accuracy"] = level[f"test_{metric}"], level["monitored"]


def _check_fractions(result: Mapping[str, Any], metric: str) -> None:
    """Check that the accuracies of a result lie between 0 and 1, and that more is better."""
    values = [network["accuracy"] for network in _networks(result)]
    fractions = all(isinstance(value, Real) and 0 <= float(value) <= 1 for value in values)
    if result.get("metric_mode", "max") != "max" or not fractions:
        raise DataError(
            f"{FILE} has the metric {metric}, the report compares fractions of which more is "
            "better: read the values in this file"
        )


def _networks(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the measurements of the dense network, and of the pruned one if there is one."""
    blocks = (result.get("dense"), result.get("pruned"))
    return [block for block in blocks if isinstance(block, dict)]


def _raise_not_finite(constant: str) -> None:
    raise ValueError(f"it contains {constant}")


def _check(value: Any, types: Mapping[str, type], prefix: str = "") -> None:
    """Check that all fields exist and have the right type."""
    for path, kind in types.items():
        if (found := look_up(value, path)) is None:
            raise DataError(f"{FILE} lacks {prefix}{path}: {_ADVICE}")
        if not isinstance(found, kind):
            raise DataError(
                f"{FILE} has {prefix}{path}={found!r}, which is not of type "
                f"{kind.__name__.lower()}: {_ADVICE}"
            )


@dataclass(frozen=True)
class JobWithoutResult:
    """A job whose result is missing or cannot be read."""

    name: str  # as of a `Run`
    state: str  # "failed", "unfinished" or "unreadable"
    reason: str
    overrides: str = ""  # with the recipe
    when: str = ""  # time of the last change


@dataclass(frozen=True)
class Jobs:
    """All jobs of a report."""

    runs: list[Run] = field(default_factory=list)  # one for each config hash
    without_result: list[JobWithoutResult] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)  # names of jobs whose run is also elsewhere


def read_jobs(folders: Sequence[Path], root: Path) -> Jobs:
    """Read each folder as a job; one with a result and a later failure is listed as both."""
    jobs, seen = Jobs(), set()
    for folder in folders:
        name = Path(os.path.relpath(folder, root)).as_posix()
        job = _read_job(folder, name)
        if isinstance(job, JobWithoutResult):
            jobs.without_result.append(job)
            continue
        if (folder / FAILED).is_file():
            remark = "; the result shown is an earlier one of this folder"
            jobs.without_result.append(_read_failure(folder, name, remark))
        if job.result["config_hash"] in seen:
            jobs.copies.append(name)
        else:
            jobs.runs.append(job)
        seen.add(job.result["config_hash"])
    return jobs


def find_jobs(folder: Path) -> list[Path]:
    """List the folders of jobs below a folder, itself included; dense baselines are not jobs."""
    jobs = []
    for name, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if name not in _NOT_JOBS)
        found = {FILE, FAILED, CLAIMED} & {*files}
        if found == {FILE}:
            content = _read_object(Path(name) / FILE)
            if "block" in content and "format" not in content:
                continue  # a dense baseline
        if found:
            jobs.append(Path(name))
    return jobs


def _read_job(folder: Path, name: str) -> Run | JobWithoutResult:
    try:
        return read_run(folder, name)
    except DataError as error:
        return JobWithoutResult(name, "unreadable", str(error), when=_modified(folder / FILE))
    except FileNotFoundError:
        pass
    if (folder / FAILED).is_file():
        return _read_failure(folder, name)
    reason = "not started yet"
    if (folder / CLAIMED).is_file():
        reason = "no result yet: still running, or stopped; the same command resumes it"
    last = max(_modified(path) for path in (folder / CLAIMED, *find_metric_files(folder)))
    return JobWithoutResult(name, "unfinished", reason, when=last)


def _read_failure(folder: Path, name: str, remark: str = "") -> JobWithoutResult:
    failure = _read_object(folder / FAILED)
    reason = ": ".join(str(failure[key]) for key in ("error", "message") if failure.get(key))
    words = [f"recipe={failure['recipe']}"] if failure.get("recipe") else []
    overrides = failure.get("overrides")
    words += _without_recipe(overrides if isinstance(overrides, list) else ())
    when = str(failure.get("when") or _modified(folder / FAILED))
    with suppress(ValueError):  # no time: shown as it is
        local = datetime.fromisoformat(when).astimezone()
        when = local.replace(tzinfo=None).isoformat(" ", "seconds")
    reason = (reason or "no reason recorded") + remark
    return JobWithoutResult(name, "failed", reason, " ".join(words), when)


def _without_recipe(overrides: Sequence[Any]) -> list[str]:
    return [str(word) for word in overrides if not str(word).startswith("recipe=")]


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _modified(path: Path) -> str:
    """Return when a file was last written; empty if it does not exist."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "seconds")
    except OSError:
        return ""


def find_metric_files(folder: Path) -> list[Path]:
    """List a run's metric files, oldest first: metrics.0.csv, metrics.1.csv, ..., metrics.csv."""

    def order(path: Path) -> tuple[str, float]:
        number = path.name.removeprefix("metrics").removesuffix("csv").strip(".")
        return str(path.parent), int(number) if number.isdigit() else math.inf

    return sorted((folder / "logs").glob("**/metrics*.csv"), key=order)


def read_curves(files: Sequence[Path]) -> DataFrame:
    """Read accuracies and losses by step; if steps repeat (a resumed run), the later file counts.

    Cells that are no finite number are missing: a run that was killed leaves incomplete rows. A
    file that cannot be read is left out, with a line in the log.
    """
    pandas = import_optional("a report", "report", "pandas")
    options = {"on_bad_lines": "skip", "index_col": False, "low_memory": False, "usecols": _is_read}
    tables = []
    for path in files:
        try:
            table = pandas.read_csv(path, **options)
        except pandas.errors.EmptyDataError:
            continue
        except (ValueError, OSError) as error:  # ParserError and UnicodeDecodeError are ValueErrors
            info(f"{path} has no curves that can be read: {one_line(error)}")
            continue
        tables += [table] if "step" in table else []
    if not tables:
        return pandas.DataFrame()
    table = pandas.concat(tables).apply(pandas.to_numeric, errors="coerce")
    finite = table.where(table.abs() < math.inf).dropna(subset="step").astype({"step": int})
    return finite.groupby("step").last().dropna(axis=1, how="all").sort_index(axis=1)


def _is_read(column: str) -> bool:
    return column == "step" or any(metric in column for metric in _METRICS)
