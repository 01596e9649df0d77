# SPDX-License-Identifier: MIT
"""ChannelConfig: settings of channel pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from torch import nn

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

RoundTo = int | Literal["auto"]


def rounding(size: int, round_to: RoundTo) -> int:
    """Return the number of which a group's kept count is a multiple."""
    if round_to == "auto":
        return 16 if size >= 64 else 8 if size >= 32 else 1
    return check_count("round_to", round_to)


class ChannelConfig(NamedTuple):
    """Settings of channel pruning, explained at `regrow.ChannelPruning`."""

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
        check_choice("distribution", self.distribution, ("global", "uniform", "isomorphic"))
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
        always = ("distribution", "of", "round_to", "min_channels", "latency_ms")
        return {
            **{key: value for key, value in optional.items() if value},
            "criterion": callable_name(self.criterion),
            **{name: getattr(self, name) for name in always},
        }
