# SPDX-License-Identifier: MIT
"""Optional dependencies, imported on use."""

from __future__ import annotations

import importlib.util
from typing import Any

from regrow.utils.errors import ConfigError


def import_optional(what: str, extra: str, *names: str) -> Any:
    """Import the last of several modules, whose packages must all be installed.

    `what` is the feature that needs them, `extra` the extra of regrow that installs them.
    """
    packages = dict.fromkeys(name.partition(".")[0] for name in names)
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'{what} needs {", ".join(missing)}: pip install "regrow[{extra}]"')
    return importlib.import_module(names[-1])
