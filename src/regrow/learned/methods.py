# SPDX-License-Identifier: MIT
"""Methods that learn masks: STR, ContinuousSparsification, L0, EdgePopup, SoftMovement.

Each has its vector-Jacobian product in closed form, which takes a third of the time of
`torch.func.vjp`: a step computes one per parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow.utils.errors import check_choice, check_rate

VJP = tuple[Tensor, Tensor]
"""Gradients with respect to weights and scores."""

# The hard-concrete distribution: temperature and ends of the stretched interval.
TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1


class MaskContext(NamedTuple):
    """Inputs of f beside weights and scores; they receive no gradient."""

    progress: float = 0.0  # the completed fraction of the learning
    noise: Tensor | None = None  # logistic, of the weight's shape, for stochastic methods
    mask: Tensor | None = None  # of the highest scores, for methods that rank


@dataclass(frozen=True)
class MaskMethod:
    """Base class of the methods. Scores are float32, of any shape that the method chooses."""

    stochastic: ClassVar[bool] = False  # whether training draws noise
    needs_topk: ClassVar[bool] = False  # whether f needs the mask of the highest scores
    lr_range: ClassVar[float] = 1.0  # how far the optimizer may move a score within the learning
    max_lr: ClassVar[float] = math.inf  # the largest computed learning rate, in a short fit
    penalty_range: ClassVar[float] = 1.0  # how far the penalty may
    trains_weights: ClassVar[bool] = True  # whether the paper trains the weights too
    distribution: ClassVar[str] = "global"  # of a target over layers
    ramp: ClassVar[float] = 0.7  # the fraction of the learning in which the target rises

    @property
    def max_score(self) -> float | None:
        """The upper limit of scores under the penalty."""
        return None

    def init_scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Make the initial scores."""
        raise NotImplementedError

    def weights(self, weight: Tensor, scores: Tensor, given: MaskContext) -> Tensor:
        """Compute the effective weights f(w, s)."""
        raise NotImplementedError

    def vjp(self, weight: Tensor, scores: Tensor, given: MaskContext, grad: Tensor) -> VJP:
        """Compute the gradients of weights and scores from that of f."""
        product = torch.func.vjp(lambda w, s: self.weights(w, s, given), weight, scores)[1]
        to_weight, to_scores = product(grad)
        return to_weight, to_scores

    def penalty_grad(self, scores: Tensor, given: MaskContext) -> Tensor:
        """Compute the gradient of the regulariser of one parameter's scores."""
        raise NotImplementedError

    def margin(self, weight: Tensor, scores: Tensor) -> Tensor:
        """Compute how far each weight is from being pruned, in units of scores; pruned if <= 0."""
        raise NotImplementedError

    def penalty_slope(self, margin: float, scores: Tensor, given: MaskContext) -> float:
        """Compute how fast a penalty of weight 1 lowers the margin of a weight with `margin`."""
        raise NotImplementedError


@dataclass(frozen=True)
class STR(MaskMethod):
    """Learn one soft threshold per layer: f = sign(w) relu(|w| - sigmoid(s)).

    Weight decay raises the score: the regulariser is (s - top)^2 / 2. In the paper scores decay
    towards 0, a threshold of 1/2 that some weights exceed; no weight above sigmoid(top) is pruned
    by its threshold.

    Source: Kusupati et al. 2020 (STR), arXiv:2002.03231, eq. 3 and 4.
    """

    penalty_range: ClassVar[float] = 30.0

    first: float = -8.0  # the initial score; sigmoid(-8) prunes weights below 0.0003
    top: float = 5.0  # the score towards which scores decay

    @property
    def max_score(self) -> float:
        return self.top - 0.01

    def init_scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full((), self.first, device=weight.device)

    def weights(self, weight: Tensor, scores: Tensor, given: MaskContext) -> Tensor:
        threshold = scores.sigmoid()
        return weight - torch.clamp(weight, -threshold, threshold)  # the same, in two passes

    def vjp(self, weight: Tensor, scores: Tensor, given: MaskContext, grad: Tensor) -> VJP:
        """d/dw = g [|w| > t]; d/ds = -t (1 - t) sum of g sign(w) [|w| > t], t = sigmoid(s)."""
        threshold = scores.sigmoid()
        signs = self.weights(weight, scores, given).sign_()
        through = grad * signs
        to_scores = -threshold * (1 - threshold) * through.sum()
        return through.mul_(signs), to_scores

    def penalty_grad(self, scores: Tensor, given: MaskContext) -> Tensor:
        return scores - self.top

    def margin(self, weight: Tensor, scores: Tensor) -> Tensor:
        least = torch.finfo(weight.dtype).tiny  # a weight of 0 is far below any threshold
        return weight.abs().clamp_min(least).log() - F.logsigmoid(scores)

    def penalty_slope(self, margin: float, scores: Tensor, given: MaskContext) -> float:
        return float(((self.top - scores) * (-scores).sigmoid()).mean())


class _Shifted(MaskMethod):
    """Penalise the sum of sigmoids of shifted scores; the margin is measured from `shut`."""

    penalty_range: ClassVar[float] = 120.0
    lr_range: ClassVar[float] = 60.0

    @property
    def shut(self) -> float:
        """The score at which the gate becomes 0."""
        return 0.0

    def margin(self, weight: Tensor, scores: Tensor) -> Tensor:
        return scores - self.shut

    def penalty_slope(self, margin: float, scores: Tensor, given: MaskContext) -> float:
        return float(
            self.penalty_grad(torch.tensor(margin + self.shut, dtype=torch.float64), given)
        )


@dataclass(frozen=True)
class ContinuousSparsification(_Shifted):
    """Learn one gate per weight, regularised by its sum: f = w sigmoid(beta s), kept where s > 0.

    Source: Savarese et al. 2020 (continuous sparsification), arXiv:1912.04427, eq. 7 and section 4.
    """

    penalty_range: ClassVar[float] = 2.0
    lr_range: ClassVar[float] = 1.0

    first: float = 0.1  # the initial score
    most: float = 200.0  # the last beta

    def init_scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full_like(weight, self.first)

    def weights(self, weight: Tensor, scores: Tensor, given: MaskContext) -> Tensor:
        return weight * (self.beta(given) * scores).sigmoid()

    def vjp(self, weight: Tensor, scores: Tensor, given: MaskContext, grad: Tensor) -> VJP:
        """d/dw = g c; d/ds = g w beta c (1 - c), with c = sigmoid(beta s)."""
        gate = (self.beta(given) * scores).sigmoid_()
        to_weight = grad * gate
        return to_weight, (1 - gate).mul_(to_weight).mul_(weight).mul_(self.beta(given))

    def penalty_grad(self, scores: Tensor, given: MaskContext) -> Tensor:
        gate = (self.beta(given) * scores).sigmoid_()
        return (1 - gate).mul_(gate).mul_(self.beta(given))

    def beta(self, given: MaskContext) -> float:
        """Compute the inverse temperature, which grows exponentially from 1 to `most`."""
        return float(self.most**given.progress)


@dataclass(frozen=True)
class L0(_Shifted):
    """Learn one hard-concrete gate per weight, regularised by sum P(gate > 0).

    f = w clamp(c (1.1 + 0.1) - 0.1, 0, 1). With noise n = log u - log(1 - u), u uniform in (0, 1),
    c = sigmoid((n + s) / (2/3)); at evaluation c = sigmoid(s).

    Source: Louizos et al. 2018 (L0 regularisation), arXiv:1712.01312, eq. 10 to 13.
    """

    max_lr: ClassVar[float] = 0.2  # faster ones saturate gates, which no longer follow the penalty
    stochastic: ClassVar[bool] = True

    keep: float = 0.8  # the initial probability that a weight is kept, as in dropout

    def init_scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(weight.shape, generator=generator, device=weight.device)
        return math.log(self.keep / (1 - self.keep)) + 0.01 * noise.to(weight.dtype)

    def weights(self, weight: Tensor, scores: Tensor, given: MaskContext) -> Tensor:
        return weight * (self._concrete(scores, given) * (HIGH - LOW) + LOW).clamp(0, 1)

    def vjp(self, weight: Tensor, scores: Tensor, given: MaskContext, grad: Tensor) -> VJP:
        """d/dw = g gate; d/ds = g w 1.2 c (1 - c) / (2/3) where the gate is not clamped.

        Without noise there is no 2/3.
        """
        heat = 1.0 if given.noise is None else TEMPERATURE
        concrete = self._concrete(scores, given)
        gate = concrete * (HIGH - LOW) + LOW
        inside = (gate >= 0).logical_and_(gate <= 1)
        slope = (1 - concrete).mul_(concrete).mul_(inside).mul_((HIGH - LOW) / heat)
        return gate.clamp_(0, 1).mul_(grad), slope.mul_(weight).mul_(grad)

    def penalty_grad(self, scores: Tensor, given: MaskContext) -> Tensor:
        active = (scores - TEMPERATURE * math.log(-LOW / HIGH)).sigmoid()  # P(gate > 0)
        return (1 - active).mul_(active)

    @property
    def shut(self) -> float:
        return math.log(-LOW / HIGH)

    def _concrete(self, scores: Tensor, given: MaskContext) -> Tensor:
        if given.noise is None:
            return scores.sigmoid()
        return ((given.noise + scores) / TEMPERATURE).sigmoid()


@dataclass(frozen=True)
class EdgePopup(MaskMethod):
    """Keep the highest |s| of each layer, exactly as many as asked for; weights do not train.

    f = w h, with h = 1 for the highest |s|. The gradient passes straight through h:
    d/ds = g w sign(s), also where h prunes.

    Source: Ramanujan et al. 2020 (edge-popup), arXiv:1911.13299, section 3.
    """

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
        size = scores.abs()
        return weight * (given.mask + (size - size.detach()))

    def vjp(self, weight: Tensor, scores: Tensor, given: MaskContext, grad: Tensor) -> VJP:
        """d/dw = g h; d/ds = g w sign(s)."""
        assert given.mask is not None
        return grad * given.mask, scores.sign().mul_(weight).mul_(grad)

    def margin(self, weight: Tensor, scores: Tensor) -> Tensor:
        return scores.abs()


@dataclass(frozen=True)
class SoftMovement(_Shifted):
    """Keep weights with sigmoid(s) above a threshold; the penalty is sum sigmoid(s).

    F = w h with h = 1 where sigmoid(s) > threshold; the gradient passes straight through h:
    d/ds = g w, also where h prunes, and d/dw = g h. Hard movement pruning, which keeps the highest
    of such scores, is `MagnitudePruning(criterion="movement", soft=True)`.

    Attributes:
        threshold: In (0, 1).

    Source: Sanh et al. 2020 (movement pruning), arXiv:2005.07683 (its soft variant).

    Example:
        >>> method, scores = SoftMovement(0.5), torch.tensor([-1.0, 1.0])
        >>> method.weights(torch.tensor([2.0, 3.0]), scores, MaskContext())
        tensor([0., 3.])
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        check_rate("threshold", self.threshold)

    def init_scores(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return torch.zeros_like(weight)

    def weights(self, weight: Tensor, scores: Tensor, given: MaskContext) -> Tensor:
        kept = self.margin(weight, scores) > 0
        return weight * (kept + (scores - scores.detach()))

    def vjp(self, weight: Tensor, scores: Tensor, given: MaskContext, grad: Tensor) -> VJP:
        return grad * (self.margin(weight, scores) > 0), grad * weight

    def penalty_grad(self, scores: Tensor, given: MaskContext) -> Tensor:
        gate = scores.sigmoid()
        return (1 - gate).mul_(gate)

    @property
    def shut(self) -> float:
        return math.log(self.threshold / (1 - self.threshold))


METHODS: Mapping[str, type[MaskMethod]] = {
    "str": STR,
    "cs": ContinuousSparsification,
    "l0": L0,
    "edge_popup": EdgePopup,
}


def get_method(method: str | MaskMethod) -> MaskMethod:
    """Return a method by name, or a given method unchanged."""
    if isinstance(method, MaskMethod):
        return method
    return METHODS[check_choice("method", method, METHODS)]()
