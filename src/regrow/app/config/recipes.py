# SPDX-License-Identifier: MIT
"""Find, read and register recipes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import cast

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from regrow.app.config.schema import OWN_GROUPS, Settings
from regrow.utils.errors import ConfigError, one_line, suggest
from regrow.utils.paths import config_dir

ABOUT = ("data", "model", "method", "published", "source")
_WORD = "recipe="
_SUFFIXES = (".yaml", ".yml")
_SEARCH_PATHS = ("--config-dir", "-cd", "hydra.searchpath")  # where Hydra finds more recipes


def replace_recipe_files(args: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    """Replace the paths in `recipe=a.yaml,digits/gmp` by names that Hydra can look up.

    A name has a short hash of the file's content, so that an edited file gets new run folders.
    Returns the command line with names instead of paths, and the files by name.
    """
    files: dict[str, Path] = {}
    more = any(word.startswith(_SEARCH_PATHS) for word in args)
    changed = []
    for word in args:
        if word.startswith(_WORD):
            values = split_recipes(word.removeprefix(_WORD))
            for number, value in enumerate(values):
                path = Path(value).expanduser()
                if path.suffix in _SUFFIXES and (path.is_file() or not more):
                    values[number] = recipe_name(path)
                    if not re.search(rb"^\s*[^#\s]", path.read_bytes(), re.M):
                        raise ConfigError(f"the recipe {path} is empty: write its settings into it")
                    files[values[number]] = path
            word = _WORD + ",".join(values)
        changed.append(word)
    return changed, files


def split_recipes(text: str) -> list[str]:
    """Split `a,'b',c`; a comma may be part of the path of an existing file."""
    parts, values = text.split(","), []
    while parts:
        end = len(parts)
        while end > 1 and not _is_recipe(_unquote(",".join(parts[:end]))):
            end -= 1
        values.append(_unquote(",".join(parts[:end])))
        parts = parts[end:]
    return values


def recipe_name(path: Path) -> str:
    """Return the name of a recipe file: its stem and a short hash of its content."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"no file {str(path)!r} ({error.strerror}): write recipe= with the path of a .yaml "
            "file, or a name without .yaml that `regrow recipes` lists"
        ) from error
    stem = re.sub(r"[^\w.-]+", "_", path.stem, flags=re.ASCII).strip("._-") or "recipe"
    return f"{stem}-{hashlib.sha256(content).hexdigest()[:8]}"


def read_recipe(path: Path) -> DictConfig:
    """Read a recipe from a file outside the package, and check names and types of its settings."""
    try:
        recipe = load(path)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        reason = one_line(error)
        raise ConfigError(f"{path} is no recipe, it cannot be read as YAML: {reason}") from error
    if not isinstance(recipe, DictConfig):
        raise ConfigError(f"{path} is no recipe: write settings as in recipes/digits/gmp.yaml")
    values = recipe.copy()
    for key in ("defaults", "hydra"):
        values.pop(key, None)
    try:
        OmegaConf.merge(OmegaConf.structured(Settings), values)
    except ConfigKeyError as error:
        known = [field.name for field in fields(error.object_type)]  # type: ignore[arg-type]
        raise ConfigError(
            f"{path} sets {error.full_key}, which nothing reads: "
            f"{suggest(str(error.key), known)} (values of your own belong under about:)"
        ) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path} cannot be used: {' '.join(str(error).split())}") from error
    return recipe


def _is_recipe(text: str) -> bool:
    path = Path(text).expanduser()
    return path.suffix in _SUFFIXES and path.is_file()


def _unquote(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


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

    def __init__(self, name: str, group: str, path: Path, own: Iterable[str]) -> None:
        self.name, self.group, self.package, self.provider = name, group, "_global_", str(path)
        self.own = own

    @cached_property
    def node(self) -> DictConfig:  # type: ignore[override]
        return _without_groups(load(Path(str(self.provider))), self.own)


def _without_groups(recipe: DictConfig, own: Iterable[str]) -> DictConfig:
    """Leave out groups that start empty; choose `own` for those with a `_target_` and no option."""
    for group in own:
        recipe.pop(group, None)
    defaults = recipe.get("defaults") or []
    chosen = {str(key) for entry in defaults if isinstance(entry, DictConfig) for key in entry}
    for group in OWN_GROUPS:
        if "_target_" in (recipe.get(group) or {}) and f"override /{group}" not in chosen:
            recipe["defaults"] = [*(recipe.get("defaults") or []), {f"override /{group}": "own"}]
    return recipe


def register(given: Mapping[str, Path] | None = None, own: Collection[str] = ()) -> None:
    """Add the types of the settings and the recipes to Hydra's config store.

    A search path would not find the recipes: the group is `recipe`, the folder `recipes`. Launchers
    pass the store to the processes of their jobs, so files outside the package (`given`, by name)
    are read here. Groups in `own` start empty: their settings in recipes are left out.
    """
    store = ConfigStore.instance()
    store.store("settings", Settings, provider="regrow")
    for name, path in (given or {}).items():
        group, _, stem = f"recipe/{name}".rpartition("/")
        node = _without_groups(read_recipe(path), own)
        store.store(stem, node, group=group, package="_global_", provider=str(path))
    for name, path in recipe_files().items():
        group, _, stem = f"recipe/{name}".rpartition("/")
        folder = store.repo
        for part in group.split("/"):
            folder = folder.setdefault(part, {})
        folder[f"{stem}.yaml"] = _RecipeNode(f"{stem}.yaml", group, path, own)


def no_recipe(name: str, more: Iterable[str] = ()) -> ConfigError:
    """Make the error for an unknown name: Hydra's does not list the options of nested groups."""
    file = Path(f"{name}.yaml")
    hint = suggest(name, [*recipe_files(), *more])
    if file.is_file():
        hint = f"did you mean the file {file}?"
    return ConfigError(f"No recipe {name!r}: {hint} (`regrow recipes` describes them)")
