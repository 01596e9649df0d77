# SPDX-License-Identifier: MIT
"""Find, read and register recipes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from regrow.app.config.schema import Settings
from regrow.utils.errors import ConfigError, suggest
from regrow.utils.paths import config_dir

_WORD = "recipe="


_SUFFIXES = (".yaml", ".yml")


_FOREIGN = ("--config-dir", "-cd", "hydra.searchpath")  # where Hydra finds more


def replace_recipe_files(words: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    """Replace the paths in `recipe=a.yaml,digits/gmp` by names that Hydra can look up.

    A name has a short hash of the file's content, so that an edited file gets new run folders.

    Returns:
        The command line with names instead of paths, and the files by name.

    Raises:
        ConfigError: If a file does not exist or is no recipe.
    """
    files: dict[str, Path] = {}
    foreign = any(word.startswith(_FOREIGN) for word in words)
    changed = []
    for word in words:
        if not word.startswith(_WORD):
            changed.append(word)
            continue
        values = []
        for value in split_recipes(word.removeprefix(_WORD)):
            path = Path(value).expanduser()
            if path.suffix in _SUFFIXES and (path.is_file() or not foreign):
                name = recipe_name(path)
                files[name] = path
                value = name
            values.append(value)
        changed.append(_WORD + ",".join(values))
    return changed, files


def split_recipes(text: str) -> list[str]:
    """Split `a,b,c`; a comma may be part of the path of an existing file.

    Example:
        >>> split_recipes("digits/gmp,'my.yaml'")
        ['digits/gmp', 'my.yaml']
    """
    parts, found = text.split(","), []
    while parts:
        ends = range(len(parts), 1, -1)
        joined = {end: _unquoted(",".join(parts[:end])) for end in ends}
        end = next((end for end in ends if _is_recipe(joined[end])), 1)
        found.append(joined.get(end, _unquoted(parts[0])))
        parts = parts[end:]
    return found


def recipe_name(path: Path) -> str:
    """The name of a file's recipe: its own, and a short hash of what is in it.

    Raises:
        ConfigError: If there is no such file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"no file {str(path)!r} ({error.strerror}): recipe= takes the path of a .yaml file, "
            "or a name without .yaml that `regrow recipes` lists"
        ) from error
    stem = re.sub(r"[^\w.-]+", "_", path.stem, flags=re.ASCII).strip("._-") or "recipe"
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}"


def read_recipe(path: Path) -> DictConfig:
    """A recipe from a file of somebody's own.

    Raises:
        ConfigError: If it is no YAML of settings, or sets what nothing reads.
    """
    try:
        recipe = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is no recipe, it cannot be read as YAML: {reason}") from error
    if not isinstance(recipe, DictConfig):
        raise ConfigError(f"{path} is no recipe: write settings as in recipes/digits/gmp.yaml")
    given = recipe.copy()
    for key in ("defaults", "hydra"):
        given.pop(key, None)
    try:
        OmegaConf.merge(OmegaConf.structured(Settings), given)
    except ConfigKeyError as error:
        known = [field.name for field in fields(error.object_type)]  # type: ignore[arg-type]
        raise ConfigError(
            f"{path} sets {error.full_key}, which nothing reads: "
            f"{suggest(str(error.key), known)} (values of your own belong under about:)"
        ) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path} cannot be used: {' '.join(str(error).split())}") from error
    return recipe


def groups(settings: Mapping[Any, Any]) -> list[str]:
    """Return the groups in a defaults list.

    Example:
        >>> groups({"defaults": ["_self_", {"model": "lenet5"}, {"optional local": "default"}]})
        ['model']
    """
    entries = [entry for entry in settings["defaults"] if not isinstance(entry, str)]
    names = [str(name) for entry in entries for name in entry]
    return [name for name in names if " " not in name and name != "recipe"]


def _is_recipe(text: str) -> bool:
    path = Path(text).expanduser()
    return path.suffix in _SUFFIXES and path.is_file()


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


ABOUT = ("data", "model", "method", "published", "source")


def recipe_files() -> dict[str, Path]:
    """Find the recipes of regrow: name -> file, sorted by name."""
    root = config_dir("recipes")
    return {
        path.relative_to(root).with_suffix("").as_posix(): path
        for path in sorted(root.rglob("*.yaml"))
    }


def load(path: Path) -> DictConfig:
    """Load one recipe, without its defaults."""
    return cast(DictConfig, OmegaConf.load(path))


class _RecipeNode(ConfigNode):
    """A recipe of the config store that is read when Hydra loads it.

    Hydra copies the whole store at each composition, and composes once for each group that
    `regrow train --help` lists: 72 parsed recipes would take seconds.
    """

    def __init__(self, name: str, group: str, path: Path) -> None:
        self.name, self.group, self.package, self.provider = name, group, "_global_", str(path)

    @cached_property
    def node(self) -> DictConfig:  # type: ignore[override]
        return load(Path(str(self.provider)))


def register(given: Mapping[str, Path] | None = None) -> None:
    """Add the types of the settings and the recipes to Hydra's config store.

    A search path would not find the recipes: the group is `recipe`, the folder `recipes`. Launchers
    pass the store to the processes of their jobs, so files outside the package are read here.

    Args:
        given: Files outside the package, by name.

    Raises:
        ConfigError: If one of these is no recipe.
    """
    store = ConfigStore.instance()
    store.store("settings", Settings, provider="regrow")
    for name, path in (given or {}).items():
        group, _, stem = f"recipe/{name}".rpartition("/")
        node = read_recipe(path)
        store.store(stem, node, group=group, package="_global_", provider=str(path))
    for name, path in recipe_files().items():
        group, _, stem = f"recipe/{name}".rpartition("/")
        folder = store.repo
        for part in group.split("/"):
            folder = folder.setdefault(part, {})
        folder[f"{stem}.yaml"] = _RecipeNode(f"{stem}.yaml", group, path)


def check_names(words: Sequence[str], given: Iterable[str] = ()) -> None:
    """Check that recipes exist: Hydra's error does not list the options of nested groups.

    Args:
        words: The command line; functions such as `recipe=choice(a,b)` are left to Hydra.
        given: Names of recipes outside the package.

    Raises:
        ConfigError: With the nearest names.
    """
    if any(word.startswith(("--config-dir", "-cd", "hydra.searchpath")) for word in words):
        return  # the recipe may come from there
    known = {*recipe_files(), *given, "custom"}
    for value in (word.removeprefix("recipe=") for word in words if word.startswith("recipe=")):
        if value.startswith("glob("):
            raise ConfigError(
                f"recipe={value} finds nothing, recipes lie in folders: write their names, "
                "recipe=digits/gmp,digits/oneshot"
            )
        for name in value.split(",") if "(" not in value else ():
            if name.strip() not in known:
                here = Path(f"{name.strip()}.yaml")
                near = f"did you mean the file {here}?" if here.is_file() else None
                raise ConfigError(
                    f"No recipe {name.strip()!r}: {near or suggest(name.strip(), known)} "
                    "(`regrow recipes` describes them)"
                )
