# SPDX-License-Identifier: MIT
"""Offers `pruning=...` to every Hydra app in the environment."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class RegrowSearchPathPlugin(SearchPathPlugin):
    """Adds conf/shared, which holds the group `pruning` and nothing else."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends the folder: at the end, so that an app's own group of that name wins."""
        # Hydra loads this module at each start of any app: torch must stay out of it.
        from regrow.utils.paths import config_dir

        search_path.append(provider="regrow", path=f"file://{config_dir('conf') / 'shared'}")
