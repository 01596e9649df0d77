# SPDX-License-Identifier: MIT
"""LearnedPruner: masks that are functions of learned scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.io.integrity import SEAL, with_digest
from regrow.learned.controller import target_at
from regrow.learned.learner import MarginCriterion
from regrow.pruning.compute_masks import choose_masks
from regrow.pruning.config import PruningConfig
from regrow.pruning.pruner import Pruner
from regrow.pruning.state import HistoryEntry, KeepRemoved
from regrow.pruning.transaction import atomic


class LearnedPruner(Pruner):
    """A pruner whose masks are learned together with the weights.

    Args:
        model: The model; parameters are changed in place, never replaced, and no module is touched.
        method: Its criterion is a learner's margins.
        keep_removed: What is stored when the masks are fixed: the dense values.

    Attributes:
        learner: Dense weights and scores.
    """

    def __init__(self, model: nn.Module, method: PruningConfig, keep_removed: KeepRemoved) -> None:
        super().__init__(model, method, keep_removed=keep_removed)
        assert isinstance(self.criterion, MarginCriterion)
        self.learner = self.criterion.learner
        self.learner.attach(self.enforcer.parameters)
        self.learner.choose = self._highest
        self.state.before_set = self._store_dense
        self.collects_gradients = False  # gradients are carried back, not gathered

    @property
    def zero_share(self) -> float:
        """The share of exact zeros among the effective weights, at the last look."""
        return sum(self.learner.zeros.values()) / self.total

    @property
    def nonzero(self) -> dict[str, float]:
        """The fraction of each parameter that is not zero, at the last look."""
        zeros = self.learner.zeros
        return {t.name: 1 - zeros[t.name] / t.parameter.numel() for t in self.targets}

    def harden(self, sparsity: float, optimizers: Iterable[Optimizer] = ()) -> HistoryEntry:
        """Turn learned masks into fixed ones: exactly `sparsity`, by the margins.

        Kept weights have their effective values; the dense values of the others are stored.
        """
        entry = self.prune_to(sparsity, optimizers)
        entry["learned"] = self.learner.course.share
        self.learner.stop()
        return entry

    def flush_dense(self) -> None:
        super().flush_dense()
        self.learner.settle()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the pruner and of the learner."""
        state = {key: value for key, value in super().state_dict().items() if key != SEAL}
        return with_digest(state | {"learner": self.learner.state_dict()})

    @atomic
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.learner.load_state_dict(state["learner"])

    @torch.no_grad()
    def _store_dense(self, name: str, mask: Tensor) -> None:
        """Before a mask is set: what it removes gets its dense value, which is then stored."""
        if self.learner.active:
            parameter, dense = self.enforcer.parameters[name], self.learner.dense[name]
            parameter.copy_(torch.where(mask, parameter, dense))

    def _highest(self) -> dict[str, Tensor]:
        """Masks of the highest scores, at the sparsity of this step, for methods that rank."""
        if not (self.learner.method.needs_topk and self.learner.active):
            return {}
        course = self.learner.course
        due = target_at(self.learner.progress, course.target, course.ramp)
        kept = [None] * len(self.targets)
        masks = choose_masks(self.method, self.targets, kept, due, self.layer_targets, 0)
        return {target.name: mask for target, mask in zip(self.targets, masks, strict=True)}
