# SPDX-License-Identifier: MIT
"""What regrowth can do with some rows of a parameter, where ranks hold the others."""

from __future__ import annotations

from collections.abc import Iterable

from regrow.errors import ConfigError
from regrow.initializers import BY_ROWS, Initializer, sparse_he
from regrow.regrowth import GROWTHS, Growth
from regrow.targets import Target


def refuse_whole(growth: Growth, initializer: Initializer, targets: Iterable[Target]) -> None:
    """Refuses rules and initialisers that need more of a sharded parameter than a rank's rows.

    Raises:
        ConfigError: Naming the parameter and what to write.
    """
    for target in targets:
        if target.shard is None:
            continue
        if growth not in GROWTHS.values():
            raise ConfigError(
                f"{target.name} is sharded among ranks, and a rule of your own ({called(growth)}) "
                f"would see some of its rows alone: write by='random', one of {', '.join(GROWTHS)}"
            )
        turned = initializer is sparse_he and target.input_dim == 0
        if initializer not in BY_ROWS or turned:
            raise ConfigError(
                f"{target.name} is sharded among ranks, and init={called(initializer)!r} needs all "
                "of its rows at once: write init='he', 'zero' or 'removed'"
            )


def called(given: object) -> str:
    """The name of a rule or an initialiser.

    Example:
        >>> called("he"), called(sparse_he)
        ('he', 'sparse_he')
    """
    return given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
