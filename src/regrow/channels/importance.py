# SPDX-License-Identifier: MIT
"""Scores of channels: L1, L2, batch-norm scale, Taylor, Fisher, FPGM, random; means over steps.

A channel is scored over all members of its group: rows of the layers that compute it and columns of
those that read it. Scores that depend on a layer's scale are divided by the group's mean.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor

from regrow.channels.activations import MEASURES, Activations
from regrow.channels.graph.groups import Group
from regrow.utils.errors import ConfigError, StateError, check_choice
from regrow.utils.names import callable_name

ChannelCriterion = Callable[[Group, Mapping[str, Tensor]], Tensor]


def l1(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Sum of absolute weights, divided by the group's mean; `(group.size,)` (Li et al. 2017)."""
    return _normalised(sum_by_channel(group, tensors, torch.abs))


def l2(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Euclidean norm of the weights, divided by the group's mean; `(group.size,)`."""
    return _normalised(sum_by_channel(group, tensors, torch.square).sqrt())


def bn_scale(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Absolute scale of the norms of a channel (Liu et al. 2017); train with `slimming` for it."""
    total = torch.zeros(group.size, dtype=torch.float64)
    scales = [(n, d) for n, d in group.members if is_scale(n, tensors)]
    if not scales:
        raise ConfigError(
            f"criterion 'bn' ranks by the scale of norms, and {group.name} has none: exclude it, "
            "or choose 'l2'"
        )
    for name, dim in scales:
        total += _gathered(group, name, dim, tensors[name].detach().abs())
    return total


def taylor(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Squared first-order change of the loss, `(sum of g * w)^2` (Molchanov et al. 2019, eq. 8)."""
    return _sum_of_products(group, tensors, lambda product: product).square()


def fisher(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Second-order change of the loss, sum of `h * w^2 / 2`, with `h = g^2` for its curvature.

    This is optimal brain damage with the Fisher information for the Hessian's diagonal: the mean of
    `g^2` over steps, see `MeanScores`. One gradient is a noisy estimate.

    Source: LeCun et al. 1990 (OBD); Theis et al. 2018, arXiv 1801.05787 (Fisher pruning).
    """
    return _sum_of_products(group, tensors, torch.square) / 2


def fpgm(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Sum of distances to all other filters of the layer (He et al. 2019, eq. 4)."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for name, dim in group.rows:
        if name not in tensors:
            continue
        rows = tensors[name].detach().movedim(dim, 0).flatten(1).double().cpu()
        total += _gathered(group, name, dim, torch.cdist(rows, rows).sum(1))
    return _normalised(total)


class MeanScoresState(TypedDict):
    """State of `MeanScores`."""

    sums: dict[str, Tensor]  # of scores, by group
    steps: float  # their number, or its exponential mean


class MeanScores:
    """A criterion: the mean, over steps, of a criterion that reads gradients.

    Args:
        criterion: "fisher", "taylor" or a callable `(group, parameters) -> scores`.
        decay: Below 1 an exponential mean, of about the last `1 / (1 - decay)` steps.

    Example:
        >>> from torch import nn
        >>> from regrow.channels import groups, prune
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(3, 4)
        >>> mean, found = MeanScores("fisher"), groups(net, x)
        >>> for batch in (x, 2 * x):
        ...     net(batch).square().sum().backward()
        ...     mean.update(found, dict(net.named_parameters()))
        ...     net.zero_grad()
        >>> prune(net, x, 0.5, criterion=mean).removed
        {'0': 4}
    """

    def __init__(self, criterion: str | ChannelCriterion = "fisher", decay: float = 1.0) -> None:
        self.criterion, self.decay = get_channel_criterion(criterion, 0), decay
        self.__name__ = f"mean_{callable_name(criterion)}"
        self._sums: dict[str, Tensor] = {}
        self._steps = 0.0

    def update(self, groups: Iterable[Group], tensors: Mapping[str, Tensor]) -> None:
        """Add the scores of one step; call it after each backward pass."""
        for group in groups:
            scores = self.criterion(group, tensors)
            self._sums[group.name] = scores + self.decay * self._sums.get(group.name, 0.0)
        self._steps = 1 + self.decay * self._steps

    def __call__(self, group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
        if group.name not in self._sums:
            raise StateError(
                f"no gradients of {group.name} were seen: prune after at least one step, or call "
                "update(groups, parameters) after each backward pass"
            )
        return self._sums[group.name] / self._steps

    def clear(self) -> None:
        """Forget all steps."""
        self._sums, self._steps = {}, 0.0

    def state_dict(self) -> MeanScoresState:
        """Return the sums of scores, and the number of steps."""
        return {"sums": {n: total.clone() for n, total in self._sums.items()}, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = {name: total.clone() for name, total in state["sums"].items()}
        self._steps = state["steps"]


def random(seed: int) -> ChannelCriterion:
    """Return a criterion of random scores, the same for the same seed and group."""

    def draw(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{group.name}".encode()))
        return torch.rand(group.size, generator=generator, dtype=torch.float64)

    return draw


CHANNEL_CRITERIA: dict[str, ChannelCriterion] = {
    "l1": l1,
    "l2": l2,
    "bn": bn_scale,
    "taylor": taylor,
    "fisher": fisher,
    "fpgm": fpgm,
}


def get_channel_criterion(criterion: str | ChannelCriterion, seed: int) -> ChannelCriterion:
    """Return a criterion by its name; raise `ConfigError` for an unknown one."""
    if callable(criterion):
        return criterion
    if criterion == "random":
        return random(seed)
    if criterion in MEASURES:
        return Activations(criterion)
    return CHANNEL_CRITERIA[
        check_choice("criterion", criterion, (*CHANNEL_CRITERIA, *MEASURES, "random"))
    ]


def data_criterion(criterion: str | ChannelCriterion) -> MeanScores | Activations | None:
    """Return the criterion that collects data before an event within a fit, if it does."""
    if criterion == "fisher" or criterion is fisher:
        return MeanScores(fisher, decay=0.99)
    if isinstance(criterion, str):
        return Activations(criterion) if criterion in MEASURES else None
    return criterion if isinstance(criterion, MeanScores | Activations) else None


def channel_scores(
    group: Group, tensors: Mapping[str, Tensor], criterion: ChannelCriterion
) -> Tensor:
    """Score a group; check that there is one finite number a channel."""
    scores = criterion(group, tensors).detach().double().cpu()
    if scores.shape != (group.size,):
        raise ConfigError(
            f"the criterion gave {tuple(scores.shape)} for the {group.size} channels of "
            f"{group.name}: give one score each"
        )
    if not bool(scores.isfinite().all()):
        raise StateError(f"scores of {group.name} are not finite: has training diverged?")
    return scores


def _sum_of_products(
    group: Group, tensors: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]
) -> Tensor:
    """Sum a function of gradient times weight, over all trained members of each channel."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for name, dim in group.members:
        weight = tensors.get(name)
        if weight is None or not weight.requires_grad:
            continue
        if weight.grad is None:
            raise StateError(f"{name} has no gradient: run a backward pass before pruning")
        total += _gathered(group, name, dim, change((weight * weight.grad).detach()))
    return total


def is_scale(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Check whether a parameter is the scale of a norm."""
    return name.rpartition(".")[2] == "weight" and name in tensors and tensors[name].ndim == 1


def sum_by_channel(
    group: Group, tensors: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]
) -> Tensor:
    """Sum a function of the weights of each channel; norms and biases are left out."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for name, dim in group.members:
        if name in tensors and tensors[name].ndim > 1:
            total += _gathered(group, name, dim, change(tensors[name].detach()))
    return total


def _gathered(group: Group, name: str, dim: int, values: Tensor) -> Tensor:
    """Sum the values of each channel of one member."""
    rest = [d for d in range(values.ndim) if d != dim] if values.ndim > 1 else []
    places = (values.sum(rest, dtype=torch.float64) if rest else values.double()).cpu()
    channels = group.members[name, dim]
    used = channels >= 0
    return torch.zeros(group.size, dtype=torch.float64).index_add(0, channels[used], places[used])


def _normalised(scores: Tensor) -> Tensor:
    alive = scores[scores > 0]  # without channels that are zeroed already
    return scores / alive.mean() if len(alive) else scores
