# SPDX-License-Identifier: MIT
"""Where the configuration files lie: beside the package, or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

from regrow.errors import StateError

_PACKAGE = Path(__file__).resolve().parent


def config_dir(name: str) -> Path:
    """The folder `conf` or `recipes`.

    An installed wheel carries both inside the package; a checkout has them at its top.

    Raises:
        StateError: If there is none.

    Example:
        >>> config_dir("recipes").name
        'recipes'
    """
    roots = (_PACKAGE, _PACKAGE.parents[1])
    for root in roots:
        if (root / name).is_dir():
            return root / name
    raise StateError(
        f"regrow's folder {name!r} is missing: looked in {' and '.join(map(str, roots))}; "
        "install regrow again, or `pip install -e .` in a checkout"
    )
