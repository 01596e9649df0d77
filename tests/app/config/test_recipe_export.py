# SPDX-License-Identifier: MIT
"""The recipe of a finished run has the same settings when run again."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from slow_cases import mark_rest_slow

from regrow.app.config.hashing import config_hash
from regrow.app.config.recipe_export import (
    FILE,
    KEY,
    RecipeName,
    named_recipe,
    recipe_of,
    recipe_text,
)
from regrow.app.config.recipes import read_recipe, recipe_files, register, replace_recipe_files
from regrow.app.experiment.run import train
from regrow.app.training.build import build_data, build_module
from regrow.utils.paths import config_dir

RECIPES = recipe_files()
APP = config_dir("conf") / "app"


@pytest.fixture(autouse=True, scope="module")
def recipes():
    register()


def named(*words: str) -> list[str]:
    """The words with files registered; those of the package are."""
    names, files = replace_recipe_files(words)
    for name, path in files.items():
        node = read_recipe(path)
        ConfigStore.instance().store(group="recipe", name=name, node=node, package="_global_")
    return names


def composed(*words: str) -> DictConfig:
    """The configuration of `regrow train WORDS...`, as a job of Hydra's gets it."""
    names = named(*words)
    with initialize_config_dir(version_base="1.3", config_dir=str(APP)):
        cfg = compose("train", names, return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = cfg.hydra.runtime.cwd = "/nowhere"
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def important(cfg: DictConfig) -> dict[str, Any]:
    """All settings but places and what is only shown, written out here anew."""
    found: Any = OmegaConf.to_container(cfg)
    for path in ("logger", "paths", "force", "data.root", "data.download"):
        group, _, key = path.partition(".")
        found[group].pop(key, None) if key else found.pop(group)
    for group, names in (
        ("callbacks", "progress sparsity_monitor"),
        (
            "trainer",
            "default_root_dir enable_progress_bar enable_model_summary log_every_n_steps profiler",
        ),
    ):
        for name in names.split():
            found[group].pop(name, None)
    return found


def written(cfg: DictConfig, folder: Path) -> Path:
    path = folder / FILE
    path.write_text(recipe_text(cfg))
    return path


def repeated(tmp_path: Path, *words: str) -> tuple[DictConfig, DictConfig]:
    """A configuration, and that of the recipe which its run writes."""
    cfg = composed(*words)
    path = written(cfg, tmp_path)
    return cfg, composed(f"recipe={path}")


# each costs two compositions: most of them wait for `make slow`
@pytest.mark.parametrize("name", mark_rest_slow(RECIPES, [*RECIPES][::8]))
def test_exported_recipe_repeats_each_recipe(name, tmp_path):
    cfg, again = repeated(tmp_path, f"recipe={name}")
    assert config_hash(again) == config_hash(cfg)
    assert important(again) == important(cfg)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("seed=3", "monitor=val/loss", "monitor_mode=min", "threads=null"),
        ("recipe=digits/gmp", "pruning.sparsity=0.5", "latency.batch=4", "finetune.lr=null"),
        ("recipe=digits/gmp", "scheduler.warmup=0", "seed=0"),  # equal to 0.0, hashed otherwise
        ("recipe=digits/imp", "pruning.rewind=null", "pruning.schedule=cubic"),
        ("recipe=digits/imp", "~pruning.schedule.rate", "~pruning.keep_removed"),
        ("recipe=digits/budget", "~callbacks.random_state", "callbacks.budget.max_drop=0.02"),
        ("recipe=digits/gmp", "callbacks.random_state=null", "~callbacks.progress"),
        ("recipe=digits/gmp", "pruning=none"),
        ("recipe=digits/gmp", "pruning.layers={network.fc.weight:0.5}", "pruning.exclude=[fc,a]"),
        ("+trainer.log_every_n_steps=1", "+trainer.limit_train_batches=2", "trainer.precision=64"),
        ("data.seed=7", "optimizer=adam", "+optimizer.betas=[0.9,0.9]", "scheduler=multistep"),
        ("recipe=digits/rigl", "logger=none", "paths.controls=/elsewhere", "force=true"),
        ("recipe=digits/gmp", "model=resnet8", "model.num_classes=10", "model.in_channels=1"),
        ("+about.note='a: b # c'", "start=pretrained:resnet18"),
    ],
)
def test_exported_recipe_repeats_the_overrides(words, tmp_path):
    cfg, again = repeated(tmp_path, *words)
    assert config_hash(again) == config_hash(cfg)
    assert important(again) == important(cfg)
    assert OmegaConf.to_container(again.about) == OmegaConf.to_container(cfg.about)


GROUPS = {
    folder.name: [path.stem for path in sorted(folder.glob("*.yaml"))]
    for folder in (*APP.iterdir(), config_dir("conf") / "shared" / "pruning")
    if folder.name in {"model", "data", "optimizer", "scheduler", "callbacks", "trainer", "pruning"}
}


NUMBERS = range(max(map(len, GROUPS.values())))


@pytest.mark.parametrize("number", mark_rest_slow(NUMBERS, NUMBERS[::4]))
def test_unchanged_options_are_exported_by_name(number, tmp_path):
    """So the recipe is a difference, to which other options can be given."""
    options = {group: names[number % len(names)] for group, names in GROUPS.items()}
    cfg, again = repeated(tmp_path, *(f"{group}={name}" for group, name in options.items()))
    assert important(again) == important(cfg)
    recipe = OmegaConf.load(tmp_path / "recipe.yaml")
    for group, name in options.items():
        assert {f"override /{group}": name} in recipe.defaults
        assert group not in recipe


def test_exported_recipe_can_be_overridden(tmp_path):
    cfg, again = repeated(tmp_path, "recipe=digits/gmp", "~pruning.seed", "seed=2")
    (tmp_path / "second").mkdir()
    path = written(again, tmp_path / "second")
    assert config_hash(composed(f"recipe={path}")) == config_hash(cfg)
    words = (f"recipe={path}", "model=resnet8", "pruning.sparsity=0.4", "seed=5")
    changed = composed(*words)
    assert (changed.model.depth, changed.pruning.sparsity, changed.seed) == (8, 0.4, 5)


def test_options_of_a_config_dir_are_written_out():
    """They may be missing where the recipe is used; regrow's defaults must not replace them."""
    cfg = composed("recipe=digits/gmp", "seed=1")
    cfg.model = {"_target_": "my.Net", "layers": 3}
    found = recipe_of(cfg, dict(HydraConfig.get().runtime.choices) | {"model": "mine"})
    assert {"override /model": None} in found["defaults"]
    assert found["model"] == {"_target_": "my.Net", "layers": 3}
    assert "logger" not in found
    assert found["seed"] == 1


def test_header_says_how_to_run_the_recipe():
    cfg = composed("recipe=digits/gmp")
    head = [line for line in recipe_text(cfg).splitlines() if line.startswith("#")]
    assert f"The run of digits/gmp, regrow 0.1.0, settings {config_hash(cfg)}" in head[0]
    assert "regrow train recipe=recipe.yaml" in head[1]
    assert len(head) == 3


def test_header_says_if_a_checkpoint_is_needed(tmp_path):
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "dense.ckpt")
    cfg, again = repeated(tmp_path, f"start={tmp_path}/dense.ckpt")
    assert "# It needs the checkpoint of start=" in (tmp_path / "recipe.yaml").read_text()
    assert config_hash(again) == config_hash(cfg)


def test_checkpoint_holds_the_name_of_its_recipe(job, tmp_path):
    cfg = job("recipe=digits/gmp", "pruning.sparsity=0.8")
    data = build_data(cfg)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[RecipeName(named_recipe(cfg))],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(build_module(cfg, data), datamodule=data)
    [path] = tmp_path.rglob("*.ckpt")
    held = torch.load(path, weights_only=True)[KEY]
    assert held == named_recipe(cfg)
    assert held["name"] == "digits/gmp"
    assert all(type(value) is str for value in held.values())
    saved = tmp_path / "out_of_a_checkpoint.yaml"
    saved.write_text(held["text"])
    again = job(*named(f"recipe={saved}"))
    assert config_hash(again) == held["config_hash"] == config_hash(cfg)
    assert again.pruning.sparsity == 0.8


@pytest.mark.slow
def test_run_of_an_exported_recipe_has_the_same_result(job, tmp_path):
    cfg = job("recipe=digits/gmp", "pruning.sparsity=0.5", "seed=1")
    results = [train(cfg)]
    path = written(cfg, tmp_path / "run")
    results.append(train(job(*named(f"recipe={path}"), folder="second")))
    for part in ("config_hash", "sparsity", "history", "layers", "seed"):
        assert results[0][part] == results[1][part]
    assert results[0]["pruned"]["loss"] == results[1]["pruned"]["loss"]
    assert results[1]["recipe"].startswith("recipe-")
