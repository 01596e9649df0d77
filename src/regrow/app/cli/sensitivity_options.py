# SPDX-License-Identifier: MIT
"""Its options (argparse: goes away)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regrow.sensitivity_analysis.scan_options import ScanOptions
from regrow.utils.errors import (
    ConfigError,
    check_choice,
    check_count,
    check_positive,
    check_sparsity,
    suggest,
)

USAGE = (
    "regrow sensitivity CKPT [--sparsities 0.3,0.5,0.7,0.9] [--by weights|channels] "
    "[--criterion NAME] [--samples N] [--max-drop 0.01] [--include PATTERNS] "
    "[--exclude PATTERNS] [--out FOLDER]"
)


_OPTIONS = ("sparsities", "by", "criterion", "samples", "max-drop", "include", "exclude", "out")


def read_options(words: Sequence[str]) -> ScanOptions:
    """The options as they were written.

    Raises:
        ConfigError: For what is misspelt, missing or out of range.
    """
    given, names = _sorted(words)
    if len(names) != 1:
        raise ConfigError(
            "sensitivity takes one checkpoint: write `regrow sensitivity outputs/.../best.ckpt`"
        )
    checkpoint = Path(names[0])
    if not checkpoint.is_file():
        raise ConfigError(f"no file {names[0]!r}: `regrow sensitivity` takes a checkpoint (.ckpt)")
    samples = given.get("samples")
    max_drop = _number("--max-drop", given.get("max-drop", "0.01"))
    if check_positive("--max-drop", max_drop, "--max-drop 0.01 for one point") >= 1:
        raise ConfigError(
            f"--max-drop is a fraction, got {max_drop:g}: write --max-drop 0.01 for one point"
        )
    return ScanOptions(
        checkpoint,
        Path(given["out"]) if "out" in given else checkpoint.parent,
        _sparsities(given.get("sparsities", "0.3,0.5,0.7,0.9")),
        check_choice("--by", given.get("by", "weights"), ("weights", "channels")),
        given.get("criterion"),
        None if samples is None else check_count("--samples", _whole("--samples", samples)),
        max_drop,
        _patterns(given.get("include")),
        _patterns(given.get("exclude")),
    )


def _sorted(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Options by name, and what stands alone."""
    options: dict[str, str] = {}
    names: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            names.append(word)
            continue
        key, equals, value = word.removeprefix("--").partition("=")
        if key not in _OPTIONS:
            raise ConfigError(f"no option {word!r}: {suggest(key, _OPTIONS)} ({USAGE})")
        if key in options:
            raise ConfigError(f"--{key} is given twice: write it once, values parted by commas")
        options[key] = value if equals else next(rest, "")
        if not options[key] or (not equals and options[key].startswith("--")):
            raise ConfigError(f"--{key} needs a value: {USAGE}")
    return options, names


def _sparsities(text: str) -> tuple[float, ...]:
    values = [_number("--sparsities", part) for part in text.split(",")]
    return tuple(sorted({check_sparsity("--sparsities", v, zero=False) for v in values}))


def _patterns(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


def _number(what: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{what} takes numbers such as 0.5, got {text.strip()!r}") from None


def _whole(what: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{what} takes a whole number such as 1000, got {text!r}") from None
