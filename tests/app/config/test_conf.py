# SPDX-License-Identifier: MIT
"""Every configuration file composes, has only known keys, and can be instantiated."""

import copy
import functools
import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from regrow.app.config.recipes import ABOUT, load, recipe_files, register
from regrow.utils.paths import config_dir

SHARED = sorted(config_dir("conf").glob("shared/pruning/*.yaml"))
RECIPES = recipe_files()
registered = functools.cache(register)  # what is stored stays for the whole process


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """The configuration of `regrow train OVERRIDES...`, composed once; not to be changed."""
    registered()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir("conf") / "app")):
        return compose("train", list(overrides))


def job(*overrides: str) -> DictConfig:
    """A copy of the configuration of `regrow train OVERRIDES...`."""
    return copy.deepcopy(composed(*overrides))


def keys(node: object, prefix: str = "") -> set[str]:
    """The dotted name of every leaf."""
    if not isinstance(node, dict) or not node:
        return {prefix}
    return set().union(*(keys(value, f"{prefix}.{key}") for key, value in node.items()))


def groups(recipe: DictConfig) -> list[str]:
    """The recipe's choices as words of a command line."""
    pairs = [next(iter(entry.items())) for entry in recipe.get("defaults", [])]
    return [f"{str(group).removeprefix('override /')}={option}" for group, option in pairs]


@pytest.mark.parametrize("path", SHARED, ids=lambda path: path.stem)
def test_shared_files_match_the_signature_of_their_target(path: Path):
    text = path.read_text()
    assert text.startswith("# "), "the first line says what it is"
    assert "@package" not in text, "a header would forbid +pruning@callbacks.pruning=..."
    node = OmegaConf.load(path)
    if path.stem == "none":
        assert node == {}
        return
    target = get_object(node.pop("_target_"))
    assert {*node} <= {*inspect.signature(target).parameters}
    assert "sparsity" in node, "every pruning config has one sparsity to sweep"


@pytest.mark.parametrize("path", SHARED, ids=lambda path: path.stem)
def test_shared_files_can_be_instantiated(path: Path):
    cfg = job(f"pruning={path.stem}")
    pruning = instantiate(cfg.pruning)
    if path.stem == "none":
        assert not pruning
    else:
        assert type(pruning).__name__ == cfg.pruning._target_.rpartition(".")[2]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_an_about_block(name: str):
    recipe = load(RECIPES[name])
    assert {*recipe.about} == {*ABOUT}
    assert all(recipe.about[key] for key in ("data", "model", "method"))
    if recipe.about.published:
        assert recipe.about.source
    assert RECIPES[name].read_text().startswith("# ")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_sets_only_existing_keys(name: str):
    """Hydra lets a file add keys, so a misspelt one would pass in silence."""
    recipe = load(RECIPES[name])
    base = job(*groups(recipe))
    own = OmegaConf.to_container(recipe)
    assert isinstance(own, dict)
    own = {key: value for key, value in own.items() if key not in ("about", "defaults")}
    whole = OmegaConf.to_container(base)
    known = keys(whole)
    free = tuple(f"{key}." for key in known)  # as layers=null, which takes any patterns
    assert {key for key in keys(own) - known if not key.startswith(free)} == set()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.vision if name.startswith("imagenet/") else ())
        for name in RECIPES
    ],
)
def test_recipe_can_be_instantiated(name: str, tmp_path: Path):
    if name.endswith("int8"):
        pytest.importorskip("torchao")
    cfg = job(f"recipe={name}")
    # deterministic=true would be a setting of this whole process
    cfg.trainer.update(accelerator="cpu", deterministic=False, default_root_dir=str(tmp_path))
    for key in ("model", "data", "optimizer", "scheduler", "pruning", "callbacks", "trainer"):
        built = instantiate(cfg[key])
        assert built or key == "pruning"


OWN = [n for n in RECIPES if n.startswith(("digits/", "fashion_mnist/"))]


@pytest.mark.parametrize("name", [n for n in OWN if load(RECIPES[n]).get("start") is None])
def test_retraining_recipes_have_the_total_epochs_of_their_baseline(name: str):
    """Equal total epochs: otherwise the comparison would be one of training time.

    Recipes after a paper are as long as the paper's; their own control is as long as they are.
    """
    cfg = job(f"recipe={name}")
    folder, _, stem = name.rpartition("/")
    model = f"{stem.split('_')[0]}_" if "_" in stem else ""
    control = job(f"recipe={folder}/{model}dense")
    assert cfg.dense_epochs + cfg.trainer.max_epochs == control.trainer.max_epochs


def test_default_config_trains_the_dense_network():
    cfg = job()
    assert cfg.pruning == {}
    assert cfg.seed == 0
    assert cfg.start is None
