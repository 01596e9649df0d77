# SPDX-License-Identifier: MIT
"""The words of a command line, checked and completed before Hydra reads them.

Hydra's own errors name neither the nearest setting nor the line to write.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, ValueType
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from regrow.app.config.recipes import no_recipe, recipe_files, register, replace_recipe_files
from regrow.app.config.schema import GROUPS, OWN_GROUPS
from regrow.io.files import check_folder
from regrow.utils.errors import ConfigError, closest_names, join_limited, one_line, suggest
from regrow.utils.paths import config_dir

# Options of Hydra that a value follows, and those that print something instead of a run.
_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-dir", "-cd", "--experimental-rerun")
_INSTEAD = ("--help", "-h", "--hydra-help", "--shell-completion", "-sc", "--experimental-rerun")
_UNKNOWN_KEY = re.compile(r"Could not (?:override|delete from config\.) '([^']+)'")
_PLAIN = re.compile(r"[A-Za-z_]\w*(\.\w+)+=.")  # a setting inside a group, without + or ~
_SWEEPS = ("sweep=", "hydra.mode=")  # the presets, and Hydra's own setting
_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "paths.controls")
_EMPTY = {"pruning": "none", "logger": "none"}  # the empty option of a group
# launcher or sweeper -> Hydra plugin, and the extra of regrow that installs it
_PLUGINS = {
    "joblib": ("hydra_joblib_launcher", "sweep"),
    "submitit_local": ("hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "optuna": ("hydra_optuna_sweeper", "optuna"),
}


def prepare(command: str, words: Sequence[str]) -> list[str]:
    """Check a command line, register the recipes that it names, and return it as Hydra takes it."""
    check_plugins(words)
    args, files = replace_recipe_files(words)
    args, own = choose_own([*map(quote_value, args)])
    register(files, own)
    check_composition(command, args)
    return args


def check_plugins(args: Sequence[str]) -> None:
    """Check that the plugins of the launcher and sweeper are installed."""
    for word in args:
        key, _, value = word.partition("=")
        if key not in ("hydra/launcher", "hydra/sweeper", "sweep"):
            continue
        for name in _PLUGINS.keys() & re.findall(r"\w+", value):  # sweep=[optuna,seeds]
            plugin, extra = _PLUGINS[name]
            if importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
                raise ConfigError(
                    f'{word} needs {plugin.replace("_", "-")}: pip install "regrow[{extra}]"'
                )


def quote_value(word: str) -> str:
    """Quote the path in `start=`: the folder of a run contains `=`, which Hydra needs quoted."""
    key, _, value = word.partition("=")
    return f"{key}='{value}'" if key == "start" and "=" in value and value[0] not in "'\"" else word


def choose_own(args: Sequence[str]) -> tuple[list[str], set[str]]:
    """Choose the empty option `own` of a group whose `_target_` is given without an option.

    Otherwise the arguments of the default option would be passed to the new target. Settings of
    such a group, and of data=datasets, need no `+`; those of a recipe are ignored in the groups
    that are returned.

    Example:
        >>> choose_own(["recipe=digits/gmp", "model._target_=mine.Net", "model.depth=2"])
        (['recipe=digits/gmp', 'model=own', 'model._target_=mine.Net', '++model.depth=2'], \
{'model'})
    """
    keys = [word.lstrip("+").partition("=")[0] for word in args]
    own = {group for group in OWN_GROUPS if f"{group}._target_" in keys and group not in keys}
    free = own | ({"data"} if "data=datasets" in args else set())
    changed = list[str]()
    for word, key in zip(args, keys, strict=True):
        group, _, setting = key.partition(".")
        if group in own and setting == "_target_":  # here: no word may stand before an option
            changed.append(f"{group}=own")
        added = group in free and setting not in ("", "_target_")
        changed.append(f"++{word.lstrip('+')}" if added else word)
    return changed, own


def defer_to_jobs(args: Sequence[str]) -> list[str]:
    """Leave settings to the jobs of a sweep over recipes or other groups.

    Hydra first composes the configuration without the swept overrides, where
    `pruning.sparsity=0.9` is an error unless a pruning is chosen. Written as a choice of one value,
    a setting is swept too.

    Example:
        >>> defer_to_jobs(["-m", "recipe=digits/gmp,digits/imp", "pruning.sparsity=0.9"])
        ['-m', 'recipe=digits/gmp,digits/imp', 'pruning.sparsity=choice(0.9)']
        >>> defer_to_jobs(["-m", "recipe=digits/gmp", "pruning.sparsity=0.9"])
        ['-m', 'recipe=digits/gmp', 'pruning.sparsity=0.9']
    """
    if not any(map(_varies_a_group, args)):
        return list(args)
    return [_choice(word) if _PLAIN.match(word) else word for word in args]


def _varies_a_group(word: str) -> bool:
    key, _, value = word.partition("=")
    if key == "sweep":
        return "recipe" in preset_settings(value)
    return "." not in key and not key.startswith("hydra/") and _is_swept(word)


def _choice(word: str) -> str:
    key, _, value = word.partition("=")
    return word if key.startswith("hydra.") or _is_swept(word) else f"{key}=choice({value})"


def _is_swept(word: str) -> bool:
    try:
        [override] = OverridesParser.create().parse_overrides([word])
    except HydraException:  # an option, or its value
        return False
    return override.is_sweep_override()


def preset_settings(presets: str) -> dict[str, str]:
    """Return the settings that presets of regrow sweep over, such as "[compare,seeds]"."""
    settings: dict[str, str] = {}
    for name in re.findall(r"\w+", presets):
        path = config_dir("conf") / "app" / "sweep" / f"{name}.yaml"
        node = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
        settings |= OmegaConf.select(node, "hydra.sweeper.params") or {}
    return settings


def check_composition(command: str, args: Sequence[str]) -> None:
    """Check that the words compose; of a sweep, each option of a swept group.

    `command` is the sub-command that errors name. The recipes must be registered.
    """
    if any(word.startswith(_INSTEAD) for word in args):
        return
    words, folders = _split(args)
    if command == "train":  # the others write nothing, or below a folder of their own
        _check_folders(words)
    given = {word.lstrip("+").partition("=")[0] for word in words}
    for word in words:
        if word.startswith("sweep="):
            swept = preset_settings(word).items()
            words = [*words, *(f"{key}={value}" for key, value in swept if key not in given)]
    if folders:
        paths = ",".join(f"file://{Path(folder).absolute()}" for folder in folders)
        words.append(f"hydra.searchpath=[{paths}]")
    folder = str(config_dir("conf") / "app")
    with initialize_config_dir(folder, job_name="regrow", version_base="1.3"):
        for job in _jobs([_parse(command, word) for word in words]):
            compose_words(job)


def _check_folders(words: Sequence[str]) -> None:
    """Check that the folders which a run or a sweep writes to exist or can be made."""
    pairs = (word.lstrip("+").partition("=") for word in words)
    given = {key: value.strip("'\"") for key, _, value in pairs if key in _FOLDERS}
    default = (
        {} if {"hydra.run.dir", "hydra.sweep.dir"} & {*given} else {"hydra.run.dir": "outputs"}
    )
    folders = default | {"paths.controls": "outputs/controls"} | given
    for key, folder in folders.items():
        if "${" not in folder:  # else it is known once the settings are composed
            check_folder(key, Path(folder))


def check_single_values(command: str, args: Sequence[str]) -> None:
    """Check that no setting has several values where nothing says that a sweep is wanted."""
    if any(word in ("-m", "--multirun") or word.startswith(_SWEEPS) for word in args):
        return
    for word in filter(_is_swept, args):
        more = ", or `regrow train -m` for a sweep" if command == "train" else ""
        raise ConfigError(f"{word} has several values: write one of them{more}")


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
        loader = GlobalHydra.instance().config_loader()
        [override] = OverridesParser.create(loader).parse_overrides([word])
    except HydraException as error:
        raise ConfigError(
            f"{word} cannot be read: close each bracket and quote, and write values with other "
            "characters in two pairs of quotes: 'about.note=\"a, b\"'"
        ) from error
    _check_option(override)
    return override


def _check_option(override: Override) -> None:
    """Refuse what is no name for a group: Hydra fails without a clear error on `logger=null`."""
    group, word = override.key_or_group, override.input_line
    if group == "recipe" and override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        raise ConfigError(  # it would find `custom` alone
            f"{word} finds no recipe, they are in subfolders: write their names, "
            "recipe=digits/gmp,digits/oneshot"
        )
    glob = override.value_type is ValueType.GLOB_CHOICE_SWEEP
    if group not in (*GROUPS, "sweep", "recipe") or override.is_delete() or glob:
        return
    swept = override.is_discrete_sweep()
    values = [*override.sweep_iterator()] if swept else [override.value()]
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    if all(isinstance(name, str | QuotedString) for name in names):
        return
    if group == "recipe":
        raise ConfigError(f"{word}: recipe takes names, such as recipe=digits/gmp,digits/oneshot")
    if group == "sweep" and values == [None]:
        raise ConfigError("sweep=null chooses nothing: leave it out")
    options = sorted(path.stem for path in config_dir("conf").glob(f"*/{group}/*.yaml"))
    empty = f" ({_EMPTY[group]} for nothing)" if group in _EMPTY else ""
    raise ConfigError(
        f"{word}: {group} takes the name of an option{empty}, there are: {', '.join(options)}"
    )


def _jobs(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Yield the overrides of one job, then of one for each other option of a swept group."""
    values = [_options(one) for one in overrides if not one.is_interval_sweep()]
    first = [options[0] for options in values]
    yield first
    for place, options in enumerate(values):
        group = options[0].partition("=")[0].lstrip("+")
        for option in options[1:] if group in (*GROUPS, "recipe") else ():
            yield [*first[:place], option, *first[place + 1 :]]


def _options(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line or ""]
    values = override.sweep_string_iterator()
    options = [f"{override.get_key_element()}={value}" for value in values]
    if not options:
        raise ConfigError(
            f"{override.input_line} finds nothing: write names, such as pruning=gmp,rigl"
        )
    return options


def compose_words(words: list[str], with_hydra: bool = False) -> DictConfig:
    """Compose the settings of `regrow train`; errors name the word to write."""
    try:
        return compose("train", words, return_hydra_config=with_hydra)
    except MissingConfigException as error:
        _refuse_option(error)
    except ConfigCompositionException as error:
        _refuse_key(words, error)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"the settings do not fit together: {one_line(error)}") from error


def _refuse_option(error: MissingConfigException) -> NoReturn:
    """Raise for an option that its group does not have."""
    file = error.missing_cfg_file or ""
    if file.startswith("recipe/"):
        raise no_recipe(file.removeprefix("recipe/"), error.options or ()) from error
    group, _, name = file.rpartition("/")
    options = list(error.options or ())
    if not options:
        raise ConfigError(f"the settings do not fit together: {one_line(error)}") from error
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
    rest = compose_words([one for one in words if one is not word])
    parent, (_, equals, value) = key.rpartition(".")[0], word.partition("=")
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
    write = f"write {sign}{near[0]}{equals}{value}" if near else suggest(key, beside)
    new = f" (+{key}={value} adds a new one)" if parent and holder and not sign else ""
    raise ConfigError(f"no setting {key}: {write}{new}") from error


def _keys(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a configuration."""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
