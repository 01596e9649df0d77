# SPDX-License-Identifier: MIT
"""Compose the configuration of one job outside of a Hydra app."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from regrow.app.config.composition import check_composition
from regrow.app.config.overrides import check_groups, choose_own
from regrow.app.config.recipes import check_names, register, replace_recipe_files
from regrow.app.config.schema import check_schema
from regrow.app.launch.hydra_app import cores, quote_value, threads_of
from regrow.utils.paths import config_dir


def compose_job(words: Sequence[str], folder: Path) -> DictConfig:
    """Compose a job as `regrow train WORDS hydra.run.dir=FOLDER` does, and save it there.

    Hydra's own configuration is set too, as in its apps.

    Raises:
        ConfigError: For words that cannot be composed.
    """
    args, given = replace_recipe_files(words)
    check_names(args, given)
    check_groups(args)
    args, own = choose_own(args)
    register(given, own)
    args = [*map(quote_value, args)]
    check_composition("auto", args)
    conf = str(config_dir("conf") / "app")
    with hydra.initialize_config_dir(version_base="1.3", config_dir=conf):
        cfg = hydra.compose("train", args, return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
        cfg.hydra.runtime.cwd = os.getcwd()
        cfg.hydra.runtime.version = hydra.__version__
        cfg.hydra.job.num = 0
    HydraConfig.instance().set_config(cfg)
    launcher, sweeper = cfg.hydra.launcher, cfg.hydra.sweeper
    with open_dict(cfg):
        del cfg["hydra"]
        cfg.threads = threads_of(cfg.threads, launcher, sweeper, cores())
    check_schema(cfg)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    return cfg
