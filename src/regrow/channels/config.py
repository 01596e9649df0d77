# SPDX-License-Identifier: MIT
"""ChannelConfig."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from regrow.channels.allocation import DISTRIBUTIONS, RoundTo, rounding
from regrow.channels.importance import ChannelCriterion, get_channel_criterion, taylor
from regrow.channels.size import UNITS
from regrow.utils.errors import (
    ConfigError,
    StateError,
    check_choice,
    check_count,
    check_patterns,
    check_positive,
    check_sparsity,
)


class ChannelConfig(NamedTuple):
    """How channels are ranked and counted.

    Attributes:
        criterion: "l1", "l2", "bn", "taylor", "fpgm", "random" or a callable
            `(group, parameters) -> scores`.
        distribution: "global" or "uniform".
        of: What a sparsity is a fraction of: "channels", "macs", "params" or "latency".
        round_to: Kept counts are multiples of it, or "auto".
        min_channels: How many channels of a group stay at least.
        include: Patterns of layers that may be cut; None: all.
        exclude: Patterns of those that keep their channels.
        seed: For random choices.
        timer: What tells a model's milliseconds, for `of="latency"`; None: measured.
        latency_ms: How long a pass may take in the end, for `of="latency"`.
    """

    criterion: str | ChannelCriterion = "l2"
    distribution: str = "global"
    of: str = "channels"
    round_to: RoundTo = "auto"
    min_channels: int = 1
    include: Iterable[str] | None = None
    exclude: Iterable[str] | None = None
    seed: int = 0
    timer: Callable[[nn.Module], float] | None = None
    latency_ms: float | None = None

    # what a method of weights has and channels do not
    layers: Mapping[str, float] | None = None

    def validated(self) -> ChannelConfig:
        """The same, with every word and number checked, before any model is at hand.

        Raises:
            ConfigError: What was given, what is allowed, what to write.
        """
        get_channel_criterion(self.criterion, self.seed)
        check_choice("distribution", self.distribution, DISTRIBUTIONS)
        check_choice("of", self.of, (*UNITS, "latency"))
        rounding(1, self.round_to)
        check_count("min_channels", self.min_channels)
        check_count("seed", self.seed, least=0)
        if self.latency_ms is not None:
            check_positive("latency_ms", self.latency_ms, "latency_ms=5.0")
            if self.of != "latency":
                raise ConfigError(
                    f"latency_ms={self.latency_ms:g} is a budget of time, got of={self.of!r}: "
                    "write of='latency', or leave latency_ms out"
                )
        return self._replace(
            include=check_patterns("include", self.include),
            exclude=check_patterns("exclude", self.exclude),
        )

    @property
    def needs_gradients(self) -> bool:
        """Whether scores read gradients."""
        return self.criterion == "taylor" or self.criterion is taylor

    def to_dict(self) -> dict[str, Any]:
        """What must not change between a checkpoint and its resume, as builtin values."""
        name = self.criterion
        if not isinstance(name, str):
            name = getattr(name, "__name__", type(name).__name__)
        return {
            "criterion": name,
            "distribution": self.distribution,
            "of": self.of,
            "round_to": self.round_to,
            "min_channels": self.min_channels,
            "latency_ms": self.latency_ms,
        }

    def check_matches(self, words: Mapping[str, Any]) -> None:
        """Check that a checkpoint was pruned with the same settings.

        Raises:
            StateError: Naming what it was and what it is now.
        """
        now = self.to_dict()
        changed = [
            f"{k}={was!r}, now {now.get(k)!r}" for k, was in words.items() if was != now.get(k)
        ]
        if changed:
            raise StateError(
                f"the checkpoint was pruned with {'; '.join(changed)}: restore that, or load the "
                "weights and start a fit"
            )

    def check_target(self, sparsity: object, what: str = "sparsity") -> float:
        """Returns a final sparsity: the fraction of `of` that is removed, in [0, 1)."""
        return check_sparsity(what, sparsity)
