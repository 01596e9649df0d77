# SPDX-License-Identifier: MIT
"""The command `regrow` and its sub-commands.

A sub-command is imported when it runs, so that help and errors of the command line appear at once.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import regrow
from regrow.app.cli.parser import (
    Once,
    Parser,
    read_auto_options,
    read_free_options,
    read_path,
    read_scan_options,
)
from regrow.utils.errors import ConfigError, RegrowError, check_choice, one_line, suggest

Command = Callable[[Parser, list[str]], None]
DESCRIPTION = "Prune neural networks with PyTorch Lightning, and restore what was pruned."
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
        argv: Arguments after `regrow`; None: those of `sys.argv`.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for the user's own models and data, after installed packages
    if not args or args[0] in ("-h", "--help"):
        print(_overview().format_help(), end="")
        return 0
    if args[0] in ("-V", "--version"):
        print(f"regrow {regrow.__version__}")
        return 0
    try:
        _run(args[0], args[1:])
    except RegrowError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _overview() -> ArgumentParser:
    parser = Parser("regrow", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("-V", "--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in (*HYDRA.items(), *((name, text) for name, (_, text) in COMMANDS.items())):
        commands.add_parser(name, help=text)
    return parser


def _run(name: str, args: list[str]) -> None:
    if name in HYDRA:
        from regrow.app.launch.hydra_app import launch

        launch(name, args)
    elif name in ("-sc", "--shell-completion"):
        _complete(args)
    elif name in COMMANDS:
        run, text = COMMANDS[name]
        run(Parser(f"regrow {name}", description=text), args)
    elif "=" in name:
        raise ConfigError(f"the command is missing: write `regrow train {name}`")
    else:
        hint = suggest(name, (*HYDRA, *COMMANDS))
        raise ConfigError(f"no command {name!r}: {hint} (see `regrow --help`)")


def _complete(args: Sequence[str]) -> None:
    """Print the completions of the last word of COMP_LINE.

    Hydra's shell script calls `regrow -sc query=SHELL`. Sub-commands and recipes are completed
    here, groups and settings by Hydra, on the line without the sub-command.
    """
    if not args or not args[0].startswith("query=") or "COMP_LINE" not in os.environ:
        raise ConfigError('-sc installs completion: eval "$(regrow train -sc install=bash)"')
    line = os.environ["COMP_LINE"]
    program, _, rest = line.partition(" ")
    command, space, rest = rest.lstrip().partition(" ")
    last = line.rsplit(" ", 1)[-1]
    if not space:
        print("\n".join(name for name in (*HYDRA, *COMMANDS) if name.startswith(command)))
    elif command in HYDRA and last.startswith("recipe="):
        from regrow.app.config.recipes import recipe_files

        names = (f"recipe={name}" for name in recipe_files())
        print("\n".join(name for name in names if name.startswith(last)))
    elif command in HYDRA:
        os.environ["COMP_LINE"] = f"{program} {rest}"
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
        _run(command, ["-sc", *args])


def _later(read: Callable[[Parser, list[str]], Any], function: str) -> Command:
    """Make a sub-command that calls a function, in MODULE:NAME, once its options are read."""

    def run(parser: Parser, args: list[str]) -> None:
        options = read(parser, args)
        resolve_name(function)(options)

    return run


def _export(parser: Parser, args: list[str]) -> None:
    parser.add_argument("--to", action=Once, metavar="FORMAT", help=", ".join(EXPORTS))
    parser.add_argument("--out", action=Once, metavar="PATH", help="the file to write")
    parser.add_argument("--int8", action="store_true", help="write a second ONNX file, in int8")
    parser.add_argument("--sparse", action="store_true", help="safetensors without the zeros")
    parser.add_argument(
        "--values", action=Once, metavar="TYPE", help="round values of --sparse: fp16, int8 (lossy)"
    )
    options = parser.parse_checkpoint(args)
    path, to = options.checkpoint, options.to
    if to is None and options.out is None:
        raise ConfigError(f"the format is missing: write `regrow export {path} --to {EXPORTS[0]}`")
    if to is not None:
        check_choice("--to", to, EXPORTS)
    from regrow.app.cli.export_command import export_checkpoint
    from regrow.io.export import chosen_format

    out = Path(options.out) if options.out else path.with_suffix(f".{to}")
    to = chosen_format(out, to, options.sparse, options.values)
    if out.resolve() == path.resolve():
        raise ConfigError(f"--out {out} is the checkpoint itself: write another file")
    if options.int8 and to != "onnx":
        raise ConfigError(f"--int8 writes ONNX, got --to {to}: write --to onnx --int8")
    export_checkpoint(path, to, out, options.sparse, options.values, options.int8)


def _auto(parser: Parser, args: list[str]) -> None:
    given = read_auto_options(parser, args)
    from regrow.app.launch.auto import AutoOptions, run_auto

    options = AutoOptions(tuple(given.word), given.max_drop, given.latency, given.epochs, given.out)
    page = run_auto(options)
    print(page.read_text())
    print(page)


def _report(parser: Parser, args: list[str]) -> None:
    parser.add_argument("folder", help="a folder with runs, such as outputs")
    folder = Path(parser.parse_all(args).folder)
    from regrow.app.launch.sweep import is_sweep, sweep_jobs
    from regrow.report.write import write_report

    written = write_report(folder, sweep_jobs(folder) if is_sweep(folder) else None)
    print(f"{written.page} and {written.table.name}: {written.summary}")
    if written.warnings:
        print("warnings about what can be compared, see the page:")
        print(*(f"  {text}" for text in written.warnings), sep="\n")


def _recipes(parser: Parser, args: list[str]) -> None:
    """Print the recipes that contain every word: one table for each data and model."""
    parser.add_argument("word", nargs="*", help="show recipes that contain every word")
    words = parser.parse_all(args).word
    from rich.console import Console
    from rich.table import Table

    from regrow.app.config.recipes import ABOUT, load, recipe_files

    tables: dict[str, Table] = {}
    for name, path in recipe_files().items():
        about = dict.fromkeys(ABOUT, "-") | {
            str(key): str(value) for key, value in load(path).about.items() if value is not None
        }
        if not all(word.lower() in f"{name} {' '.join(about.values())}".lower() for word in words):
            continue
        title = f"{about['data']}, {about['model']}"
        if title not in tables:
            tables[title] = Table("recipe", "method", "published", "source", title=title)
            tables[title].columns[0].no_wrap = True
        tables[title].add_row(name, about["method"], about["published"], about["source"])
    if not tables:
        given = " ".join(words)
        raise ConfigError(f"No recipe matches {given!r}: {suggest(given, recipe_files())}")
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a pipe has no width: keep a recipe on one line, for grep
    for table in tables.values():
        table.box, table.title_justify, table.pad_edge = None, "left", False
        console.print(table, end="\n\n")


COMMANDS: dict[str, tuple[Command, str]] = {
    "inspect": (
        _later(read_path, "regrow.app.cli.inspect_command:inspect"),
        "show the content of a checkpoint, layer by layer",
    ),
    "sensitivity": (
        _later(read_scan_options, "regrow.app.cli.sensitivity_command:show_sensitivity"),
        "prune one layer at a time, without training, and show the accuracy",
    ),
    "free": (
        _later(read_free_options, "regrow.app.cli.free_command:show_free"),
        "prune a trained network as far as its accuracy holds, without training",
    ),
    "auto": (_auto, "try the ways to prune a recipe's network, and choose one"),
    "doctor": (
        _later(read_path, "regrow.app.cli.doctor_command:show_diagnosis"),
        "show which runtimes would use the zeros, and what to change",
    ),
    "export": (_export, "write the network as a file, check it, and show its cost"),
    "report": (_report, "write report.html and results.csv of all runs below a folder"),
    "recipes": (_recipes, "list the recipes"),
}

if __name__ == "__main__":
    sys.exit(main())
