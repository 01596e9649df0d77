# SPDX-License-Identifier: MIT
"""LearnedPruner: masks that are functions of learned scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.io.integrity import DIGEST, with_digest
from regrow.learned.controller import target_at
from regrow.learned.learner import LearnerStateDict, MarginCriterion
from regrow.pruning.compute_masks import choose_masks
from regrow.pruning.config import PruningConfig
from regrow.pruning.pruner import Pruner, PrunerStateDict
from regrow.pruning.state import HistoryEntry, KeepRemoved
from regrow.pruning.transaction import atomic


class LearnedPrunerStateDict(PrunerStateDict):
    """State of a `LearnedPruner`."""

    learner: LearnerStateDict


class LearnedPruner(Pruner):
    """A pruner whose masks are learned together with the weights.

    Args:
        model: The model; parameters are changed in place, never replaced, and no module is touched.
        method: Settings whose criterion is a `MarginCriterion`.
        keep_removed: Whether dense values are stored when the masks are fixed.

    Attributes:
        learner: Dense weights and scores.
    """

    def __init__(self, model: nn.Module, method: PruningConfig, keep_removed: KeepRemoved) -> None:
        super().__init__(model, method, keep_removed=keep_removed)
        assert isinstance(self.criterion, MarginCriterion)
        self.learner = self.criterion.learner
        self.learner.attach(self.enforcer.parameters)
        self.learner.choose = self._topk_masks
        self.state.before_set = self._store_dense
        self.collects_gradients = False  # the learner receives gradients by itself

    @property
    def zero_share(self) -> float:
        """The fraction of effective weights that were exactly zero at the last update."""
        return sum(self.learner.zeros.values()) / self.total

    @property
    def nonzero(self) -> dict[str, float]:
        """The fraction of each parameter that was not zero at the last update."""
        zeros = self.learner.zeros
        return {t.name: 1 - zeros[t.name] / t.parameter.numel() for t in self.targets}

    def harden(self, sparsity: float, optimizers: Iterable[Optimizer] = ()) -> HistoryEntry:
        """Fix the learned masks at exactly `sparsity`, ranked by the margins.

        Kept weights have their effective values; the dense values of the others are stored.
        """
        entry = self.prune_to(sparsity, optimizers)
        entry["learned"] = self.learner.window.share
        self.learner.stop()
        return entry

    def flush_dense(self) -> None:
        super().flush_dense()
        self.learner.flush_dense()

    def state_dict(self) -> LearnedPrunerStateDict:
        state = {key: value for key, value in super().state_dict().items() if key != DIGEST}
        state["learner"] = self.learner.state_dict()
        return cast("LearnedPrunerStateDict", with_digest(state))

    @atomic
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.learner.load_state_dict(state["learner"])

    @torch.no_grad()
    def _store_dense(self, name: str, mask: Tensor) -> None:
        """Write the dense values that a new mask removes, so that these are stored."""
        if self.learner.active:
            parameter, dense = self.enforcer.parameters[name], self.learner.dense[name]
            parameter.copy_(torch.where(mask, parameter, dense))

    def _topk_masks(self) -> dict[str, Tensor]:
        """Compute masks of the highest scores at the present sparsity, for methods that rank."""
        if not (self.learner.method.needs_topk and self.learner.active):
            return {}
        window = self.learner.window
        due = target_at(self.learner.progress, window.target, window.ramp)
        kept = [None] * len(self.targets)
        masks = choose_masks(self.config, self.targets, kept, due, self.layer_targets, 0)
        return {target.name: mask for target, mask in zip(self.targets, masks, strict=True)}
