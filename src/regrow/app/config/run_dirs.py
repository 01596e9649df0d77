# SPDX-License-Identifier: MIT
"""Names of run folders."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

LONGEST = 180  # bytes; a folder's name may have 255


# In a job's folder or no part of its result: recipe and seed have folders of their own.
APART = ("recipe", "seed", "force", "paths.controls", "sweep", "objectives")


# A sweep is the same one however often it runs again.
AGAIN = ("force", "paths.controls")


def short(text: str) -> str:
    """Text as the name of one folder.

    A hash of all of it stands for the end of what is too long, and for what no name may hold.

    Example:
        >>> short("pruning.sparsity=0.9")
        'pruning.sparsity=0.9'
        >>> short("start=../a.ckpt")
        'start=...a.ckpt...1730abf5'
    """
    name = re.sub(r"[/\\\x00-\x1f]", ".", text)
    if name == text and len(text.encode()) <= LONGEST:
        return text
    kept = name.encode()[:LONGEST].decode(errors="ignore")
    return f"{kept}...{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def job_folder(overrides: Iterable[str], apart: Sequence[str] = APART) -> str:
    """The name of a job's folder, below its recipe.

    Values are written as Hydra reads them, since a sweep writes them so: `1e-3` and `0.001` are
    one setting, and a run finds the job of a sweep.

    Args:
        overrides: Words of the command line, in any order.
        apart: Keys that are left out.

    Example:
        >>> job_folder(["recipe=digits/gmp", "pruning.sparsity=5e-1", "optimizer.nesterov=true"])
        'optimizer.nesterov=True,pruning.sparsity=0.5'
    """
    words = [word.replace("${", "$(") for word in as_words(overrides)]  # a name reads nothing
    parsed = OverridesParser.create().parse_overrides(words)
    kept = [override for override in parsed if override.key_or_group not in apart]
    lines = [f"{one.get_key_element()}={one.get_value_element_as_str()}" for one in kept]
    return short(",".join(sorted(lines)))


def as_words(overrides: Iterable[Any]) -> list[str]:
    """Words of the command line as Hydra keeps them: interpolations are read, where they can be."""
    try:
        return [str(word) for word in overrides]
    except OmegaConfBaseException:  # the job says which setting cannot be read
        plain: Any = OmegaConf.to_container(overrides, resolve=False)
        return [str(word) for word in plain]


def sweep_folder(words: Iterable[str]) -> str:
    """The name of a sweep's folder; the same words in any order give the same one.

    Example:
        >>> sweep_folder(["pruning.sparsity=0.8,0.9", "sweep=seeds", "force=true"])
        'sweep=seeds,pruning.sparsity=0.8,0.9'
    """
    plain = [re.sub(r"=choice\(([^,()]*)\)$", r"=\1", str(word)) for word in words]
    kept = [word for word in plain if word.partition("=")[0] not in AGAIN]
    first = ("recipe=", "sweep=")  # in a name that is cut, too
    return short(",".join(sorted(kept, key=lambda w: (not w.startswith(first), w)))) or "defaults"


# Where this module is imported and not in a function that runs once: a job that a sweep runs in
# another process names its folder there.
OmegaConf.register_new_resolver("regrow.folder", job_folder, replace=True)
