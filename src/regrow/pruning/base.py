# SPDX-License-Identifier: MIT
"""BasePruner: the interface of all pruners, for users and callbacks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.masks.masks import Masks
from regrow.masks.targets import Target
from regrow.pruning.enforcer import MaskEnforcer
from regrow.pruning.freezing import TrainSpec
from regrow.pruning.growth import GrowthCriterion
from regrow.pruning.initializers import Initializer
from regrow.pruning.state import HistoryEntry, MaskState
from regrow.utils.optimizers import trained_parameters


class BasePruner(ABC):
    """Changes the masks of one model, restores what they removed, and saves all of it."""

    state: MaskState
    layer_targets: Mapping[str, float]  # sparsity of layers with a separate target, by name
    needs_gradients: bool  # whether `prune_to` reads gradients
    collects_gradients: bool  # whether `update` must be called at every step

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
    def enforcer(self) -> MaskEnforcer:
        return self.state.enforcer

    @property
    def history(self) -> list[HistoryEntry]:
        return self.state.history

    @property
    def sparsity(self) -> float:
        """The pruned fraction, in the unit of `prune_to`."""
        return self.state.sparsity

    @property
    def densities(self) -> dict[str, float]:
        """The kept fraction of each parameter."""
        return self.state.densities

    @property
    def layer_densities(self) -> dict[str, float]:
        """The kept fraction of each layer with a separate target."""
        densities = self.densities
        return {name: densities[name] for name in self.layer_targets}

    @property
    def target(self) -> float:
        """The sparsity last requested."""
        return self.state.target

    @property
    def total(self) -> int:
        """The number of prunable weights."""
        return self.state.total

    @property
    def pruned(self) -> int:
        """The number of pruned weights."""
        return self.state.pruned

    def named(self, names: Iterable[str] | str | None) -> list[Target]:
        """Return the targets that patterns match; None: all."""
        return self.state.named(names)

    def trained_by(self, optimizer: Optimizer) -> bool:
        """Check whether an optimizer trains all targets."""
        trained = trained_parameters(optimizer)
        return all(id(target.parameter) in trained for target in self.targets)

    def enforce(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Apply the masks to weights, present gradients and the optimizers' state."""
        self.state.enforce(optimizers)

    def flush_dense(self) -> None:
        """Move dense values out of the parameters if no optimizer step did."""
        self.state.flush_dense()

    def set_masks(self, masks: Masks | Mapping[str, Tensor]) -> None:
        """Replace all masks and zero the weights that they prune."""
        self.state.set_masks(masks)

    def remember_original(self) -> None:
        """Copy the present values of all targets, for `init="original"`."""
        self.state.originals = {t.name: t.weight.clone() for t in self.targets}

    def record_event(self, kind: str, before: float, **more: Any) -> HistoryEntry:
        """Add an entry to the history, and return it."""
        return self.state.record_event(kind, before, self.sparsity, **more)

    def update(self, optimizer: Optimizer | None = None) -> None:
        """Pass the gradients of this step to a criterion that collects them."""
        return

    @abstractmethod
    def progress_towards(self, final: float) -> float:
        """Return the sparsity reached on the way to `final`."""

    def layer_progress(self, own: Mapping[str, float]) -> float:
        """Return the least fraction that a layer has of its own of these sparsities; 1: all have.

        Where `progress_towards` follows layers with a separate target too, it is 1.
        """
        return 1.0

    @abstractmethod
    def units(self, sparsity: float) -> int:
        """Convert a sparsity to a whole number of units, for comparisons."""

    @abstractmethod
    def check_reachable(self, sparsity: float) -> None:
        """Raise `ConfigError` if `prune_to(sparsity)` could not succeed; nothing changes."""

    @abstractmethod
    def prune_to(
        self,
        sparsity: float,
        optimizers: Iterable[Optimizer] = (),
        own: Mapping[str, float] | None = None,
    ) -> HistoryEntry:
        """Prune until `sparsity` is reached."""

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
        """Restore pruned weights with new values."""

    @abstractmethod
    def state_dict(self) -> Mapping[str, Any]:
        """Return the state to save: a TypedDict that extends `MaskStateDict`."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
