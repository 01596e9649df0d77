# SPDX-License-Identifier: MIT
"""Which shards are meant: folders, files, and patterns such as train-{000000..000146}.tar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from regrow.errors import ConfigError, DataError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand(pattern: str) -> list[str]:
    """What a pattern with braces stands for, as in a shell.

    Args:
        pattern: May hold ranges, whose numbers are as wide as the first, and lists.

    Raises:
        ConfigError: For braces that are neither.

    Example:
        >>> expand("{a,b}-{08..10}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    found = _BRACES.search(pattern)
    if found is None:
        if "{" in pattern or "}" in pattern:
            raise ConfigError(f"a brace is missing in {pattern!r}: write {{000000..000146}}")
        return [pattern]
    inner = found.group(1)
    numbers = _RANGE.fullmatch(inner)
    if numbers is not None:
        first, last = numbers.groups()
        words = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    else:
        words = inner.split(",")
    if len(words) < 2 and not (numbers and words):
        raise ConfigError(
            f"{{{inner}}} in {pattern!r} is no range and no list: write {{000000..000146}} or "
            "{a,b}"
        )
    head, tail = pattern[: found.start()], expand(pattern[found.end() :])
    return [head + word + rest for word in words for rest in tail]


def shard_files(what: str, given: str | Sequence[str]) -> tuple[Path, ...]:
    """The shards that are meant, all of which are there.

    Args:
        what: The setting's name, for the message.
        given: A folder of .tar files, a file, a pattern, or a list of these.

    Raises:
        ConfigError: For addresses, which are not read.
        DataError: When one is missing, or a folder holds none.
    """
    files: list[Path] = []
    for pattern in [given] if isinstance(given, str) else given:
        if "://" in pattern or pattern.startswith("pipe:"):
            raise ConfigError(
                f"{what} must be files or folders, got {pattern!r}: fetch or mount the shards first"
            )
        for name in expand(pattern):
            path = Path(name).expanduser().absolute()
            files += sorted(path.glob("*.tar")) if path.is_dir() else [path]
    missing = [str(path) for path in files if not path.is_file()]
    if missing or not files:
        which = f"{len(missing)} of {len(files)} shards are missing: {', '.join(missing[:3])}"
        raise DataError(
            f"{what}={given!r}: {which if missing else 'no .tar file lies there'}"
            f"{' ...' if len(missing) > 3 else ''}"
        )
    if len({*files}) < len(files):
        raise ConfigError(f"{what}={given!r} names a shard twice")
    return tuple(files)
