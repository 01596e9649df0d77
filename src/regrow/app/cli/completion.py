# SPDX-License-Identifier: MIT
"""Completion of command lines in a shell.

Hydra's shell script calls `regrow -sc query=SHELL` with the line in COMP_LINE. Sub-commands and
recipes are completed here, groups and settings by Hydra, on the line without the sub-command.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from regrow.app.config.recipes import recipe_files
from regrow.utils.errors import ConfigError


def complete(args: Sequence[str], commands: Sequence[str]) -> None:
    """Print the completions of the last word of COMP_LINE.

    Args:
        args: "query=bash", "query=zsh" or "query=fish".
        commands: Names of the sub-commands.
    """
    if not args or not args[0].startswith("query=") or "COMP_LINE" not in os.environ:
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
        launch(command, ["-sc", *args])
