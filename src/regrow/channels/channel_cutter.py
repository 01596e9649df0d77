# SPDX-License-Identifier: MIT
"""ChannelCutter: compact, expand, reshape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from regrow.channels.channel_masker import ChannelUndo
from regrow.channels.cut.channel_cut import (
    ChannelCut,
    comparable,
    make_channel_cut,
    reset_mismatched_state,
    restore_optimizer_shapes,
    slice_optimizer_state,
)
from regrow.channels.cut.surgery import kept_indices
from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.trace import Trace
from regrow.masks.targets import TargetSelection
from regrow.pruning.initializers import removed_values as removed_values
from regrow.pruning.state import KeepRemoved
from regrow.pruning.transaction import atomic
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.names import tensors


class ChannelCuts(ChannelUndo):
    """A model whose masked channels can be cut out, for good or until they are expanded.

    Args:
        model: See `ChannelUndo`, like the next three.
        selection: Every parameter that holds a part of a channel.
        keep_removed: What goes to the vault.
        seed: For random draws.

    Attributes:
        bench: Tries cuts.
        plan: What was cut since the original shapes; empty while nothing was.
    """

    bench: TrialCut

    def __init__(
        self, model: nn.Module, selection: TargetSelection, keep_removed: KeepRemoved, seed: int
    ) -> None:
        super().__init__(model, selection, keep_removed, seed)
        self.plan = ChannelCut()
        self._cuts: list[dict[str, Any]] = []  # each with what it took away

    @atomic
    def compact(self, optimizers: Iterable[Optimizer] = ()) -> ChannelCut | None:
        """Cuts the masked channels out: tensors, optimizers' state and masks become smaller.

        Verified before it is kept; the Parameter objects stay the same. Optimizer state of other
        shapes than its parameter's begins anew.

        Args:
            optimizers: Whose state loses the same places.

        Returns:
            The cut, or None where nothing is masked.

        Raises:
            StateError: If some masked group cannot be cut; the model is masked as before.
        """
        removed = {name: channels for name, channels in self.removed.items() if len(channels)}
        if not removed:
            return None
        optimizers, before = list(optimizers), self.sparsity
        found = self.bench.find_valid(removed)
        if found.pinned:
            found.undo()
            name, reason = next(iter(found.pinned.items()))
            raise StateError(
                f"{name} was masked but cannot be cut ({reason}): the model stays whole, with "
                f"zeros; exclude={[*found.pinned]!r} trains without it"
            )
        try:
            traced = self._traced()
        except ConfigError as error:
            found.undo()
            raise StateError(f"cut, {error}: the model stays whole, with zeros") from error
        except BaseException:
            found.undo()
            raise
        self.enforcer.changes.mark_started()
        counts = {name: len(channels) for name, channels in removed.items()}
        kept = kept_indices(self.groups, removed)
        plan = make_channel_cut(self.model, kept, found.undo, removed=counts, error=found.error)
        slice_optimizer_state(optimizers, self.model, plan)
        reset_mismatched_state(optimizers, self.model, plan)
        self._put_away(plan)
        plan.undo = None  # the old tensors may go
        self.freezer.resize(plan.slice)
        self.originals = {name: plan.slice(name, v) for name, v in self.originals.items()}
        self._again(traced)
        self.record_event("compact", before, channels=counts)
        return plan

    def unprune(
        self, names: Iterable[str] | str | None = None, optimizers: Iterable[Optimizer] = ()
    ) -> dict[str, Any]:
        """Puts masked channels back to the bit; see `ChannelUndo.unprune`.

        Raises:
            StateError: If all that is named was cut: call `expand()`.
        """
        if self._cuts and not any(len(c) for c in self._named_channels(names).values()):
            cut = ", ".join(f"{count} of {name}" for name, count in self.plan.removed.items())
            raise StateError(
                f"these channels were cut, not only masked ({cut}): call expand(), which gives the "
                "original shapes back, or prune with compact='end'"
            )
        return super().unprune(names, optimizers)

    @atomic
    @torch.no_grad()
    def expand(self, optimizers: Iterable[Optimizer] = ()) -> dict[str, Any]:
        """Gives the model its original shapes back, with the removed values to the bit.

        Masked channels come back too, and everything trains. Values that trained on since the cut
        stay as they are now; optimizer state of what comes back is zero.

        Args:
            optimizers: Whose state grows along.

        Returns:
            The new entry of `history`.

        Raises:
            StateError: If nothing was kept.
        """
        if self.removed_weights is None:
            raise StateError("nothing was kept to put back: write keep_removed=True before pruning")
        optimizers, before = list(optimizers), self.sparsity
        self.enforcer.changes.mark_started()
        cuts, self._cuts = self._cuts, []
        self._bring(self._named_channels(None), removed_values, optimizers)
        for cut in reversed(cuts):
            plan = ChannelCut.from_state(cut["plan"])
            plan.restore_shapes(self.model)
            for name, tensor in tensors(self.model).items():
                values = cut["vault"].get(name, cut["stats"].get(name))
                if name in plan.kept and values is not None:
                    gone = ~plan.kept_mask(name).to(tensor.device)
                    tensor.data[gone] = values.to(tensor.device, tensor.dtype)
            restore_optimizer_shapes(optimizers, self.model, plan)
            reset_mismatched_state(optimizers, self.model, plan)
        self.plan, self.target, self.originals = ChannelCut(), 0.0, {}
        self.freezer.set("all", {})
        self._again(self._traced())
        return self.record_event("expand", before)

    @atomic
    def reshape(self, cuts: Sequence[Mapping[str, Any]]) -> None:
        """Gives the model the shapes that it has after some cuts; their values are not set.

        Args:
            cuts: As in `state_dict()["cuts"]`; a model of these shapes is left alone.

        Raises:
            StateError: If they are cuts of another model.
        """
        if self._reshape(cuts):
            self._again(self._traced())

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"cuts": [dict(cut) for cut in self._cuts]}

    def _traced(self) -> Trace:
        """The model as it is now; a pruner knows with what to trace it."""
        raise NotImplementedError("ChannelCuts are part of a ChannelPruner")

    def _again(self, traced: Trace) -> None:
        """After a cut or its return: other shapes, the same groups; a pruner knows how."""
        raise NotImplementedError("ChannelCuts are part of a ChannelPruner")

    def _put_away(self, plan: ChannelCut) -> None:
        """After a cut: what it took away is kept beside its plan."""
        vault = {} if self.removed_weights is None else self.removed_weights.state_dict()
        stats = {
            name: values[~plan.kept_mask(name)]
            for name, values in self._stats.items()
            if name in plan.kept
        }
        self._cuts.append({"plan": plan.state_dict(), "vault": vault, "stats": stats})
        self.plan = self.plan.compose(plan)

    def _reshape(self, cuts: Sequence[Mapping[str, Any]]) -> bool:
        """Gives the model the shapes after some cuts; False where it has them already."""
        if [comparable(cut) for cut in cuts] == [comparable(cut) for cut in self._cuts]:
            self._cuts = [dict(cut) for cut in cuts]
            return False
        plans = [ChannelCut.from_state(cut["plan"]) for cut in cuts]
        self.enforcer.changes.mark_started()
        there = not self._cuts and plans[-1].matches(self.model)  # cut before it came here
        for cut in reversed(self._cuts):
            ChannelCut.from_state(cut["plan"]).restore_shapes(self.model)
        self._cuts, self.plan = [dict(cut) for cut in cuts], ChannelCut()
        for plan in plans:
            if not there:
                plan.apply(self.model)
            self.plan = self.plan.compose(plan)
        return not there
