# SPDX-License-Identifier: MIT
"""Subcommands (argparse)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from regrow.utils.errors import ConfigError, RegrowError, suggest

USAGE = """\
regrow: pruning that never loses a weight you may want back

  regrow train recipe=digits/gmp [any.setting=...]   train, prune, measure; writes result.json
  regrow train -m recipe=digits/gmp seed=0,1,2       a sweep; finished jobs are skipped
  regrow plan recipe=digits/gmp                      what would be pruned, and when
  regrow inspect CKPT                                what a checkpoint holds, layer by layer
  regrow sensitivity CKPT                            where to prune: each layer alone, not trained
  regrow export CKPT --to onnx|safetensors|pt2       the network as a file, checked; what it costs
  regrow report DIR                                  report.html and results.csv of all runs below
  regrow recipes [WORD]                              what there is to run

  regrow train --help                                the groups and settings
  regrow train recipe=digits/gmp --cfg job           the whole configuration
"""


EXPORTS = ("onnx", "safetensors", "pt2")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status.

    Args:
        argv: The words after `regrow`; None takes them from `sys.argv`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    try:
        _command(words[0])(words[1:])
    except RegrowError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _command(name: str) -> Callable[[list[str]], None]:
    if name in COMMANDS:
        return COMMANDS[name]
    if "=" in name:
        raise ConfigError(f"the command is missing: write `regrow train {name}`")
    raise ConfigError(f"no command {name!r}: {suggest(name, COMMANDS)} (see `regrow --help`)")


def _train(words: list[str]) -> None:
    from regrow.app.launch.hydra_app import launch

    launch("train", words)


def _plan(words: list[str]) -> None:
    from regrow.app.launch.hydra_app import launch

    launch("plan", words)


def _inspect(words: list[str]) -> None:
    if len(words) != 1 or words[0].startswith("-"):
        raise ConfigError("inspect takes one checkpoint: write `regrow inspect outputs/.../x.ckpt`")
    path = Path(words[0])
    if not path.is_file():
        raise ConfigError(f"no file {words[0]!r}: `regrow inspect` takes a checkpoint (.ckpt)")
    from regrow.app.cli.inspect_command import inspect

    inspect(path)


def _sensitivity(words: list[str]) -> None:
    from regrow.app.cli.sensitivity_options import read_options

    options = read_options(words)
    from regrow.app.cli.sensitivity_command import show_sensitivity

    show_sensitivity(options)


def _export(words: list[str]) -> None:
    found, out, to = _export_words(words)
    if not found.is_file():
        raise ConfigError(f"no file {str(found)!r}: `regrow export` takes a checkpoint (.ckpt)")
    if to is None and out is None:
        raise ConfigError(f"which format? write `regrow export {found} --to {EXPORTS[0]}`")
    if to is not None and to not in EXPORTS:
        raise ConfigError(
            f"--to must be one of {', '.join(EXPORTS)}, got {to!r}: {suggest(to, EXPORTS)}"
        )
    from regrow.app.cli.export_command import export_checkpoint
    from regrow.io.export import chosen_format

    path = out if out is not None else found.with_suffix(f".{to}")
    export_checkpoint(found, chosen_format(path, to), path)


def _export_words(words: list[str]) -> tuple[Path, Path | None, str | None]:
    """Checkpoint, file and format, as written."""
    options: dict[str, str] = {}
    names: list[str] = []
    rest = iter(words)
    for word in rest:
        key, equals, value = word.partition("=")
        if key in ("--to", "--out"):
            options[key] = value if equals else next(rest, "")
            if not options[key]:
                raise ConfigError(f"{key} needs a value: write `regrow export CKPT --to onnx`")
        elif word.startswith("-"):
            raise ConfigError(f"no option {word!r}: regrow export CKPT --to onnx [--out PATH]")
        else:
            names.append(word)
    if len(names) != 1:
        raise ConfigError(
            "export takes one checkpoint: write `regrow export outputs/.../x.ckpt --to onnx`"
        )
    out = options.get("--out")
    return Path(names[0]), None if out is None else Path(out), options.get("--to")


def _report(words: list[str]) -> None:
    if len(words) != 1 or words[0].startswith("-"):
        raise ConfigError("report takes one folder with runs: write `regrow report outputs`")
    from regrow.app.launch.sweep import is_sweep, sweep_jobs
    from regrow.report.write import write_report

    folder = Path(words[0])
    done = write_report(folder, sweep_jobs(folder) if is_sweep(folder) else None)
    print(f"{done.page} and {done.table.name}: {done.summary}")
    if done.warnings:
        print(f"warnings about what can be compared: {done.warnings}, see the page")


def _recipes(words: list[str]) -> None:
    from regrow.app.cli.recipes_command import show

    show(words)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "plan": _plan,
    "inspect": _inspect,
    "sensitivity": _sensitivity,
    "export": _export,
    "report": _report,
    "recipes": _recipes,
}

if __name__ == "__main__":
    sys.exit(main())
