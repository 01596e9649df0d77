# SPDX-License-Identifier: MIT
"""Runs and jobs from result.json / failed.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from numbers import Real
from pathlib import Path
from typing import Any

from regrow.report.curves import metric_files
from regrow.utils.errors import DataError

FORMAT = 1


FILE = "result.json"


# What every result has, and of what kind.
_FIELDS: dict[str, type] = {
    "recipe": str,
    "overrides": list,
    "config_hash": str,
    "settings": dict,
    "seed": int,
    "versions": dict,
    "dense": dict,
    "levels": list,
    "history": list,
}


# What it has besides when something was pruned.
_PRUNED: dict[str, type] = {
    "of": str,
    "sparsity": Real,
    "sparsity_total": Real,
    "compression": Real,
    "theoretical_speedup": Real,
    "accuracy_drop": Real,
    "layers": dict,
    "excluded": dict,
}


_BLOCK: dict[str, type] = {"accuracy": Real, "params": Real, "macs": Real, "bytes": Real}


@dataclass(frozen=True)
class Run:
    """One finished job.

    Attributes:
        folder: Where it lies.
        result: Its result.json, with every field that the report needs.
    """

    folder: Path
    result: Mapping[str, Any]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The resolved settings that the result depends on."""
        settings: Mapping[str, Any] = self.result["settings"]
        return settings

    @property
    def overrides(self) -> list[str]:
        """The words of the command, without the recipe."""
        return [str(w) for w in self.result["overrides"] if not str(w).startswith("recipe=")]

    @property
    def dense(self) -> Mapping[str, Any]:
        """The dense control's measurements."""
        block: Mapping[str, Any] = self.result["dense"]
        return block

    @property
    def pruned(self) -> Mapping[str, Any] | None:
        """The pruned network's measurements; None for a dense run."""
        block: Mapping[str, Any] | None = self.result.get("pruned")
        return block

    @property
    def fine_tunes(self) -> bool:
        """Whether the fit started from a trained network."""
        return bool(self.settings.get("start") != "scratch")

    @property
    def rate(self) -> float | None:
        """The learning rate of the fit in which pruning took place."""
        own = (self.settings.get("finetune") or {}).get("lr")
        if self.fine_tunes and own is not None:
            return float(own)
        rate = (self.settings.get("optimizer") or {}).get("lr")
        return float(rate) if isinstance(rate, Real) else None

    @property
    def batch_size(self) -> int | None:
        """The batch size of that fit."""
        own = (self.settings.get("finetune") or {}).get("batch_size")
        if self.fine_tunes and own is not None:
            return int(own)
        size = (self.settings.get("data") or {}).get("batch_size")
        return size if isinstance(size, int) else None


def read_run(folder: Path) -> Run:
    """The run of a folder.

    Raises:
        DataError: If its result.json is damaged, of another format, or no result.
        FileNotFoundError: If there is none.
    """
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
        result = json.loads(text, parse_constant=_no_number)
    except ValueError as error:
        raise DataError(f"{FILE} is damaged ({error}): remove it and run the job again") from error
    if not isinstance(result, dict):
        raise DataError(f"{FILE} holds no result: remove it and run the job again")
    if result.get("format") != FORMAT:
        raise DataError(
            f"{FILE} has format {result.get('format')!r}, this version of regrow reads {FORMAT}: "
            "run the job again, or make the report with the version that wrote it "
            f"({_version(result)})"
        )
    _check("", result, _FIELDS)
    _check("dense.", result["dense"], _BLOCK)
    if result.get("pruned") is not None:
        _check("", result, _PRUNED)
        _check("", {"pruned": result["pruned"]}, {"pruned": dict})
        _check("pruned.", result["pruned"], _BLOCK)
    for level in result["levels"]:
        _check("levels.", level, {"sparsity": Real, "test_accuracy": Real})
    return Run(folder, result)


def _no_number(word: str) -> None:
    raise ValueError(f"{word} in it")


def _check(where: str, given: Any, kinds: Mapping[str, type]) -> None:
    """Check that all fields are there and have values of the right type."""
    for name, kind in kinds.items():
        if not isinstance(given, dict) or name not in given:
            raise DataError(f"{FILE} lacks {where}{name}: remove it and run the job again")
        if not isinstance(given[name], kind):
            raise DataError(
                f"{FILE} has {where}{name}={given[name]!r}, which is no {kind.__name__.lower()}: "
                "remove it and run the job again"
            )


def _version(result: Mapping[str, Any]) -> str:
    versions = result.get("versions")
    found = versions.get("regrow") if isinstance(versions, dict) else None
    return f"regrow {found}" if found else "it does not say which"


FAILED = "failed.json"


CLAIMED = "run.json"


_MARKS = {FILE, FAILED, CLAIMED}


_NOT_JOBS = {"checkpoints", "levels", "logs", ".hydra"}


@dataclass(frozen=True)
class Lost:
    """A job without a result that can be read.

    Attributes:
        folder: Where it lies.
        state: "failed", "unfinished" or "unreadable".
        reason: Why, for a reader.
        words: What was asked for: recipe and overrides, where they are known.
        when: The last sign of it.
    """

    folder: Path
    state: str
    reason: str
    words: str = ""
    when: str = ""


@dataclass(frozen=True)
class Jobs:
    """What was found below a folder.

    Attributes:
        runs: Finished jobs, one a config hash.
        lost: All others.
        copies: Folders whose run another folder holds too.
    """

    runs: list[Run] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    copies: list[Path] = field(default_factory=list)


def read_jobs(folders: Sequence[Path]) -> Jobs:
    """Reads each folder as a job; what cannot be read stops no other.

    A job that failed where an earlier one left its result is there with both.
    """
    jobs, seen = Jobs(), set()
    for folder in folders:
        found = _read(folder)
        if isinstance(found, Lost):
            jobs.lost.append(found)
            continue
        if (folder / FAILED).is_file():
            jobs.lost.append(_failed(folder, "; the result shown is an earlier one of this folder"))
        if (key := found.result["config_hash"]) in seen:
            jobs.copies.append(folder)
        else:
            seen.add(key)
            jobs.runs.append(found)
    return jobs


def find_jobs(folder: Path) -> list[Path]:
    """The folders of jobs below a folder, itself included, in order.

    A dense control, which jobs share, is none.
    """
    found = []
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if name not in _NOT_JOBS)
        if _MARKS & {*files} and not _is_control(Path(place), files):
            found.append(Path(place))
    return found


def _is_control(folder: Path, files: Sequence[str]) -> bool:
    """A control has a result of its own kind, and no mark of a job."""
    if FILE not in files or {FAILED, CLAIMED} & {*files}:
        return False
    content = _json(folder / FILE)
    return "block" in content and "format" not in content


def _read(folder: Path) -> Run | Lost:
    try:
        return read_run(folder)
    except DataError as error:
        return Lost(folder, "unreadable", str(error), when=_when(folder / FILE))
    except FileNotFoundError:
        return _without_result(folder)


def _without_result(folder: Path) -> Lost:
    if (folder / FAILED).is_file():
        return _failed(folder)
    signs = [folder / CLAIMED, *metric_files(folder)]
    last = max((when for when in map(_when, signs) if when), default="")
    if (folder / CLAIMED).is_file():
        reason = "no result yet: it is running, or was stopped; rerun the command to resume it"
    else:
        reason = "not started yet"
    return Lost(folder, "unfinished", reason, when=last)


def _failed(folder: Path, remark: str = "") -> Lost:
    told = _json(folder / FAILED)
    reason = ": ".join(str(told[key]) for key in ("error", "message") if told.get(key))
    words = [f"recipe={told['recipe']}"] if told.get("recipe") else []
    words += [str(w) for w in told.get("overrides") or () if not str(w).startswith("recipe=")]
    when = _local(str(told["when"])) if told.get("when") else _when(folder / FAILED)
    return Lost(folder, "failed", (reason or "it does not say why") + remark, " ".join(words), when)


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; an empty one where it cannot be read, which its reader will say."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _when(path: Path) -> str:
    """When a file was last written, to the second; empty where it is gone."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "seconds")
    except OSError:
        return ""


def _local(when: str) -> str:
    """A time with a zone as the local time; what is no time as it is."""
    try:
        moment = datetime.fromisoformat(when)
    except ValueError:
        return when
    return moment.astimezone().replace(tzinfo=None).isoformat(" ", "seconds")


def below(folder: Path, jobs: Sequence[Path]) -> Iterator[str]:
    """The names of jobs as seen from a folder."""
    for job in jobs:
        yield Path(os.path.relpath(job, folder)).as_posix()
