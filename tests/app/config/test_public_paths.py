# SPDX-License-Identifier: MIT
"""Configurations name classes by public paths, so that moving a file changes no run's identity."""

import re
import sys

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from regrow.app.config.hashing import config_hash
from regrow.app.config.instantiate import public_path
from regrow.utils.paths import config_dir

TARGETS = sorted(
    {
        target
        for folder in ("conf", "recipes")
        for path in config_dir(folder).rglob("*.yaml")
        for target in re.findall(r"_target_: *(regrow\.[\w.]+)", path.read_text())
    }
)


def private_path(target):
    """Where the class is defined."""
    found = get_object(target)
    return f"{found.__module__}.{found.__qualname__}"


@pytest.mark.parametrize("target", TARGETS)
def test_targets_are_public(target):
    assert public_path(target) == target
    package = target.rpartition(".")[0]
    get_object(target)
    assert hasattr(sys.modules[package], "__path__"), f"{package} is a file, not a package"
    assert public_path(private_path(target)) == target


def test_hash_uses_public_paths(job):
    cfg = job("recipe=digits/gmp", "pruning.schedule={_target_:regrow.Linear,begin:0,end:1}")
    moved = cfg.copy()
    OmegaConf.set_struct(moved, False)
    for node in (
        moved.model,
        moved.data,
        moved.scheduler,
        moved.pruning,
        moved.pruning.schedule,
        moved.callbacks.random_state,
    ):
        path = private_path(node._target_)
        assert path != node._target_
        node._target_ = path
    assert config_hash(moved) == config_hash(cfg)
    moved.model.width = 17
    assert config_hash(moved) != config_hash(cfg)


@pytest.mark.parametrize("target", ["regrow.nowhere.Thing", "timm.create_model", "regrow.Nothing"])
def test_other_paths_are_kept(target):
    assert public_path(target) == target
