# SPDX-License-Identifier: MIT
"""BasePruner: what every pruner offers its user and the callbacks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.distributed.parameters import Shards
from regrow.masks.masks import Masks
from regrow.masks.targets import Target
from regrow.pruning.enforcer import MaskEnforcer
from regrow.pruning.freezing import Freezer, TrainSpec
from regrow.pruning.growth import GrowthCriterion
from regrow.pruning.initializers import Initializer
from regrow.pruning.removed_weights import RemovedWeights
from regrow.pruning.state import HistoryEntry, MaskState
from regrow.utils.optimizers import trained_parameters


class BasePruner(ABC):
    """Masks of one model: changes them, restores what they removed, and saves all of it.

    Attributes:
        state: Masks, counts, history and removed weights.
        layer_targets: Sparsity of layers that have a target of their own, by parameter name.
        needs_gradients: Whether `prune_to` reads gradients.
        collects_gradients: Whether `update` has to be called at every step.
    """

    state: MaskState
    layer_targets: Mapping[str, float]
    needs_gradients: bool
    collects_gradients: bool

    @property
    def model(self) -> nn.Module:
        return self.state.model

    @property
    def targets(self) -> tuple[Target, ...]:
        return self.state.targets

    @property
    def masks(self) -> Masks:
        return self.state.masks

    @property
    def sparsity(self) -> float:
        """The fraction that is pruned, in the unit that `prune_to` takes."""
        return self.state.sparsity

    @property
    def densities(self) -> dict[str, float]:
        """The kept fraction of each parameter."""
        return self.state.densities

    @property
    def target(self) -> float:
        """The sparsity last asked for."""
        return self.state.target

    @property
    def history(self) -> list[HistoryEntry]:
        return self.state.history

    @property
    def enforcer(self) -> MaskEnforcer:
        return self.state.enforcer

    @property
    def freezer(self) -> Freezer:
        return self.state.freezer

    @property
    def removed_weights(self) -> RemovedWeights | None:
        return self.state.removed_weights

    @property
    def soft(self) -> bool:
        return self.state.soft

    @property
    def shards(self) -> Shards:
        return self.state.shards

    @property
    def total(self) -> int:
        """How many weights may be pruned."""
        return self.state.total

    @property
    def pruned(self) -> int:
        """How many weights are pruned."""
        return self.state.pruned

    def named(self, names: Iterable[str] | str | None) -> list[Target]:
        """The targets that patterns match; None: all."""
        return self.state.named(names)

    def trained_by(self, optimizer: Optimizer) -> bool:
        """Whether an optimizer trains all targets."""
        trained = trained_parameters(optimizer)
        return all(id(target.parameter) in trained for target in self.targets)

    def enforce(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Apply the masks to weights, present gradients and the optimizers' state."""
        self.state.enforce(optimizers)

    def flush_dense(self) -> None:
        """Take dense values out of the parameters, if no optimizer step did."""
        self.state.flush_dense()

    def set_masks(self, masks: Masks | Mapping[str, Tensor]) -> None:
        """Replace all masks and zero the weights that they prune."""
        self.state.set_masks(masks)

    def resize(self, change: Callable[[str, Tensor], Tensor]) -> None:
        """Change masks and stored tensors along with parameters that lost channels."""
        self.state.resize(change)

    def remember_original(self) -> None:
        """Remember the present values of all targets, for `init="original"`."""
        self.state.originals = {t.name: t.weight.clone() for t in self.targets}

    def record_event(self, kind: str, before: float, **more: Any) -> HistoryEntry:
        """Add an entry to the history, and return it."""
        return self.state.record_event(kind, before, self.sparsity, **more)

    def update(self, optimizer: Optimizer | None = None) -> None:
        """Let a criterion that collects gradients read those of this step; others need none."""
        return

    @abstractmethod
    def progress_towards(self, final: float) -> float:
        """The sparsity reached on the way to `final`, without layers of their own target."""

    @abstractmethod
    def units(self, sparsity: float) -> int:
        """A sparsity as a whole number of units, to compare two."""

    @abstractmethod
    def check_reachable(self, sparsity: float) -> None:
        """Check that `prune_to(sparsity)` could succeed, and change nothing.

        Raises:
            ConfigError: If not, with the largest sparsity that can.
        """

    @abstractmethod
    def prune_to(
        self,
        sparsity: float,
        optimizers: Iterable[Optimizer] = (),
        own: Mapping[str, float] | None = None,
    ) -> HistoryEntry:
        """Prune until `sparsity` is reached, and enforce it."""

    @abstractmethod
    def unprune(
        self, names: Iterable[str] | str | None = None, optimizers: Iterable[Optimizer] = ()
    ) -> HistoryEntry:
        """Restore removed values bit-exactly."""

    @abstractmethod
    def regrow(
        self,
        fraction: float | None = None,
        count: int | None = None,
        *,
        by: str | GrowthCriterion = "random",
        init: str | Initializer = "he",
        names: Iterable[str] | str | None = None,
        train: TrainSpec = "all",
        optimizers: Iterable[Optimizer] = (),
    ) -> HistoryEntry:
        """Let pruned weights return with new values."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to continue: tensors and builtin types only."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
