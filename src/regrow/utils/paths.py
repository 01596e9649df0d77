# SPDX-License-Identifier: MIT
"""Paths of conf/ and recipes/."""

from __future__ import annotations

from pathlib import Path

from regrow.utils.errors import StateError

_PACKAGE = Path(__file__).resolve().parents[1]


def config_dir(name: str) -> Path:
    """Return the folder `conf` or `recipes`.

    An installed wheel has both inside the package, a checkout at its top level.
    """
    roots = (_PACKAGE, _PACKAGE.parents[1])
    for root in roots:
        if (root / name).is_dir():
            return root / name
    raise StateError(
        f"regrow's folder {name!r} is missing: looked in {' and '.join(map(str, roots))}; "
        "install regrow again, or `pip install -e .` in a checkout"
    )
