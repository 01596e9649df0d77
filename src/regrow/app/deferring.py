# SPDX-License-Identifier: MIT
"""Words of a sweep that only its jobs can read: settings inside of what the sweep varies."""

from __future__ import annotations

import re
from collections.abc import Sequence

from omegaconf import OmegaConf

from regrow._paths import config_dir

_PLAIN = re.compile(r"[A-Za-z_]\w*(\.\w+)+=")  # a setting inside a group, neither added nor taken
_ENCLOSED = re.compile(r"""\[.*\]|\{.*\}|\(.*\)|'.*'|".*\"""")  # a comma in there lists nothing
_PARAMS = "hydra.sweeper.params"
_SWEPT = re.compile(r"(choice|range|interval|tag|glob|shuffle|sort)\(")


def deferred(words: Sequence[str]) -> list[str]:
    """Writes plain values as a choice of one, where a sweep varies recipes or other groups.

    Hydra first composes what all jobs share, without what varies: there `pruning.sparsity=0.9` is a
    mistake unless a pruning is chosen. What is swept over it leaves to the jobs.

    Args:
        words: The command line.

    Example:
        >>> deferred(["-m", "recipe=digits/gmp,digits/imp", "pruning.sparsity=0.9"])
        ['-m', 'recipe=digits/gmp,digits/imp', 'pruning.sparsity=choice(0.9)']
        >>> deferred(["-m", "recipe=digits/gmp", "pruning.sparsity=0.9"])
        ['-m', 'recipe=digits/gmp', 'pruning.sparsity=0.9']
    """
    if not any(_varies_a_group(word) for word in words):
        return list(words)
    return [_choice(word) if _PLAIN.match(word) else word for word in words]


def _varies_a_group(word: str) -> bool:
    key, _, value = word.partition("=")
    if key == "sweep":
        return any("recipe" in _params(name) for name in re.findall(r"\w+", value))
    return "." not in key and not key.startswith(("-", "hydra/")) and _is_swept(value)


def _params(preset: str) -> set[str]:
    """What a preset varies; nothing, where it is somebody's own."""
    path = config_dir("conf") / "app" / "sweep" / f"{preset}.yaml"
    node = OmegaConf.select(OmegaConf.load(path), _PARAMS) if path.is_file() else None
    return {str(key) for key in node or ()}


def _choice(word: str) -> str:
    key, _, value = word.partition("=")
    alone = key.startswith("hydra.") or not value or _is_swept(value)
    return word if alone else f"{key}=choice({value})"


def _is_swept(value: str) -> bool:
    return "," in _ENCLOSED.sub("", value) or _SWEPT.match(value) is not None
