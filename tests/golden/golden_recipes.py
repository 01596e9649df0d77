# SPDX-License-Identifier: MIT
"""Recipes, composed and built like the command, on small synthetic images."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from golden_digests import describe
from golden_fits import ADDED_METRICS, QUIET, loader, seed_all
from hydra import compose, initialize_config_dir
from lightning.pytorch import Trainer
from omegaconf import OmegaConf

import regrow

# The module that has build_data, build_module, build_pruning and build_callbacks.
BUILDING = ("regrow.app.training.build", "regrow.app.building")
TOP = Path(regrow.__file__).resolve().parents[2]  # conf/ and recipes/ lie here in a checkout
SHAPES = {"digits": (1, 8, 8), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
ONE_DEVICE = ("trainer.accelerator=cpu", "trainer.deterministic=false", "~callbacks.progress")
REFERENCE = "callbacks.budget.reference=0.1"  # there is no validation before the first event
# recipe -> more settings; batches an epoch; samples a batch; epochs that are trained
WORDS: dict[str, tuple[tuple[str, ...], int, int, int]] = {
    "digits/gmp": ((), 4, 16, 20),
    "digits/imp": (("pruning.rewind.to=6it",), 4, 16, 20),
    "digits/rigl": ((), 4, 16, 20),
    "digits/channel": ((), 4, 16, 20),
    "digits/budget": ((REFERENCE,), 4, 16, 12),
    "fashion_mnist/lenet300_snip": ((), 3, 8, 16),
    "fashion_mnist/lenet300_synflow": (("pruning.rounds=3",), 3, 8, 16),
    "fashion_mnist/lenet300_str": ((), 3, 8, 16),
    "fashion_mnist/lenet300_l0": ((), 3, 8, 16),
    "fashion_mnist/lenet300_acdc": ((), 3, 8, 16),
    "fashion_mnist/lenet300_distill": (("callbacks.distill.teacher=start",), 3, 8, 16),
    "fashion_mnist/lenet300_lr_rewind": ((), 3, 8, 16),
    "fashion_mnist/resnet8_channel": ((), 4, 2, 5),
    "cifar10/resnet20_gmp": (("trainer.max_epochs=6",), 2, 2, 6),
}
# recipes that are only composed
COMPOSED = (
    "imagenet/resnet50_rigl",
    "imagenet/resnet50_two_four",
    "imagenet/resnet50_edge_popup",
    "cifar10/vgg19_grasp",
    "cifar10/wrn22_2_set",
    "cifar10/resnet20_cs",
    "cifar100/vgg16_synflow",
    "cifar100/wrn28_10_acdc",
)


def building() -> ModuleType:
    """The app's own builder, wherever it lies."""
    for name in BUILDING:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):
                raise
    raise ModuleNotFoundError(f"none of {BUILDING}")


@functools.cache
def register() -> None:
    """Offers the recipes to Hydra."""
    importlib.import_module("regrow.app.config.recipes").register()


def composed(recipe: str, words: tuple[str, ...]) -> Any:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(TOP / "conf" / "app")):
        return compose("train", [*ONE_DEVICE, f"recipe={recipe}", *words])


def trained(recipe: str) -> dict[str, Any]:
    """A recipe's callbacks and network on its own plan, with little data."""
    words, batches, size, epochs = WORDS[recipe]
    cfg, app = composed(recipe, words), building()
    shape = SHAPES[recipe.partition("/")[0]]
    seed_all()
    # no data module is built: the network and the callbacks need only these
    data = SimpleNamespace(num_classes=10, input_shape=shape, channels_last=False)
    module = app.build_module(cfg, data)
    pruning = app.build_pruning(cfg)
    callbacks = app.build_callbacks(cfg, pruning)
    given = {key: cfg.trainer[key] for key in ("max_epochs", "gradient_clip_val")}
    assert given["max_epochs"] >= epochs
    trainer = Trainer(callbacks=callbacks, **QUIET, **given)
    trainer.fit(module, loader(shape, batches, size), loader(shape, 1, size))
    logged = {
        name: value
        for name, value in trainer.callback_metrics.items()
        if name.startswith("pruning/") and name not in ADDED_METRICS
    }
    return describe(module, [pruning], trainer.optimizers, [logged, OmegaConf.to_yaml(cfg.about)])


def composed_only() -> dict[str, Any]:
    """What pruning settings larger recipes come to, names of classes left out."""
    found = {}
    for name in COMPOSED:
        cfg = composed(name, ())
        node = OmegaConf.to_container(cfg.pruning, resolve=True) if cfg.pruning else None
        found[name] = [without_targets(node), cfg.trainer.max_epochs, cfg.start]
    return describe(torch.nn.Identity(), (), (), found)


def without_targets(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: without_targets(v) for k, v in node.items() if k != "_target_"}
    return [without_targets(v) for v in node] if isinstance(node, list) else node


RECIPES: dict[str, Callable[[], Any]] = {
    f"recipe/{name}": partial(trained, name) for name in WORDS
} | {"recipe/composed_only": composed_only}
