# SPDX-License-Identifier: MIT
"""Keep Hydra from copying its whole store, all recipes included, at every composition.

`ConfigStore.load` copies what it returns, so a copy of the store itself changes no result; it takes
half a second a composition, of which the tests do a thousand.
"""

from hydra.core.config_store import ConfigStore


def share_config_store() -> None:
    """Let a deep copy of the store be the store itself, in this process."""
    ConfigStore.__deepcopy__ = lambda self, memo: self
