# SPDX-License-Identifier: MIT
"""Offers `pruning=...` to every Hydra app in the environment."""

from __future__ import annotations

import atexit
import logging
import re
import sys
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

_CHOICE = re.compile(r"\+{0,2}pruning(@[\w.]+)?=(\w+)")
# With these no job runs, or it runs in another process.
_NO_JOB = re.compile(r"-h|--help|-c|--cfg.*|-i|--info.*|-m|--multirun|--hydra-help|-sc|--shell.*")


class RegrowSearchPathPlugin(SearchPathPlugin):
    """Adds conf/shared, which holds the group `pruning` and nothing else."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Appends the folder: at the end, so that an app's own group of that name wins."""
        # Hydra loads this module at each start of any app: torch must stay out of it.
        from regrow.utils.paths import config_dir

        search_path.append(provider="regrow", path=f"file://{config_dir('conf') / 'shared'}")
        atexit.unregister(warn_of_unused_nodes)
        atexit.register(warn_of_unused_nodes)


def warn_of_unused_nodes() -> None:
    """Names the nodes chosen on the command line that nothing instantiated."""
    from regrow.utils.paths import config_dir

    if "regrow.app" in sys.modules or any(map(_NO_JOB.fullmatch, sys.argv)):
        return
    if not logging.getLogger().handlers:  # Hydra adds some once the words compose
        return
    for word, choice in ((word, _CHOICE.fullmatch(word)) for word in sys.argv[1:]):
        file = config_dir("conf") / "shared" / "pruning" / f"{choice and choice[2]}.yaml"
        if file.is_file() and not _was_imported(file):
            sys.stderr.write(
                f"regrow: nothing instantiated the node of {word}, so nothing was pruned. Give "
                "hydra.utils.instantiate(cfg.pruning) to the Trainer as a callback; in an app that "
                f"has a dict of callbacks, write +pruning@callbacks.pruning={file.stem}\n"
            )


def _was_imported(file: Path) -> bool:
    """Whether the public name that the file's `_target_` names was looked up in this process."""
    import regrow

    target = re.search(r"^_target_: regrow\.(\w+)", file.read_text(encoding="utf-8"), re.M)
    return not target or target[1] in vars(regrow)
