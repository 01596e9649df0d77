# SPDX-License-Identifier: MIT
"""The command `regrow` and its sub-commands.

Parsers import nothing heavy, so that help and mistakes are answered at once; a sub-command is
imported when it runs.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path

import regrow
from regrow.app.cli.parser import Once, Parser
from regrow.utils.errors import ConfigError, RegrowError, check_choice, suggest

DESCRIPTION = "regrow: prune neural networks without losing a weight you may want back"
EXAMPLES = """\
examples:
  regrow train recipe=digits/gmp [any.setting=...]   train, prune, measure; writes result.json
  regrow train -m recipe=digits/gmp seed=0,1,2       a sweep; finished jobs are skipped
  regrow plan recipe=digits/gmp                      what would be pruned, and when
  regrow export CKPT --to onnx                       the network as a file, checked
  regrow train recipe=digits/gmp --cfg job           the whole configuration

completion in bash:
  eval "$(regrow train -sc install=bash)"
"""
EXPORTS = ("onnx", "safetensors", "pt2")
HYDRA = {
    "train": "train, prune and measure; write result.json",
    "plan": "show what would be pruned, and when",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit status.

    Args:
        argv: The words after `regrow`; None takes them from `sys.argv`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview().format_help(), end="")
        return 0
    if words[0] in ("-V", "--version"):
        print(f"regrow {regrow.__version__}")
        return 0
    try:
        _command(words[0])(words[1:])
    except RegrowError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _overview() -> ArgumentParser:
    parser = Parser("regrow", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("-V", "--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in {**HYDRA, **{name: text for name, (_, text) in COMMANDS.items()}}.items():
        commands.add_parser(name, help=text)
    return parser


def _command(name: str) -> Callable[[list[str]], None]:
    if name in HYDRA:
        return lambda words: _run_hydra(name, words)
    if name in ("-sc", "--shell-completion"):
        return _complete
    if name in COMMANDS:
        run, text = COMMANDS[name]
        return lambda words: run(Parser(f"regrow {name}", description=text), words)
    if "=" in name:
        raise ConfigError(f"the command is missing: write `regrow train {name}`")
    known = (*HYDRA, *COMMANDS)
    raise ConfigError(f"no command {name!r}: {suggest(name, known)} (see `regrow --help`)")


def _run_hydra(name: str, words: list[str]) -> None:
    from regrow.app.launch.hydra_app import launch

    launch(name, words)


def _complete(words: list[str]) -> None:
    from regrow.app.cli.completion import complete

    complete(words, (*HYDRA, *COMMANDS))


def _checkpoint(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise ConfigError(f"no file {text!r}: write the path of a checkpoint (.ckpt)")
    return path


def _inspect(parser: Parser, words: list[str]) -> None:
    parser.add_argument("checkpoint", help="a checkpoint (.ckpt)")
    path = _checkpoint(parser.parse_all(words).checkpoint)
    from regrow.app.cli.inspect_command import inspect

    inspect(path)


def _export(parser: Parser, words: list[str]) -> None:
    parser.add_argument("checkpoint", help="a checkpoint (.ckpt)")
    parser.add_argument("--to", action=Once, metavar="FORMAT", help=", ".join(EXPORTS))
    parser.add_argument("--out", action=Once, metavar="PATH", help="the file to write")
    found = parser.parse_all(words)
    path = _checkpoint(found.checkpoint)
    if found.to is None and found.out is None:
        raise ConfigError(f"which format? write `regrow export {path} --to {EXPORTS[0]}`")
    if found.to is not None:
        check_choice("--to", found.to, EXPORTS)
    from regrow.app.cli.export_command import export_checkpoint
    from regrow.io.export import chosen_format

    out = Path(found.out) if found.out else path.with_suffix(f".{found.to}")
    export_checkpoint(path, chosen_format(out, found.to), out)


def _sensitivity(parser: Parser, words: list[str]) -> None:
    from regrow.app.cli.sensitivity_options import read_options

    options = read_options(parser, words)
    from regrow.app.cli.sensitivity_command import show_sensitivity

    show_sensitivity(options)


def _report(parser: Parser, words: list[str]) -> None:
    parser.add_argument("folder", help="a folder with runs, such as outputs")
    folder = Path(parser.parse_all(words).folder)
    from regrow.app.launch.sweep import is_sweep, sweep_jobs
    from regrow.report.write import write_report

    done = write_report(folder, sweep_jobs(folder) if is_sweep(folder) else None)
    print(f"{done.page} and {done.table.name}: {done.summary}")
    if done.warnings:
        print(f"warnings about what can be compared: {done.warnings}, see the page")


def _recipes(parser: Parser, words: list[str]) -> None:
    parser.add_argument("word", nargs="*", help="show recipes that contain every word")
    found = parser.parse_all(words)
    from regrow.app.cli.recipes_command import show

    show(found.word)


COMMANDS: dict[str, tuple[Callable[[Parser, list[str]], None], str]] = {
    "inspect": (_inspect, "show what a checkpoint holds, layer by layer"),
    "sensitivity": (
        _sensitivity,
        "prune one layer at a time, untrained, and show its accuracy",
    ),
    "export": (_export, "write the network as a file, check it, and show what it costs"),
    "report": (_report, "write report.html and results.csv of all runs below a folder"),
    "recipes": (_recipes, "show what there is to run"),
}

if __name__ == "__main__":
    sys.exit(main())
