# SPDX-License-Identifier: MIT
"""Each file of conf/app/data says every setting of its data module, with its default."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from regrow.utils.paths import config_dir

FILES = sorted(config_dir("conf").glob("app/data/*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_say_every_setting(path: Path) -> None:
    node = OmegaConf.merge({"seed": 3}, {"data": OmegaConf.load(path)}).data
    target = get_object(node["_target_"])
    defaults = {name: p.default for name, p in inspect.signature(target).parameters.items()}
    given = OmegaConf.to_container(node, resolve=True)
    assert isinstance(given, dict)
    del given["_target_"]
    assert given == defaults | {"seed": 3}
    assert instantiate(node).seed == 3
