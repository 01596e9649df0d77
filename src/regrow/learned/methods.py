# SPDX-License-Identifier: MIT
"""STR, ContinuousSparsification, L0, EdgePopup, SoftMovement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow.learned.mask_functions import (
    HIGH,
    LOW,
    VJP,
    hard_concrete,
    hard_concrete_vjp,
    inverse_temperature,
    prob_active,
    sigmoid_gate,
    sigmoid_gate_vjp,
    soft_threshold,
    soft_threshold_vjp,
    topk_straight_through,
    topk_straight_through_vjp,
)
from regrow.utils.errors import check_choice, check_rate


class MaskContext(NamedTuple):
    """What f is given beside weights and scores; its gradient stops here.

    Attributes:
        progress: How much of the learning has passed, 0 to 1.
        noise: Logistic, of the weight's shape, where a rule draws and the network trains.
        mask: Of the highest scores, where a rule chooses.
    """

    progress: float = 0.0
    noise: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class MaskMethod:
    """One method. Scores are float32, of any shape that the rule chooses.

    Attributes:
        draws: Whether training draws noise.
        chooses: Whether f needs the mask of the highest scores, so that its count is exact.
        travel: How far the optimizer may take a score within the learning.
        reach: How far the penalty may.
        trains_weights: Whether the paper trains weights too.
        distribution: How a target is shared among layers.
        ramp: The part of the learning in which the target rises.
    """

    stochastic: ClassVar[bool] = False
    needs_topk: ClassVar[bool] = False
    lr_range: ClassVar[float] = 1.0
    penalty_range: ClassVar[float] = 1.0
    trains_weights: ClassVar[bool] = True
    distribution: ClassVar[str] = "global"
    ramp: ClassVar[float] = 0.7

    @property
    def max_score(self) -> float | None:
        """Beyond which the penalty takes no score."""
        return None

    def init_scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """The scores to begin with."""
        raise NotImplementedError

    def weights(self, weight: Tensor, scores: Tensor, given: MaskContext) -> Tensor:
        """The effective weights f(w, s)."""
        raise NotImplementedError

    def vjp(self, weight: Tensor, scores: Tensor, given: MaskContext, grad: Tensor) -> VJP:
        """What a gradient at f is to weights and scores: a vector-Jacobian product."""
        product = torch.func.vjp(lambda w, s: self.weights(w, s, given), weight, scores)[1]
        to_weight, to_scores = product(grad)
        return to_weight, to_scores

    def penalty_grad(self, scores: Tensor, given: MaskContext) -> Tensor:
        """The gradient of the regulariser of one parameter's scores."""
        raise NotImplementedError

    def margin(self, weight: Tensor, scores: Tensor) -> Tensor:
        """How far each weight is from being pruned, in the unit of scores; pruned at 0 and less."""
        raise NotImplementedError

    def penalty_slope(self, margin: float, scores: Tensor, given: MaskContext) -> float:
        """How fast a unit of the penalty's descent lowers the margin of a weight that has this."""
        raise NotImplementedError


@dataclass(frozen=True)
class STR(MaskMethod):
    """Soft thresholds, one a layer, that weight decay of s raises.

    The regulariser is (s - top)^2 / 2. In the paper scores decay towards 0, a threshold of 1/2 that
    some weights exceed; no weight above sigmoid(top) is pruned by its threshold.

    Attributes:
        first: The scores begin here: sigmoid(-8) prunes weights below 0.0003.
        top: They decay towards this.
    """

    lr_range: ClassVar[float] = 1.0
    penalty_range: ClassVar[float] = 30.0

    first: float = -8.0
    top: float = 5.0

    @property
    def max_score(self) -> float:
        return self.top - 0.01

    def init_scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full((), self.first, device=weight.device)

    def weights(self, weight: Tensor, scores: Tensor, given: MaskContext) -> Tensor:
        return soft_threshold(weight, scores)

    def vjp(self, weight: Tensor, scores: Tensor, given: MaskContext, grad: Tensor) -> VJP:
        return soft_threshold_vjp(weight, scores, grad)

    def penalty_grad(self, scores: Tensor, given: MaskContext) -> Tensor:
        return scores - self.top

    def margin(self, weight: Tensor, scores: Tensor) -> Tensor:
        least = torch.finfo(weight.dtype).tiny  # a weight of 0 is far below any threshold
        return weight.abs().clamp_min(least).log() - F.logsigmoid(scores)

    def penalty_slope(self, margin: float, scores: Tensor, given: MaskContext) -> float:
        return float(((self.top - scores) * (-scores).sigmoid()).mean())


@dataclass(frozen=True)
class ContinuousSparsification(MaskMethod):
    """Sigmoid gates, one a weight, regularised by sum sigmoid(beta s); s > 0 is kept.

    Attributes:
        first: The scores begin here.
        most: The last beta.
    """

    lr_range: ClassVar[float] = 1.0
    penalty_range: ClassVar[float] = 2.0

    first: float = 0.1
    most: float = 200.0

    def init_scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full_like(weight, self.first)

    def weights(self, weight: Tensor, scores: Tensor, given: MaskContext) -> Tensor:
        return sigmoid_gate(weight, scores, inverse_temperature(given.progress, self.most))

    def vjp(self, weight: Tensor, scores: Tensor, given: MaskContext, grad: Tensor) -> VJP:
        return sigmoid_gate_vjp(
            weight, scores, inverse_temperature(given.progress, self.most), grad
        )

    def penalty_grad(self, scores: Tensor, given: MaskContext) -> Tensor:
        beta = inverse_temperature(given.progress, self.most)
        gate = (beta * scores).sigmoid_()
        return (1 - gate).mul_(gate).mul_(beta)

    def margin(self, weight: Tensor, scores: Tensor) -> Tensor:
        return scores

    def penalty_slope(self, margin: float, scores: Tensor, given: MaskContext) -> float:
        return float(self.penalty_grad(torch.tensor(margin, dtype=torch.float64), given))


@dataclass(frozen=True)
class L0(MaskMethod):
    """Hard-concrete gates, one a weight, regularised by sum P(gate > 0).

    Attributes:
        keep: The chance to be kept at the start, as dropout.
    """

    stochastic: ClassVar[bool] = True
    lr_range: ClassVar[float] = 60.0
    penalty_range: ClassVar[float] = 120.0

    keep: float = 0.8

    def init_scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(weight.shape, generator=generator, device=weight.device)
        return math.log(self.keep / (1 - self.keep)) + 0.01 * noise.to(weight.dtype)

    def weights(self, weight: Tensor, scores: Tensor, given: MaskContext) -> Tensor:
        return hard_concrete(weight, scores, given.noise)

    def vjp(self, weight: Tensor, scores: Tensor, given: MaskContext, grad: Tensor) -> VJP:
        return hard_concrete_vjp(weight, scores, given.noise, grad)

    def penalty_grad(self, scores: Tensor, given: MaskContext) -> Tensor:
        chance = prob_active(scores)
        return (1 - chance).mul_(chance)

    def margin(self, weight: Tensor, scores: Tensor) -> Tensor:
        return scores - _SHUT

    def penalty_slope(self, margin: float, scores: Tensor, given: MaskContext) -> float:
        return float(self.penalty_grad(torch.tensor(margin + _SHUT, dtype=torch.float64), given))


@dataclass(frozen=True)
class EdgePopup(MaskMethod):
    """The highest |s| of each layer, exactly as many as asked for; weights are not trained."""

    needs_topk: ClassVar[bool] = True
    lr_range: ClassVar[float] = 5.0
    trains_weights: ClassVar[bool] = False
    distribution: ClassVar[str] = "uniform"
    ramp: ClassVar[float] = 0.0

    def init_scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.rand(weight.shape, generator=generator, device=weight.device)
        return drawn.to(weight.dtype)

    def weights(self, weight: Tensor, scores: Tensor, given: MaskContext) -> Tensor:
        assert given.mask is not None
        return topk_straight_through(weight, scores, given.mask)

    def vjp(self, weight: Tensor, scores: Tensor, given: MaskContext, grad: Tensor) -> VJP:
        assert given.mask is not None
        return topk_straight_through_vjp(weight, scores, given.mask, grad)

    def margin(self, weight: Tensor, scores: Tensor) -> Tensor:
        return scores.abs()


METHODS: Mapping[str, type[MaskMethod]] = {
    "str": STR,
    "cs": ContinuousSparsification,
    "l0": L0,
    "edge_popup": EdgePopup,
}


def get_method(method: str | MaskMethod) -> MaskMethod:
    """A rule from its name, or the rule itself.

    Raises:
        ConfigError: For anything else.

    Example:
        >>> get_method("l0")
        L0(keep=0.8)
    """
    if isinstance(method, MaskMethod):
        return method
    return METHODS[check_choice("method", method, METHODS)]()


# The log_alpha at which the deterministic gate becomes 0.
_SHUT = math.log(-LOW / HIGH)


@dataclass(frozen=True)
class SoftMovement(MaskMethod):
    """Kept is what has sigmoid(s) above a threshold; the penalty is sum sigmoid(s).

    F = w h with h = 1 where sigmoid(s) > threshold; the gradient goes straight through h:
    d/ds = g w, also where h prunes, and d/dw = g h. Hard movement pruning, which keeps the highest
    of such scores, is `MagnitudePruning(criterion="movement", soft=True)`.

    Attributes:
        threshold: In (0, 1).

    Source: Sanh et al. 2020 (movement pruning), arXiv:2005.07683 (its soft variant).

    Example:
        >>> rule, scores = SoftMovement(0.5), torch.tensor([-1.0, 1.0])
        >>> rule.weights(torch.tensor([2.0, 3.0]), scores, MaskContext())
        tensor([0., 3.])
    """

    lr_range: ClassVar[float] = 60.0
    penalty_range: ClassVar[float] = 120.0

    threshold: float = 0.1

    def __post_init__(self) -> None:
        check_rate("threshold", self.threshold)

    def init_scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return torch.zeros_like(weight)

    def weights(self, weight: Tensor, scores: Tensor, given: MaskContext) -> Tensor:
        open_ = self.margin(weight, scores) > 0
        return weight * (open_ + (scores - scores.detach()))

    def vjp(self, weight: Tensor, scores: Tensor, given: MaskContext, grad: Tensor) -> VJP:
        return grad * (self.margin(weight, scores) > 0), grad * weight

    def penalty_grad(self, scores: Tensor, given: MaskContext) -> Tensor:
        gate = scores.sigmoid()
        return (1 - gate).mul_(gate)

    def margin(self, weight: Tensor, scores: Tensor) -> Tensor:
        return scores - self._shut

    def penalty_slope(self, margin: float, scores: Tensor, given: MaskContext) -> float:
        return float(
            self.penalty_grad(torch.tensor(margin + self._shut, dtype=torch.float64), given)
        )

    @property
    def _shut(self) -> float:
        """The score at the threshold."""
        return math.log(self.threshold / (1 - self.threshold))
