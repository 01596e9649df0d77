# SPDX-License-Identifier: MIT
"""Requests: what is to come back, as an order, from code or from a file beside a running job."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from regrow.errors import ConfigError, check_patterns, did_you_mean, unwritten
from regrow.holding import Train
from regrow.initializers import Initializer, make_initializer
from regrow.regrowth import Growth, how_many, make_growth


@dataclass(frozen=True)
class Order:
    """What `regrow` is to be called with.

    Attributes:
        fraction: Of what is pruned; or
        count: how many weights.
        by: Which come back.
        init: With what value.
        names: Patterns of parameters; None: all.
        train: What trains afterwards.

    Raises:
        ConfigError: For a value that cannot be meant.

    Example:
        >>> Order(fraction=0.1, by="gradient").dense
        True
    """

    fraction: float | None = None
    count: int | None = None
    by: str | Growth = "random"
    init: str | Initializer = "he"
    names: str | list[str] | tuple[str, ...] | None = None
    train: Train = "all"

    def __post_init__(self) -> None:
        how_many(self.fraction, self.count, 0)
        make_growth(self.by)
        make_initializer(self.init)
        check_patterns("names", self.names)
        check_patterns("train", self.train)

    @property
    def dense(self) -> bool:
        """Whether it waits for dense gradients; any rule of the user's own may look at them."""
        return self.by == "gradient" or callable(self.by)


def parse(text: str) -> Order:
    """Reads a request.

    Args:
        text: A JSON object such as `{"fraction": 0.1, "by": "random", "init": "he"}`; keys are
            those of `Order`.

    Raises:
        ConfigError: For anything else.

    Example:
        >>> parse('{"count": 100, "names": "fc"}').names
        'fc'
    """
    known = [field.name for field in fields(Order)]
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"the request is not JSON ({error}): {_EXAMPLE}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"the request must be an object, got {given!r}: {_EXAMPLE}")
    for key in given:
        if key not in known:
            raise ConfigError(f"the request has an unknown key {key!r}: {did_you_mean(key, known)}")
    return Order(**given)


class RequestFile:
    """A file that is looked for between steps, and renamed once it was answered.

    Args:
        path: Where it is looked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> str | None:
        """Its text; None where there is none."""
        try:
            return self.path.read_text()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            return f"unreadable: {error}"  # which is no JSON, and refused as such

    def done(self) -> None:
        """Renames it to NAME.done."""
        with suppress(FileNotFoundError):  # taken away meanwhile
            self.path.replace(self.path.with_name(f"{self.path.name}.done"))

    def refuse(self, why: str) -> None:
        """Renames it to NAME.refused, the reason at its end.

        Raises:
            StateError: Where that cannot be written; the request stays.
        """
        refused = self.path.with_name(f"{self.path.name}.refused")
        aside, asked = refused.with_name(f".{refused.name}"), b""
        try:
            with suppress(OSError):  # it may be gone, or for nobody to read
                asked = self.path.read_bytes()
            aside.write_bytes(asked + f"\n\nrefused: {why}\n".encode())
            aside.replace(refused)
            self.path.unlink(missing_ok=True)
        except OSError as error:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise unwritten(refused, error) from error


_EXAMPLE = 'write {"fraction": 0.1, "by": "random", "init": "he"}'
