# SPDX-License-Identifier: MIT
"""Compose a configuration before it is run, so that a misspelt word is an error of one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regrow.app.config.overrides import preset_settings
from regrow.app.config.recipes import recipe_files
from regrow.app.config.schema import GROUPS
from regrow.utils.errors import ConfigError, closest_names, join_limited, suggest
from regrow.utils.paths import config_dir

# Options of Hydra that a value follows, and those that print something instead of a run.
_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-dir", "-cd", "--experimental-rerun")
_INSTEAD = ("--help", "-h", "--hydra-help", "--shell-completion", "-sc", "--experimental-rerun")
_UNKNOWN_KEY = re.compile(r"Could not (?:override|delete from config\.) '([^']+)'")


def check_composition(command: str, args: Sequence[str]) -> None:
    """Check that the words of a command line compose; of a sweep, each option of a swept group.

    Args:
        command: The sub-command, for the line to write.
        args: Its arguments.

    Raises:
        ConfigError: With the word, the nearest name and the line to write.
    """
    if any(word.startswith(_INSTEAD) for word in args):
        return
    words, folders = _split(args)
    given = {word.lstrip("+").partition("=")[0] for word in words}
    for word in words:
        if word.startswith("sweep="):
            swept = preset_settings(word).items()
            words = [*words, *(f"{key}={value}" for key, value in swept if key not in given)]
    overrides = [_parse(command, word) for word in words]
    if folders:
        paths = ",".join(f"file://{Path(folder).absolute()}" for folder in folders)
        overrides.append(_parse(command, f"hydra.searchpath=[{paths}]"))
    for job in _jobs(overrides):
        _compose(job)


def _split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into overrides and the folders of --config-dir."""
    words, folders, options = [], [], iter(args)
    for word in options:
        name, equals, value = word.partition("=")
        if name in _WITH_VALUE:
            value = value if equals else next(options, "")
            if name in ("--config-dir", "-cd"):
                folders.append(value)
        elif not word.startswith("-"):
            words.append(word)
    return words, folders


def _parse(command: str, word: str) -> Override:
    if "=" not in word and not word.startswith("~"):
        if word in recipe_files():
            raise ConfigError(f"{word} is a recipe: write `regrow {command} recipe={word}`")
        raise ConfigError(
            f"{word!r} sets nothing: write KEY=VALUE, such as recipe=digits/gmp or seed=1"
        )
    try:
        [override] = OverridesParser.create().parse_overrides([word])
    except HydraException as error:
        raise ConfigError(
            f"{word} cannot be read: close each bracket and quote, and write values with other "
            "characters in two pairs of quotes: 'about.note=\"a, b\"'"
        ) from error
    return override


def _jobs(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Yield the overrides of one job, then of one for each other option of a swept group."""
    values = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override() and one.is_discrete_sweep()
        else [one.input_line or ""]
        for one in overrides
        if not one.is_sweep_override() or one.is_discrete_sweep()
    ]
    first = [options[0] for options in values]
    yield first
    for place, options in enumerate(values):
        group = options[0].partition("=")[0].lstrip("+")
        for option in options[1:] if group in (*GROUPS, "recipe") else ():
            yield [*first[:place], option, *first[place + 1 :]]


def _compose(words: list[str]) -> DictConfig:
    folder = str(config_dir("conf") / "app")
    try:
        with initialize_config_dir(folder, job_name="regrow", version_base="1.3"):
            return compose("train", words)
    except MissingConfigException as error:
        _refuse_option(error)
    except ConfigCompositionException as error:
        _refuse_key(words, error)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"the settings do not fit together: {_one_line(error)}") from error


def _refuse_option(error: MissingConfigException) -> NoReturn:
    """Raise for an option that its group does not have."""
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    options = list(error.options or ())
    if not options:
        raise ConfigError(f"the settings do not fit together: {_one_line(error)}") from error
    near = closest_names(name, options)
    write = f"write {group}={near[0]}" if near else f"there are: {join_limited(options, 40)}"
    raise ConfigError(f"{group} has no option {name!r}: {write}") from error


def _refuse_key(words: list[str], error: Exception) -> NoReturn:
    """Raise for a setting that does not exist, or a value that it cannot have."""
    found = _UNKNOWN_KEY.search(str(error))
    if found is None:
        lines = [str(one).splitlines()[0] for one in (error, error.__cause__) if one is not None]
        raise ConfigError(": ".join(lines)) from error
    key = found[1]
    word = next(one for one in words if one.lstrip("+~").partition("=")[0] == key)
    rest = _compose([one for one in words if one is not word])
    parent, value = key.rpartition(".")[0], word.partition("=")[2]
    holder = OmegaConf.select(rest, parent) if parent else rest
    if parent in GROUPS and not holder:
        raise ConfigError(
            f"{key} cannot be set, {parent} is empty: choose an option of it, such as "
            f"recipe=digits/gmp, or {parent}=NAME (regrow train --help lists them)"
        ) from error
    settings: Any = OmegaConf.to_container(rest, resolve=False)
    names = [*_keys(settings), *GROUPS, "recipe"]
    beside = [name for name in names if name.rpartition(".")[0] == parent]
    near = closest_names(key, beside) or closest_names(key, names)
    sign = word[0] if word[0] == "~" else ""
    write = (
        f"write {sign}{near[0]}{word[word.find('=') :] if '=' in word else ''}"
        if near
        else suggest(key, beside)
    )
    new = f" (+{key}={value} adds a new one)" if parent and holder and not sign else ""
    raise ConfigError(f"no setting {key}: {write}{new}") from error


def _keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a configuration."""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
