# SPDX-License-Identifier: MIT
"""An argument parser whose mistakes are errors of regrow."""

from __future__ import annotations

from argparse import Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import NoReturn

from regrow.utils.errors import ConfigError, suggest


class Parser(ArgumentParser):
    """Raises `ConfigError` instead of leaving the process, and suggests the nearest name."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        options = {"formatter_class": RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(*args, **(options | kwargs))  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see `{self.prog} --help`)")

    def parse_all(self, words: Sequence[str]) -> Namespace:
        """Parse all words, or name the first that is unknown."""
        found, unknown = self.parse_known_args(list(words))
        if unknown:
            options = [name for action in self._actions for name in action.option_strings]
            word = unknown[0].partition("=")[0]
            hint = suggest(word, options) if word.startswith("-") else "leave it out"
            self.error(f"no option {word!r}: {hint}")
        return found


class Once(Action):
    """Stores a value that may be given once."""

    def __call__(
        self, parser: ArgumentParser, space: Namespace, values: object, option: str | None = None
    ) -> None:
        seen = vars(space).setdefault("_seen", set())
        if self.dest in seen:
            parser.error(f"{option} is given twice: write it once, values separated by commas")
        if values == "":
            parser.error(f"{option} needs a value")
        seen.add(self.dest)
        setattr(space, self.dest, values)
