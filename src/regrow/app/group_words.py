# SPDX-License-Identifier: MIT
"""Words of the command line that choose an option of a group: what they hold must be a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from regrow._paths import config_dir
from regrow.app.given import groups
from regrow.errors import ConfigError

_NOTHING = {"pruning": "none", "logger": "none"}  # the option that stands for nothing


def check_groups(words: Sequence[str]) -> None:
    """Refuses `model=0.5` and `logger=null`, over which Hydra stumbles; the rest is Hydra's.

    Raises:
        ConfigError: Naming the group and its options.
    """
    conf = config_dir("conf")
    settings: Any = OmegaConf.to_container(
        OmegaConf.load(conf / "app" / "train.yaml"), resolve=False
    )
    for word in words:
        group, equals, _ = word.partition("=")
        if not equals or group not in (*groups(settings), "recipe"):
            continue
        try:
            [override] = OverridesParser.create().parse_overrides([word])
        except HydraException:
            continue  # it says what is wrong with the word
        if override.is_sweep_override():
            continue
        value = override.value()
        names = value if isinstance(value, list) else [value]
        if group == "sweep" and value is None:
            raise ConfigError("sweep=null chooses nothing: leave it out")
        if not all(isinstance(name, str) for name in names):
            folders = (conf / "app" / group, conf / "shared" / group)
            options = sorted(path.stem for folder in folders for path in folder.glob("*.yaml"))
            nothing = f" ({_NOTHING[group]} for nothing)" if group in _NOTHING else ""
            raise ConfigError(
                f"{word}: {group} takes the name of an option{nothing}, there are: "
                f"{', '.join(options)}"
            )
