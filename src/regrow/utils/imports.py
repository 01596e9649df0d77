# SPDX-License-Identifier: MIT
"""Optional dependencies, imported on use."""

from __future__ import annotations

import importlib.util
from typing import Any

from regrow.utils.errors import ConfigError


def import_optional(what: str, extra: str, *names: str) -> Any:
    """Import the last of several modules, whose packages must all be installed.

    Args:
        what: The feature that needs them, for the message.
        extra: The extra of regrow that installs them.
        names: Packages, or modules of them.

    Raises:
        ConfigError: Naming the missing packages and how to install them.

    Example:
        >>> import_optional("counting", "export", "json").dumps(1)
        '1'
        >>> import_optional("ONNX", "export", "no_such_package")
        Traceback (most recent call last):
            ...
        regrow.ConfigError: ONNX needs no_such_package: pip install "regrow[export]"
    """
    packages = dict.fromkeys(name.partition(".")[0] for name in names)
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'{what} needs {", ".join(missing)}: pip install "regrow[{extra}]"')
    return importlib.import_module(names[-1])
