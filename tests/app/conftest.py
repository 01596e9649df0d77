# SPDX-License-Identifier: MIT
"""Run jobs of the command in this process, which avoids importing Lightning for each job."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from regrow.app.config.recipes import register
from regrow.utils.paths import config_dir

QUICK = (
    "trainer.max_epochs=2",
    "latency.repeats=3",
    "~callbacks.progress",
    "+trainer.enable_progress_bar=false",
)
Job = Callable[..., DictConfig]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Compose `regrow train WORDS...`, with its folder below `tmp_path`."""
    return jobs_below(tmp_path)


@pytest.fixture(scope="module")
def module_job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Job]:
    """A folder for runs that the tests of a module share, and `job` for it."""
    folder = tmp_path_factory.mktemp("jobs")
    return folder, jobs_below(folder)


def jobs_below(root: Path) -> Job:
    """Compose jobs whose folders are below `root`."""

    def make(*words: str, folder: str = "run") -> DictConfig:
        register()
        with initialize_config_dir(version_base="1.3", config_dir=str(config_dir("conf") / "app")):
            cfg = compose("train", [*QUICK, *words], return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(root / folder)
            cfg.hydra.runtime.cwd = str(root)
            cfg.hydra.runtime.version = "1.3"
        (root / folder).mkdir(exist_ok=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    return make
