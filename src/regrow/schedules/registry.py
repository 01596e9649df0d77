# SPDX-License-Identifier: MIT
"""Schedules by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regrow.schedules.base import Schedule
from regrow.schedules.cyclic import ACDC, Cyclic
from regrow.schedules.gradual import Cosine, Cubic, Linear
from regrow.schedules.iterative import Exponential
from regrow.schedules.one_shot import OneShot
from regrow.schedules.time import TimeLike
from regrow.utils.errors import ConfigError, check_choice

SCHEDULES: Mapping[str, type[OneShot | Linear | Cubic | Cosine | Exponential | Cyclic]] = {
    "one_shot": OneShot,
    "linear": Linear,
    "cubic": Cubic,
    "cosine": Cosine,
    "exponential": Exponential,
    "cyclic": Cyclic,
    "acdc": ACDC,
}


def make_schedule(
    schedule: str | Schedule,
    begin: TimeLike | None = None,
    end: TimeLike | None = None,
    every: TimeLike | None = None,
) -> Schedule:
    """Make a schedule from a name and times, or check a given schedule object.

    Raises:
        ConfigError: For an unknown name, for times beside a schedule object, and for times that the
            named schedule does not have.

    Example:
        >>> make_schedule("linear", begin="1ep", end="5ep", every="1ep")
        Linear(begin='1ep', end='5ep', every='1ep')
    """
    times = {"begin": begin, "end": end, "every": every}
    given: dict[str, Any] = {key: time for key, time in times.items() if time is not None}
    if not isinstance(schedule, str):
        if isinstance(schedule, type) or not isinstance(schedule, Schedule):
            raise ConfigError(
                f"schedule must be a name ({', '.join(SCHEDULES)}) or a schedule object such as "
                f"Linear('1ep', '5ep', '1ep'), got {schedule!r}"
            )
        if given:
            raise ConfigError(
                f"{', '.join(given)} beside a schedule object, which has its own times: write "
                f"them in {schedule!r}"
            )
        return schedule
    name = check_choice("schedule", schedule, SCHEDULES)
    if name == "one_shot":
        given = {"at" if key == "begin" else key: value for key, value in given.items()}
    allowed = SCHEDULES[name].__dataclass_fields__
    unknown = [key for key in given if key not in allowed]
    if unknown:
        has = ", ".join("begin" if key == "at" else key for key in allowed)
        raise ConfigError(f"schedule={name!r} has no {' and no '.join(unknown)}: it has {has}")
    return SCHEDULES[name](**given)
