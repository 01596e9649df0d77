# SPDX-License-Identifier: MIT
"""An argument parser that raises errors of regrow, and the options of the sub-commands.

Nothing here imports torch, so that errors of the command line appear at once.
"""

from __future__ import annotations

from argparse import Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from regrow.sensitivity_analysis.scan_options import ScanOptions
from regrow.utils.errors import (
    ConfigError,
    check_choice,
    check_count,
    check_positive,
    check_sparsity,
    suggest,
)

_Number = TypeVar("_Number", int, float)


class Parser(ArgumentParser):
    """Raise `ConfigError` instead of exiting, and suggest the nearest name of an option."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        options = {"formatter_class": RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(*args, **(options | kwargs))  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see `{self.prog} --help`)")

    def parse_all(self, args: Sequence[str]) -> Namespace:
        """Parse all arguments; raise on the first unknown one."""
        options, unknown = self.parse_known_intermixed_args(list(args))
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


def read_path(parser: Parser, args: Sequence[str]) -> Path:
    """Parse the path of a checkpoint."""
    path: Path = parser.parse_checkpoint(args).checkpoint
    return path


def read_scan_options(parser: Parser, args: Sequence[str]) -> ScanOptions:
    """Parse and check the options of `regrow sensitivity`."""
    for name, default, text in (
        ("sparsities", "0.3,0.5,0.7,0.9", "sparsities to try; default: 0.3,0.5,0.7,0.9"),
        ("by", "weights", "what to prune: weights (default) or channels"),
        ("criterion", None, "criterion that ranks them; default: magnitude, or l2 for channels"),
        ("samples", None, "number of validation samples; default: all"),
        ("max-drop", "1", "points of accuracy that a layer may lose; default: 1"),
        ("include", None, "patterns of layers to try, separated by commas"),
        ("exclude", None, "patterns of layers to leave out"),
        ("out", None, "folder of table and plot; default: that of the checkpoint"),
    ):
        parser.add_argument(f"--{name}", action=Once, default=default, help=text)
    given = parser.parse_checkpoint(args)
    samples = given.samples
    return ScanOptions(
        given.checkpoint,
        Path(given.out) if given.out else given.checkpoint.parent,
        _sparsities(given.sparsities),
        check_choice("--by", given.by, ("weights", "channels")),
        given.criterion,
        None if samples is None else check_count("--samples", _number(int, "--samples", samples)),
        parse_points(given.max_drop),
        _patterns(given.include),
        _patterns(given.exclude),
    )


def parse_points(text: str) -> float:
    """Return `--max-drop`, given in points, as a fraction."""
    points = _number(float, "--max-drop", text)
    check_positive("--max-drop", points, "--max-drop 1 for one point")
    if not 0.05 <= points < 100:
        hint = f"write --max-drop {100 * points:g}" if points < 0.05 else "write --max-drop 1"
        raise ConfigError(f"--max-drop is in points of accuracy, got {points:g}: {hint}")
    return points / 100


def read_free_options(parser: Parser, args: Sequence[str]) -> Namespace:
    """Parse and check the options of `regrow free`."""
    for name, default, text in (
        ("max-drop", "0.5", "points of accuracy that may be lost; default: 0.5"),
        ("of", "params", "what to remove: params (default), macs, or latency of layers run sparse"),
        ("criterion", "obs", "obs (default), wanda, ria or magnitude"),
        ("samples", "1024", "number of training examples for calibration; default: 1024"),
        ("include", None, "patterns of layers to prune, separated by commas"),
        ("exclude", None, "patterns of layers not to prune"),
        ("out", None, "folder of the pruned network; default: free, in that of the run"),
    ):
        parser.add_argument(f"--{name}", action=Once, default=default, help=text)
    given = parser.parse_checkpoint(args)
    given.max_drop = parse_points(given.max_drop)
    check_choice("--of", given.of, ("params", "macs", "latency"))
    check_choice("--criterion", given.criterion, ("obs", "wanda", "ria", "magnitude"))
    given.samples = check_count("--samples", _number(int, "--samples", given.samples))
    given.include, given.exclude = _patterns(given.include), _patterns(given.exclude)
    given.out = Path(given.out) if given.out else given.checkpoint.resolve().parent.parent / "free"
    return given


def read_auto_options(parser: Parser, args: Sequence[str]) -> Namespace:
    """Parse and check the options of `regrow auto`."""
    for name, default, text in (
        ("max-drop", "1", "points that the metric may lose in validation; default: 1"),
        ("latency", None, "time that a forward pass may take, such as 5ms; default: any"),
        ("epochs", None, "epochs after the dense training; default: as many as that"),
        ("out", None, "folder to write; default: below outputs/auto"),
    ):
        parser.add_argument(f"--{name}", action=Once, default=default, help=text)
    parser.add_argument("word", nargs="*", help="recipe=NAME and settings, as for `regrow train`")
    given = parser.parse_all(args)
    given.max_drop = parse_points(given.max_drop)
    if given.epochs is not None:
        given.epochs = check_count("--epochs", _number(int, "--epochs", given.epochs), least=0)
    if given.latency is not None:
        number = _number(float, "--latency", given.latency.removesuffix("ms"))
        given.latency = check_positive("--latency", number, "--latency 5ms")
    given.out = Path(given.out) if given.out else None
    return given


def _sparsities(text: str) -> tuple[float, ...]:
    values = [_number(float, "--sparsities", part) for part in text.split(",")]
    return tuple(sorted({check_sparsity("--sparsities", v, zero=False) for v in values}))


def _patterns(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


def _number(kind: type[_Number], what: str, text: str) -> _Number:
    try:
        return kind(text)
    except ValueError:
        example = "a whole number such as 1000" if kind is int else "numbers such as 0.5"
        raise ConfigError(f"{what} takes {example}, got {text.strip()!r}") from None
