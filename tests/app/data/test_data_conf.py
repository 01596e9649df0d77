# SPDX-License-Identifier: MIT
"""Each file of conf/app/data contains every setting of its data module, with its default."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from regrow.app.data.base import DataModule, ImageDataModule
from regrow.utils.paths import config_dir

FILES = sorted(config_dir("conf").glob("app/data/*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_files_contain_every_setting(path: Path) -> None:
    node = OmegaConf.merge({"seed": 3}, {"data": OmegaConf.load(path)}).data
    target = get_object(node["_target_"])
    defaults = {
        name: parameter.default
        for kind in reversed(target.__mro__)
        if issubclass(kind, DataModule)
        for name, parameter in inspect.signature(kind).parameters.items()
        if name != "images"  # **images are the parameters of the base
    }
    if issubclass(target, ImageDataModule):  # all of which it names itself
        defaults = {name: p.default for name, p in inspect.signature(target).parameters.items()}
    if path.stem.startswith("cifar"):
        defaults["augment"] = "crop_flip"  # usual for CIFAR
    given = OmegaConf.to_container(node, resolve=True)
    assert isinstance(given, dict)
    del given["_target_"]
    assert given == defaults | {"seed": 3}
    assert instantiate(node).seed == 3
