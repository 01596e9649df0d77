# SPDX-License-Identifier: MIT
"""Learner: the optimizer and the penalty of scores; MarginCriterion: masks from learned scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from regrow.learned.controller import SparsityController, quantile
from regrow.learned.learning_window import LearningWindow, target_at
from regrow.learned.methods import MaskContext, MaskMethod
from regrow.learned.reparametrize import Reparametrization
from regrow.pruning.compute_masks import choose_masks
from regrow.pruning.pruner import Pruner
from regrow.pruning.state import HistoryEntry
from regrow.utils.errors import StateError
from regrow.utils.logging import warn

OPTIMIZERS = ("adam", "sgd")
_FAR = 0.05  # of the learned sparsity from the target, above which hardening warns


class LearnerStateDict(TypedDict, total=False):
    """State of a `Learner`, by parameter name; empty while nothing is learned."""

    dense: dict[str, Tensor]  # weights
    scores: dict[str, Tensor]
    optimizer: dict[str, Any]  # of the scores
    zeros: dict[str, int]  # effective weights that are exactly zero
    rate: float  # learning rate of the scores
    penalty: float  # its weight
    progress: float  # completed fraction of the learning
    window: dict[str, Any]  # fields of `LearningWindow`
    controller: dict[str, Any]  # fields of `SparsityController`


class Learner(Reparametrization):
    """Effective weights whose scores have an optimizer ("adam" or "sgd") and a penalty."""

    def __init__(
        self,
        method: MaskMethod,
        *,
        optimizer: str = "adam",
        momentum: float = 0.9,
        train_weights: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(method, train_weights=train_weights, seed=seed)
        self.kind, self.momentum = optimizer, momentum
        self.rate = 0.0
        # The factor of the regulariser's gradient in a step: its weight times the learning rate. It
        # is applied beside the optimizer's step, as AdamW's weight decay, or Adam would undo it.
        self.penalty = 0.0
        self.zeros: dict[str, int] = {}  # effective weights that were 0 at the last update
        self.optimizer: Optimizer | None = None
        self.window, self.controller = LearningWindow(0.0, 0.0), SparsityController(0.0)

    @property
    def densities(self) -> dict[str, float]:
        """The fraction of each parameter that was not zero at the last update."""
        return {n: 1 - zeros / self.parameters[n].numel() for n, zeros in self.zeros.items()}

    @property
    def sparsity(self) -> float:
        """The fraction of effective weights that were exactly zero at the last update."""
        total = sum(parameter.numel() for parameter in self.parameters.values())
        return sum(self.zeros.values()) / total

    def attach_to(self, pruner: Pruner) -> None:
        """Learn the masks of a pruner, whose criterion is a `MarginCriterion`."""
        self.attach(pruner.enforcer.parameters)
        self.choose = partial(self._highest, pruner)
        pruner.collects_gradients = False  # the learner receives gradients by itself

    @torch.no_grad()
    def harden(
        self, pruner: Pruner, sparsity: float, optimizers: Iterable[Optimizer] = ()
    ) -> HistoryEntry:
        """Fix the learned masks at exactly `sparsity`, ranked by the margins.

        Kept weights have their effective values; the dense values of the others are stored.
        """
        effective = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._copy(self.dense)
        try:
            entry = pruner.prune_to(sparsity, optimizers)
        finally:
            self._copy(effective)
        pruner.state.apply()
        entry["learned"] = share = self.window.share
        if abs(share - sparsity) > _FAR:
            warn(
                f"masks were learned up to a sparsity of {share:.3f}, and the rest to "
                f"{sparsity:.3f} is pruned at once by their margins: learn over more steps "
                "(begin, end), or with another score_lr"
            )
        self.stop()
        return entry

    def start(self, window: LearningWindow, rate: float | None = None) -> None:
        """Begin to learn; without a rate, at one that moves a score through its range."""
        self.stop()
        self.window = window
        computed = min(self.method.lr_range / window.length, self.method.max_lr)
        self.rate = computed if rate is None else rate
        # faster than Adam could move a score in the other direction
        limit = max(self.method.penalty_range / window.length, 2 * self.rate)
        self.controller = SparsityController(limit)
        self.begin()
        self.optimizer = self._make_optimizer()
        self.update_penalty(window.first - 1)

    def stop(self) -> None:
        super().stop()
        self.zeros, self.optimizer, self.penalty = {}, None, 0.0

    @torch.no_grad()
    def step(self, optimizer: Optimizer, now: int, factor: float = 1.0) -> None:
        """Step the scores after an optimizer's step number `now`, and write effective weights.

        `factor` is that of the scores' learning rate. Errors: see `collect_dense`.
        """
        assert self.optimizer is not None
        stepped = self.collect_dense(optimizer)
        self.progress = self.window.progress(now)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._decay(stepped)
        self.write_effective(optimizer)
        if now >= self.window.last_update + self.window.every:
            self.update_penalty(now)

    @torch.no_grad()
    def update_penalty(self, now: int) -> None:
        """Count zeros after step `now`, and set the penalty that leads to the next sparsity due."""
        window, pruned, total = self.window, 0, 0
        margins = {name: self.margin(name) for name in self.parameters}
        for name, margin in margins.items():
            parameter, mask = self.parameters[name], self._masks.get(name)
            kept = margin > 0 if mask is None else mask
            self.zeros[name] = parameter.numel() - int(parameter.count_nonzero())
            pruned += parameter.numel() - int(kept.count_nonzero())
            total += parameter.numel()
        window.last_update, window.share = now, pruned / total
        if not self.method.needs_topk:
            distance = quantile(margins.values(), window.due(now + window.every))
            speed = self.controller.update(distance, window.every)
            self.penalty = speed / max(self._slope(distance), 0.1 * self._slope(0.0))

    @torch.no_grad()
    def margin(self, name: str) -> Tensor:
        """Compute the margin of each weight; the method would prune those of 0 and less."""
        if name not in self.scores:
            raise StateError(
                f"no mask of {name} is being learned now: learned masks are chosen once, at the "
                "end of the learning; leave prune_to out, or prune with MagnitudePruning"
            )
        scores = self.scores[name].detach()
        return self.method.margin(self.dense[name].to(scores.dtype), scores)

    def state_dict(self) -> LearnerStateDict:
        """Return what is being learned; nothing between two learnings."""
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
            "window": asdict(self.window),
            "controller": asdict(self.controller),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`, for the attached parameters."""
        self.stop()
        if not state:
            return
        for name, dense in state["dense"].items():
            weight = self.parameters[name].detach()
            self.dense[name] = dense.to(weight, copy=True)
            self.scores[name] = nn.Parameter(state["scores"][name].to(weight.device, copy=True))
        self.zeros, self.rate = dict(state["zeros"]), float(state["rate"])
        self.penalty, self.progress = float(state["penalty"]), float(state["progress"])
        self.window = LearningWindow(**state["window"])
        self.controller = SparsityController(**state["controller"])
        self.optimizer = self._make_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self._masks = self.choose()

    def _slope(self, margin: float) -> float:
        scores = torch.stack([scores.detach().mean() for scores in self.scores.values()])
        return self.method.penalty_slope(margin, scores, MaskContext(self.progress))

    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def _highest(self, pruner: Pruner) -> dict[str, Tensor]:
        """Compute masks of the highest scores at the present sparsity, for methods that rank."""
        if not (self.method.needs_topk and self.active):
            return {}
        due = target_at(self.progress, self.window.target, self.window.ramp)
        targets = pruner.targets
        masks = choose_masks(pruner.config, targets, [None] * len(targets), due, {}, 0)
        return {target.name: mask for target, mask in zip(targets, masks, strict=True)}

    def _make_optimizer(self) -> Optimizer:
        if self.kind == "adam":
            return Adam(self.scores.values(), lr=self.rate)
        return SGD(self.scores.values(), lr=self.rate, momentum=self.momentum)

    def _decay(self, names: Iterable[str]) -> None:
        """Subtract the regulariser's gradient from the scores."""
        if not self.penalty:
            return
        context = MaskContext(self.progress)
        for name in names:
            scores = self.scores[name].detach()
            scores.sub_(self.method.penalty_grad(scores, context), alpha=self.penalty)
            if self.method.max_score is not None:  # beyond it the regulariser would pull back
                scores.clamp_max_(self.method.max_score)


class MarginCriterion:
    """A criterion whose scores are the margins of a learner, and whose state is the learner's."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.__name__ = type(learner.method).__name__  # its name in checkpoints

    def update(self, name: str, weight: Tensor, grad: Tensor) -> None: ...

    def scores(self, name: str, weight: Tensor) -> Tensor:
        return self.learner.margin(name)

    def state_dict(self) -> dict[str, Any]:
        return {**self.learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)
