# SPDX-License-Identifier: MIT
"""ChannelConfig: settings of channel pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from regrow.channels.allocation import DISTRIBUTIONS, RoundTo, rounding
from regrow.channels.importance import (
    ChannelCriterion,
    MeanScores,
    data_criterion,
    fisher,
    get_channel_criterion,
    taylor,
)
from regrow.channels.size import UNITS
from regrow.utils.errors import (
    ConfigError,
    check_choice,
    check_count,
    check_layer_sparsities,
    check_patterns,
    check_positive,
    check_sparsity,
)
from regrow.utils.names import callable_name


class ChannelConfig(NamedTuple):
    """Settings of channel pruning.

    Attributes:
        criterion: "l1", "l2", "bn", "fpgm", "random", "taylor", "fisher", "activation", "apoz" or a
            callable `(group, parameters) -> scores`; see `regrow.channels.importance`.
        distribution: "global" (all groups ranked together), "uniform" (the same fraction of each
            group) or "isomorphic" (the same fraction of each kind of group, ranked together).
        of: The unit of a sparsity: "channels", "macs", "params" or "latency".
        round_to: Kept counts are multiples of it; "auto": 16 from 64 channels, 8 from 32, else 1.
        min_channels: Minimum number of channels that stay in a group.
        max_sparsity: Largest fraction of its channels that a group may lose; None: no limit.
        layers: Fractions that the groups of some layers lose, `{pattern: fraction}`, as near as
            `round_to` allows; the other groups make up the rest of the sparsity.
        include: Patterns of layers that may be cut; None: all.
        exclude: Patterns of layers that keep their channels.
        seed: Seed of random choices.
        timer: Function `model -> milliseconds` for `of="latency"`; None: measured on this device.
        latency_ms: Latency of the final model in milliseconds, for `of="latency"`.
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
    max_sparsity: float | None = None
    layers: Mapping[str, float] | None = None

    def validated(self) -> ChannelConfig:
        """Check all settings, and return them with patterns as tuples."""
        get_channel_criterion(self.criterion, self.seed)
        check_choice("distribution", self.distribution, DISTRIBUTIONS)
        check_choice("of", self.of, (*UNITS, "latency"))
        rounding(1, self.round_to)
        check_count("min_channels", self.min_channels)
        check_count("seed", self.seed, least=0)
        layers = check_layer_sparsities(self.layers)
        if self.max_sparsity is not None:
            most = check_sparsity("max_sparsity", self.max_sparsity, zero=False)
            if beyond := {p: sparsity for p, sparsity in layers.items() if sparsity > most}:
                raise ConfigError(
                    f"layers={beyond} asks for more than max_sparsity={most:g} lets any group "
                    "lose: write a higher max_sparsity"
                )
        if self.latency_ms is not None:
            check_positive("latency_ms", self.latency_ms, "latency_ms=5.0")
            if self.of != "latency":
                raise ConfigError(
                    f"latency_ms={self.latency_ms:g} is a budget of time, got of={self.of!r}: "
                    "write of='latency', or leave latency_ms out"
                )
        return self._replace(
            layers=layers,
            include=check_patterns("include", self.include),
            exclude=check_patterns("exclude", self.exclude),
        )

    @property
    def needs_gradients(self) -> bool:
        """Whether the criterion reads gradients."""
        named = self.criterion in ("taylor", "fisher", taylor, fisher)
        return named or isinstance(self.criterion, MeanScores)

    @property
    def needs_data(self) -> bool:
        """Whether the criterion reads more than the weights: gradients or activations."""
        return self.needs_gradients or data_criterion(self.criterion) is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that must be the same when a checkpoint is resumed."""
        optional = {"max_sparsity": self.max_sparsity, "layers": dict(self.layers or {})}
        return {
            **{key: value for key, value in optional.items() if value},
            "criterion": callable_name(self.criterion),
            "distribution": self.distribution,
            "of": self.of,
            "round_to": self.round_to,
            "min_channels": self.min_channels,
            "latency_ms": self.latency_ms,
        }
