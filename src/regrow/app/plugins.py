# SPDX-License-Identifier: MIT
"""Launchers and sweepers that come with extras: asked for before Hydra looks for them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence

from regrow.errors import ConfigError

# word of the command line -> Hydra's plugin, and the extra of regrow that installs it
_NEEDED = {
    "hydra/launcher=joblib": ("hydra_joblib_launcher", "sweep"),
    "hydra/launcher=submitit_local": ("hydra_submitit_launcher", "slurm"),
    "hydra/launcher=submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "hydra/sweeper=optuna": ("hydra_optuna_sweeper", "optuna"),
    "sweep=optuna": ("hydra_optuna_sweeper", "optuna"),
}


def check_plugins(words: Sequence[str]) -> None:
    """Refuses a launcher or sweeper that is not installed.

    Raises:
        ConfigError: Saying what to install.
    """
    for word in words:
        key, _, value = word.partition("=")
        names = re.findall(r"\w+", value) if key == "sweep" else [value]
        found = (_NEEDED.get(f"{key}={name}") for name in names)  # sweep=[optuna,seeds] is two
        plugin, extra = next((one for one in found if one), ("", ""))
        if plugin and importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
            raise ConfigError(
                f'{word} needs {plugin.replace("_", "-")}: pip install "regrow[{extra}]"'
            )
