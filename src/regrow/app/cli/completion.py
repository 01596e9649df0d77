# SPDX-License-Identifier: MIT
"""Completion of command lines in a shell.

Hydra's shell script asks `regrow -sc query=SHELL`, with the line in COMP_LINE. Hydra knows nothing
of sub-commands, so these are completed here, and taken out of the line before Hydra completes
groups and settings.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from regrow.app.config.recipes import recipe_files
from regrow.utils.errors import ConfigError


def complete(words: Sequence[str], commands: Sequence[str]) -> None:
    """Print the choices for the last word of COMP_LINE, one a line or as Hydra prints them.

    Args:
        words: "query=bash", "query=zsh" or "query=fish".
        commands: Names of the sub-commands.
    """
    if not words or not words[0].startswith("query=") or "COMP_LINE" not in os.environ:
        raise ConfigError('-sc installs completion: eval "$(regrow train -sc install=bash)"')
    line = os.environ["COMP_LINE"]
    program, _, rest = line.partition(" ")
    command, space, rest = rest.lstrip().partition(" ")
    last = line.rsplit(" ", 1)[-1]
    if not space:
        print("\n".join(name for name in commands if name.startswith(command)))
    elif command not in ("train", "plan"):
        return
    elif last.startswith("recipe="):
        names = (f"recipe={name}" for name in recipe_files())
        print("\n".join(name for name in names if name.startswith(last)))
    else:
        from regrow.app.launch.hydra_app import launch

        os.environ["COMP_LINE"] = f"{program} {rest}"
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))
        launch(command, ["-sc", *words])
