# SPDX-License-Identifier: MIT
"""An argument parser that raises errors of regrow."""

from __future__ import annotations

from argparse import Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from regrow.utils.errors import ConfigError, suggest


class Parser(ArgumentParser):
    """Raise `ConfigError` instead of exiting, and suggest the nearest name of an option."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        options = {"formatter_class": RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(*args, **(options | kwargs))  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see `{self.prog} --help`)")

    def parse_all(self, args: Sequence[str]) -> Namespace:
        """Parse all arguments; raise on the first unknown one."""
        options, unknown = self.parse_known_args(list(args))
        if unknown:
            names = [name for action in self._actions for name in action.option_strings]
            word = unknown[0].partition("=")[0]
            hint = suggest(word, names) if word.startswith("-") else "leave it out"
            self.error(f"no option {word!r}: {hint}")
        return options

    def parse_checkpoint(self, args: Sequence[str]) -> Namespace:
        """Parse all arguments, among them the path of a checkpoint, which must exist."""
        self.add_argument("checkpoint", help="a checkpoint (.ckpt)")
        options = self.parse_all(args)
        path = Path(options.checkpoint)
        if not path.is_file():
            raise ConfigError(f"no file {str(path)!r}: write the path of a checkpoint (.ckpt)")
        options.checkpoint = path
        return options


class Once(Action):
    """Store the value of an option, and raise if it is given twice."""

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
