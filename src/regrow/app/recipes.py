# SPDX-License-Identifier: MIT
"""The recipes: what there is, and how Hydra finds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from regrow._paths import config_dir
from regrow.app.given import read_recipe
from regrow.errors import ConfigError, did_you_mean

ABOUT = ("data", "model", "method", "published", "source")


def recipe_files() -> dict[str, Path]:
    """Recipe name -> file, in the order of their names."""
    root = config_dir("recipes")
    return {
        path.relative_to(root).with_suffix("").as_posix(): path
        for path in sorted(root.rglob("*.yaml"))
    }


def load(path: Path) -> DictConfig:
    """One recipe as it is written, without what it stands on."""
    return cast(DictConfig, OmegaConf.load(path))


def register(given: Mapping[str, Path] | None = None) -> None:
    """Makes every recipe an option of the Hydra group `recipe`.

    They are stored rather than found on a search path because the folder is `recipes` and the
    word on the command line is `recipe`. A launcher hands what is stored to other processes.

    Args:
        given: Files outside the package, by the names that they get.

    Raises:
        ConfigError: If one of these is no recipe.
    """
    store = ConfigStore.instance()
    nodes = {name: (path, load(path)) for name, path in recipe_files().items()}
    nodes |= {name: (path, read_recipe(path)) for name, path in (given or {}).items()}
    for name, (path, node) in nodes.items():
        folder, _, stem = f"recipe/{name}".rpartition("/")
        store.store(group=folder, name=stem, node=node, package="_global_", provider=str(path))


def check_names(words: Sequence[str], given: Iterable[str] = ()) -> None:
    """Refuses an unknown recipe by naming the nearest, which Hydra does not do for nested groups.

    Args:
        words: The command line; `recipe=a,b` is checked, choice(...) and the like are Hydra's.
        given: Names of recipes outside the package.
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
                    f"no recipe {name.strip()!r}: {near or did_you_mean(name.strip(), known)} "
                    "(`regrow recipes` describes them)"
                )


def show(words: Sequence[str]) -> None:
    """Prints the recipes, or those that contain every word: one table for each data and model."""
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
        raise ConfigError(f"no recipe speaks of {given!r}: {did_you_mean(given, recipe_files())}")
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a pipe has no width: keep a recipe on one line, for grep
    for table in tables.values():
        table.box, table.title_justify, table.pad_edge = None, "left", False
        console.print(table, end="\n\n")
