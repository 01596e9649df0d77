# SPDX-License-Identifier: MIT
"""Names of run folders."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

LONGEST = 180  # bytes; a folder's name may have 255
LONGEST_SWEEP = 60  # characters of a sweep's folder before the hash
# Not in the name of a job's folder: recipe and seed have separate folders, the others do not
# change the result.
APART = ("recipe", "seed", "force", "paths.controls", "sweep", "objectives")
# Not in the name of a sweep's folder.
AGAIN = ("force", "paths.controls")


def folder_name(text: str) -> str:
    """Make a text the name of one folder; a hash is appended where it has to be changed.

    Example:
        >>> folder_name("start=../a.ckpt")
        'start=...a.ckpt...1730abf5'
    """
    name = re.sub(r"[/\\\x00-\x1f]", ".", text)
    if name == text and len(text.encode()) <= LONGEST:
        return text
    kept = name.encode()[:LONGEST].decode(errors="ignore")
    return f"{kept}...{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def job_folder(overrides: Iterable[str]) -> str:
    """Make the name of a job's folder, below its recipe, from its overrides.

    Values are written as Hydra parses them, as in a sweep: `1e-3` and `0.001` are one setting.
    """
    # In a name nothing is interpolated.
    args = [word.replace("${", "$(") for word in override_strings(overrides)]
    parsed = OverridesParser.create().parse_overrides(args)
    kept = [override for override in parsed if override.key_or_group not in APART]
    lines = [f"{one.get_key_element()}={one.get_value_element_as_str()}" for one in kept]
    return folder_name(",".join(sorted(lines)))


def override_strings(overrides: Iterable[Any]) -> list[str]:
    """Return overrides as strings, with interpolations resolved if all of them can be."""
    try:
        return [str(word) for word in overrides]
    except OmegaConfBaseException:  # the job names the setting
        plain: Any = OmegaConf.to_container(overrides, resolve=False)
        return [str(word) for word in plain]


def sweep_folder(args: Iterable[str]) -> str:
    """Make the name of a sweep's folder from its overrides, in any order.

    The name shows the recipe, the preset and what is swept; a hash stands for all overrides.

    Example:
        >>> sweep_folder(["recipe=digits/gmp", "pruning.sparsity=0.8,0.9", "sweep=seeds"])
        'digits.gmp,seeds,sparsity=0.8,0.9-f40bb95a'
    """
    plain = sorted(re.sub(r"=choice\(([^,()]*)\)$", r"=\1", str(word)) for word in args)
    kept = [word for word in plain if word.partition("=")[0] not in AGAIN]
    if not kept:
        return "defaults"
    named = [word.partition("=")[2] for word in kept if word.startswith(("recipe=", "sweep="))]
    swept = [
        f"{key.rpartition('.')[2]}={value}"
        for key, _, value in (word.partition("=") for word in kept)
        if ("," in value or "(" in value) and key not in ("recipe", "sweep")
    ]
    digest = hashlib.sha256(",".join(kept).encode()).hexdigest()[:8]
    shown = re.sub(r"[^\w.,=+-]+", ".", ",".join([*named, *swept]))[:LONGEST_SWEEP]
    return f"{shown or 'sweep'}-{digest}"


# At import: jobs in other processes of a sweep need the resolver too.
OmegaConf.register_new_resolver("regrow.folder", job_folder, replace=True)
