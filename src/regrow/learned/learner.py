# SPDX-License-Identifier: MIT
"""Score optimizer and penalty."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from regrow.learned.controller import LearningWindow, SparsityController, quantile, restored, saved
from regrow.learned.methods import MaskContext, MaskMethod
from regrow.learned.reparametrize import Reparametrization
from regrow.utils.errors import StateError

OPTIMIZERS = ("adam", "sgd")


class Learner(Reparametrization):
    """Effective weights whose scores have an optimizer and a penalty.

    Args:
        rule: The method.
        optimizer: Of the scores: "adam" or "sgd".
        momentum: Of "sgd".
        train_weights: Whether the dense weights are trained too.
        seed: For the first scores and the noise.

    Attributes:
        penalty: The regulariser's weight times the scores' learning rate: what its gradient is
            multiplied by, a step. It is applied beside the optimizer's step, as AdamW applies
            weight decay, so that Adam does not divide it away.
        zeros: How many effective weights were exactly zero at the last look, by name.
        course: When masks are learned, and how far they are.
        controller: What holds the target.
    """

    def __init__(
        self,
        rule: MaskMethod,
        *,
        optimizer: str = "adam",
        momentum: float = 0.9,
        train_weights: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(rule, train_weights=train_weights, seed=seed)
        self.kind, self.momentum = optimizer, momentum
        self.rate = 0.0
        self.penalty = 0.0
        self.zeros: dict[str, int] = {}
        self.optimizer: Optimizer | None = None
        self.course, self.controller = LearningWindow(0.0, 0.0), SparsityController(0.0)

    def start(self, course: LearningWindow, rate: float | None = None) -> None:
        """Begins to learn.

        Args:
            course: When masks are learned.
            rate: The scores' learning rate; None: what takes a score through its range.
        """
        self.stop()
        self.course = course
        self.rate = self.method.lr_range / course.length if rate is None else rate
        # faster than Adam could take a score the other way
        self.controller = SparsityController(
            max(self.method.penalty_range / course.length, 2 * self.rate)
        )
        self.begin()
        self.optimizer = self._make_optimizer()
        self.update_penalty(course.first - 1)

    def stop(self) -> None:
        """Forgets dense weights and scores; the parameters stay as they are."""
        super().stop()
        self.zeros, self.optimizer, self.penalty = {}, None, 0.0

    @torch.no_grad()
    def step(self, optimizer: Optimizer, now: int, factor: float = 1.0) -> None:
        """What follows an optimizer's step: the scores take theirs, effective weights go in.

        Args:
            optimizer: Whose step it was.
            now: Its number.
            factor: Of the scores' learning rate, now.

        Raises:
            StateError: If the step was made past `carry`, on effective weights.
        """
        assert self.optimizer is not None
        stepped = self.collect_dense(optimizer)
        self.progress = self.course.progress(now)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._decay(stepped)
        self.write_effective(optimizer)
        if now >= self.course.seen + self.course.every:
            self.update_penalty(now)

    @torch.no_grad()
    def update_penalty(self, now: int) -> None:
        """Counts, and gives the penalty the weight that leads to what is due at the next look.

        Args:
            now: The step that was just made.
        """
        course, pruned, total = self.course, 0, 0
        margins = {name: self.margin(name) for name in self.parameters}
        for name, margin in margins.items():
            parameter, mask = self.parameters[name], self._masks.get(name)
            kept = margin > 0 if mask is None else mask
            self.zeros[name] = parameter.numel() - int(parameter.count_nonzero())
            pruned += parameter.numel() - int(kept.count_nonzero())
            total += parameter.numel()
        course.seen, course.share = now, pruned / total
        if not self.method.needs_topk:
            far = quantile(margins.values(), course.due(now + course.every))
            speed = self.controller.update(far, course.every)
            self.penalty = speed / max(self._slope(far), 0.1 * self._slope(0.0))

    @torch.no_grad()
    def margin(self, name: str) -> Tensor:
        """The margin of each weight: 0 and less is what the method would prune.

        Raises:
            StateError: If nothing is being learned.
        """
        if name not in self.scores:
            raise StateError(
                f"no mask of {name} is being learned now: learned masks are chosen once, at the "
                "end of the learning; leave prune_to out, or prune with MagnitudePruning"
            )
        marks = self.scores[name].detach()
        return self.method.margin(self.dense[name].to(marks.dtype), marks)

    def state_dict(self) -> dict[str, Any]:
        if not self.active:
            return {}
        assert self.optimizer is not None
        return {
            "dense": dict(self.dense),
            "scores": {name: scores.detach() for name, scores in self.scores.items()},
            "optimizer": self.optimizer.state_dict(),
            "zeros": dict(self.zeros),
            "rate": self.rate,
            "penalty": self.penalty,
            "progress": self.progress,
            **saved(self.course, self.controller),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave, for the parameters that are bound."""
        self.stop()
        if not state:
            return
        for name, dense in state["dense"].items():
            weight = self.parameters[name].detach()
            self.dense[name] = dense.to(weight, copy=True)
            self.scores[name] = nn.Parameter(state["scores"][name].to(weight.device, copy=True))
        self.zeros, self.rate = dict(state["zeros"]), float(state["rate"])
        self.penalty, self.progress = float(state["penalty"]), float(state["progress"])
        self.course, self.controller = restored(state)
        self.optimizer = self._make_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self._masks = self.choose()

    def _slope(self, margin: float) -> float:
        """How fast the penalty lowers such a margin."""
        scores = torch.stack([scores.detach().mean() for scores in self.scores.values()])
        return self.method.penalty_slope(margin, scores, MaskContext(self.progress))

    def _make_optimizer(self) -> Optimizer:
        if self.kind == "adam":
            return Adam(self.scores.values(), lr=self.rate)
        return SGD(self.scores.values(), lr=self.rate, momentum=self.momentum)

    def _decay(self, names: Iterable[str]) -> None:
        """Takes the regulariser's gradient off the scores."""
        if not self.penalty:
            return
        for name in names:
            scores = self.scores[name].detach()
            scores.sub_(
                self.method.penalty_grad(scores, MaskContext(self.progress)), alpha=self.penalty
            )
            if self.method.max_score is not None:  # beyond it the regulariser would pull back
                scores.clamp_max_(self.method.max_score)


class MarginCriterion:
    """The criterion by which masks are chosen from what was learned.

    Args:
        learner: Whose margins are the scores.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.__name__ = type(learner.method).__name__  # what a checkpoint calls it

    def update(self, name: str, weight: Tensor, grad: Tensor) -> None:
        """Nothing: the learner sees every gradient."""

    def scores(self, name: str, weight: Tensor) -> Tensor:
        """The margin of each weight."""
        return self.learner.margin(name)

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: the learner is saved for itself."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""
