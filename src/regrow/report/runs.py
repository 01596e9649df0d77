# SPDX-License-Identifier: MIT
"""A run: what its result.json says, checked once, so that everything after may rely on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from regrow.errors import DataError

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
    """Refuses what lacks a field, or has another kind of value in it."""
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
