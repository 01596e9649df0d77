# SPDX-License-Identifier: MIT
"""ChannelCutter: cuts masked channels out of a model, and restores its original shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.optim import Optimizer

from regrow.channels.channel_masker import ChannelMasker
from regrow.channels.cut.channel_cut import (
    ChannelCut,
    StoredCut,
    comparable,
    restore_optimizer_shapes,
    slice_optimizer_state,
)
from regrow.channels.cut.verify import TrialCut
from regrow.channels.graph.trace import Trace
from regrow.channels.prune_channels import record_cut
from regrow.pruning.initializers import removed_values
from regrow.pruning.transaction import atomic
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.names import tensors


class ChannelCutter:
    """Cuts masked channels out of a model, and restores its original shapes.

    `retrace` traces the present model, `analyse` sets the groups of a traced one everywhere.
    """

    trial: TrialCut  # of the present model

    def __init__(
        self, masker: ChannelMasker, retrace: Callable[[], Trace], analyse: Callable[[Trace], None]
    ) -> None:
        self.masker, self.retrace, self.analyse = masker, retrace, analyse
        self.enforcer, self.model = masker.enforcer, masker.state.model
        self.plan = ChannelCut()  # all cuts since the original shapes as one
        self.cuts: list[StoredCut] = []

    @atomic
    def compact(self, optimizers: Sequence[Optimizer]) -> ChannelCut | None:
        """Cut the masked channels out; see `ChannelPruner.compact`."""
        removed = {name: c for name, c in self.masker.removed.items() if len(c)}
        if not removed:
            return None
        found = self.trial.find_valid(removed)
        if found.failed:
            found.undo()
            name, reason = next(iter(found.failed.items()))
            raise StateError(
                f"{name} was masked but cannot be cut ({reason}): the model keeps its shapes, with "
                f"zeros; exclude={[*found.failed]!r} leaves it out"
            )
        try:
            with found.undo.on_error():
                traced = self.retrace()
        except ConfigError as error:
            raise StateError(f"cut, {error}: the model keeps its shapes, with zeros") from error
        state = self.masker.state
        self.enforcer.transaction.mark_started()
        plan = record_cut(self.model, self.masker.groups, removed, found)
        slice_optimizer_state(optimizers, self.model, plan)
        self._store(plan)
        plan.undo = None  # frees the old tensors
        state.freezer.resize(plan.slice)
        state.originals = {name: plan.slice(name, v) for name, v in state.originals.items()}
        self.analyse(traced)
        return plan

    @atomic
    @torch.no_grad()
    def expand(self, optimizers: Sequence[Optimizer]) -> None:
        """Restore the original shapes and the removed values; see `ChannelPruner.expand`."""
        state = self.masker.state
        self.enforcer.transaction.mark_started()
        cuts, self.cuts = self.cuts, []
        self.masker.bring_back(self.masker.named(None), removed_values, optimizers)
        for cut in reversed(cuts):
            plan = ChannelCut.from_state(cut["plan"])
            plan.restore_shapes(self.model)
            for name, tensor in tensors(self.model).items():
                values = cut["statistics"].get(name, cut["removed_weights"].get(name))
                if name in plan.kept and values is not None:
                    gone = ~plan.kept_mask(name).to(tensor.device)
                    tensor.data[gone] = values.to(tensor.device, tensor.dtype)
            restore_optimizer_shapes(optimizers, self.model, plan)
        self.plan, state.target, state.originals = ChannelCut(), 0.0, {}
        state.freezer.set("all", {})
        self.analyse(self.retrace())

    @atomic
    def reshape(self, cuts: Sequence[StoredCut]) -> None:
        """Set the shapes, not the values, of the model after some cuts, if it has others."""
        if [comparable(cut) for cut in cuts] == [comparable(cut) for cut in self.cuts]:
            self.cuts = [*cuts]
            return
        plans = [ChannelCut.from_state(cut["plan"]) for cut in cuts]
        self.enforcer.transaction.mark_started()
        is_cut = not self.cuts and plans[-1].matches(self.model)  # cut before it came here
        for cut in reversed(self.cuts):
            ChannelCut.from_state(cut["plan"]).restore_shapes(self.model)
        self.cuts, self.plan = [*cuts], ChannelCut()
        for plan in plans:
            if not is_cut:
                plan.apply(self.model)
            self.plan = self.plan.compose(plan)
        if not is_cut:
            self.analyse(self.retrace())

    def _store(self, plan: ChannelCut) -> None:
        """Store a cut with the values that it removed, those of buffers as statistics."""
        removed = self.masker.state.removed_weights
        assert plan.undo is not None
        before = {name: plan.undo.before(t) for name, t in tensors(self.model).items()}
        every = self.masker.statistics | self.masker.unmasked_values(before)
        statistics = {
            name: values[~plan.kept_mask(name)].cpu()
            for name, values in every.items()
            if name in plan.kept
        }
        values = {} if removed is None else removed.state_dict()
        self.cuts.append(
            {"plan": plan.state_dict(), "removed_weights": values, "statistics": statistics}
        )
        self.plan = self.plan.compose(plan)
