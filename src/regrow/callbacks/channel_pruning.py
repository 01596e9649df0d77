# SPDX-License-Identifier: MIT
"""ChannelPruning: masks channels by a schedule and cuts them out of the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from regrow.calibration.batch_norm_recalibration import recalibrate
from regrow.calibration.calibrate import inputs_of
from regrow.callbacks.core.averaging import Averages
from regrow.callbacks.core.checkpoint_files import check_masked_state
from regrow.callbacks.core.dispatch import suite_callbacks
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.core.queries import no_event_pending
from regrow.callbacks.core.session import PruningSession, PruningStrategy
from regrow.callbacks.rewind import Rewind, make_rewind
from regrow.callbacks.support.checkpoint_shapes import (
    ShapeHooks,
    find_example,
    fit_shapes,
    training_inputs,
)
from regrow.callbacks.support.compact_checkpoints import (
    MASKED,
    load_compact,
    present_weights,
    write_compact_checkpoints,
)
from regrow.channels.activations import Activations
from regrow.channels.config import ChannelConfig, RoundTo
from regrow.channels.cut.channel_cut import ChannelCut
from regrow.channels.importance import ChannelCriterion
from regrow.channels.pruner import ChannelPruner
from regrow.io.checkpoints import KEY
from regrow.pruning.migration import answer_other_arguments
from regrow.pruning.state import HistoryEntry
from regrow.schedules.base import PruningPlan, Schedule
from regrow.schedules.cyclic import Cyclic
from regrow.schedules.iterative import Exponential
from regrow.schedules.one_shot import Table
from regrow.schedules.registry import make_schedule
from regrow.schedules.time import TimeLike, Timeline
from regrow.utils.errors import ConfigError, StateError, check_bool, check_count, check_sparsity
from regrow.utils.lightning_classes import lightning_classes, pl

_DDP = lightning_classes("strategies.DDPStrategy")


def check_settings(
    compact: object, keep_removed: object, latency_ms: float | None, sparsity_given: bool
) -> None:
    """Check that the settings are valid, alone and together."""
    if compact not in ("end", "event", None):
        raise ConfigError(f"compact must be 'end', 'event' or None, got {compact!r}")
    check_bool("keep_removed", keep_removed)
    if latency_ms is not None and sparsity_given:
        raise ConfigError(
            f"latency_ms={latency_ms!r} says how far to go, and so does sparsity=: "
            "write one of them"
        )


def check_single_process(trainer: pl.Trainer, callback: ChannelPruning) -> None:
    """Check what several ranks do not support; DDP moves a cut at events to the fit's end."""
    assert isinstance(callback.config, ChannelConfig)
    if callback.config.of == "latency":
        raise ConfigError(
            "of='latency' is measured, and ranks would measure differently: write of='macs', "
            "or train on one device"
        )
    if callback.compact_at == "event" and isinstance(trainer.strategy, _DDP):
        rank_zero_info("DDP holds on to the shapes it began with: channels go at the fit's end")
        callback.compact_at = "end"


def recalibrate_on(
    trainer: pl.Trainer, module: pl.LightningModule, batches: Sequence[Tensor]
) -> None:
    """Estimate batch-norm statistics again on batches, if any; other ranks take the first one's."""
    if not batches:
        return
    before, device = module.device, trainer.strategy.root_device
    module.to(device)
    batches = [trainer.precision_plugin.convert_input(batch) for batch in batches]
    with trainer.precision_plugin.forward_context():
        recalibrate(module, batches)
    if trainer.world_size > 1:  # each rank has seen batches of its own
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)
    module.to(before)


def record_activations(
    trainer: pl.Trainer, module: pl.LightningModule, session: PruningSession[Any], batch: Any
) -> None:
    """Record activations on a batch if an event is due that ranks channels by them."""
    collected = session.pruner.collected
    if not isinstance(collected, Activations) or session.due() is None:
        return
    add = partial(trainer.strategy.reduce, reduce_op="sum") if trainer.world_size > 1 else None
    with pl.utilities.seed.isolate_rng():
        collected.record(module, inputs_of(module, [batch], None), add)


# A separate object, to distinguish 0.5 written by a user from the default.
DEFAULT_SPARSITY: Final = float("0.5")


class ChannelPruning(PruningCallback[ChannelPruner]):
    """Prune whole channels of any network that can be traced, and make the network smaller.

    An event masks the least important channels in all layers that share them, including the weights
    that read them. Each cut is first tried and verified. Masked channels are cut out at the end of
    the fit or at events, and out of averages (EMA, SWA) as well. The fit's end then writes
    `compact-NAME.ckpt` beside the best and the last checkpoint of each `ModelCheckpoint`: the cut
    network's weights, the record of the cut and hyper-parameters. After the fit, validation, test
    and prediction with `ckpt_path` cut a full checkpoint's channels too; of a checkpoint with more
    channels than the final network, the final network returns afterwards.

    Args:
        sparsity: Fraction of `of` to remove from the original network, in [0, 1). Default: a
            table's last row, the end of an exponential schedule, or 0.5.
        of: "channels", "macs", "params" or "latency" (measured on this machine).
        latency_ms: With `of="latency"`, the target time of a forward pass in milliseconds, instead
            of `sparsity`; the original network is measured when the fit starts.
        schedule: "one_shot", "linear", "cubic", "cosine" or "exponential" with the three times
            below, or a schedule object.
        begin: First event; None: 0.2 of the fit.
        end: Last event; None: 0.75.
        every: Time between events; None: 0.01.
        distribution: "global" (all groups ranked together), "uniform" (the same fraction of each
            group) or "isomorphic" (the same fraction of each kind of group, ranked together).
        criterion: "l1", "l2", "bn", "fpgm" or "random" read weights, "taylor" the gradients of an
            event's step, "fisher" those of all steps (an exponential mean over about 100),
            "activation" and "apoz" the network's activations on the event's batch; or a callable
            `(group, parameters) -> scores`.
        round_to: Kept counts are multiples of it; "auto": 16 from 64 channels, 8 from 32, else 1.
        min_channels: Least number of channels to keep in a group.
        max_sparsity: Largest fraction of its channels that a group may lose; None: no limit.
        layers: Fractions that the groups of some layers lose in the end, `{"stage3.*": 0.3}`, as
            near as `round_to` allows; the other groups make up the rest of `sparsity`.
        include: Patterns of layers that may lose channels; None: all.
        exclude: Patterns of layers that keep theirs.
        rewind: Time to which weights and learning rate rewind after each event, or a `Rewind`.
        compact: When masked channels are cut out: "end" (of the fit), "event" (once the event can
            no longer be rolled back; later epochs are faster) or None (never).
        recalibrate: Number of training batches on which batch-norm statistics are estimated again
            after the final cut; 0: none.
        example_input: A batch to trace with; None: the module's `example_input_array`, else the
            first training batch.
        timer: Returns a model's milliseconds, for `of="latency"`; None: measured.
        keep_removed: Whether removed values are stored, for `unprune` and `expand`.
        seed: Seed of random choices.
        on_change: What to do on resume if the remaining events have moved; see `MagnitudePruning`.

    Raises:
        ConfigError: For invalid settings, or a network that cannot be traced.

    Example:
        >>> ChannelPruning(0.5, of="flops")
        Traceback (most recent call last):
            ...
        regrow.ConfigError: of must be one of channels, latency, macs, params, got 'flops': \
write 'macs'
    """

    cuts_channels = True

    @answer_other_arguments
    def __init__(
        self,
        sparsity: float = DEFAULT_SPARSITY,
        *,
        of: str = "channels",
        latency_ms: float | None = None,
        schedule: str | Schedule = "linear",
        begin: TimeLike | None = None,
        end: TimeLike | None = None,
        every: TimeLike | None = None,
        distribution: str = "global",
        criterion: str | ChannelCriterion = "l2",
        round_to: RoundTo = "auto",
        min_channels: int = 1,
        max_sparsity: float | None = None,
        layers: dict[str, float] | None = None,
        include: str | list[str] | None = None,
        exclude: str | list[str] | None = None,
        rewind: TimeLike | Rewind | None = None,
        compact: str | None = "end",
        recalibrate: int = 0,
        example_input: Any = None,
        timer: Callable[[nn.Module], float] | None = None,
        keep_removed: bool = True,
        seed: int = 0,
        on_change: str = "refuse",
    ) -> None:
        check_settings(compact, keep_removed, latency_ms, sparsity is not DEFAULT_SPARSITY)
        config = ChannelConfig(
            criterion, distribution, of, round_to, min_channels, include, exclude, seed, timer,
            latency_ms, max_sparsity, layers,
        )  # fmt: skip
        chosen = make_schedule(schedule, begin, end, every)
        if sparsity is DEFAULT_SPARSITY and isinstance(chosen, Exponential | Table):
            sparsity = sparsity if chosen.final is None else chosen.final
        if isinstance(chosen, Cyclic):
            raise ConfigError(
                "a cyclic schedule brings weights back at zero, and a channel with zeros on both "
                "sides never learns: write another schedule"
            )
        final = check_sparsity("sparsity", sparsity)
        strategy = Channels(config=config, keep_removed=keep_removed, example_input=example_input)
        super().__init__(strategy, chosen, final, on_change, make_rewind(rewind))
        self.strategy = strategy
        self.compact_at = compact
        self.changes_shapes = compact is not None
        self.recalibrate = check_count("recalibrate", recalibrate, least=0)
        self._last_failed_event = -1  # the history's length when a cut within the fit failed
        self._hooks = ShapeHooks()
        self._final: tuple[dict[str, Any], dict[str, Any]] | None = None  # pruner and weights

    @property
    def plan(self) -> ChannelCut:
        """The cut from the original shapes to the present ones."""
        return self.pruner.plan

    def compact(self) -> ChannelCut | None:
        """Cut out masked channels now, but not while DDP trains; see `ChannelPruner.compact`."""
        clock = self.session.clock
        if clock is not None and isinstance(clock.trainer.strategy, _DDP):
            raise StateError(
                "DDP holds on to the shapes it began with: leave the cut to the fit's end "
                "(compact='end'), or call compact() after it"
            )
        return self._compact()

    def expand(self) -> HistoryEntry:
        """Restore the original shapes, outside a fit; see `ChannelPruner.expand`.

        Raises:
            StateError: Within a fit.
        """
        if self.session.clock is not None:
            raise StateError("a fit is going on in the small shapes: call expand() after it")
        entry = self.pruner.expand()
        self.session.averages.rebuild(self.pruner.model)
        return entry

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._last_failed_event = -1
        self._hooks.install(pl_module, self._fit_shapes, self._tell_shapes)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        channels, strategy = self.strategy, trainer.strategy
        if self.session.current is None and channels.example is None:
            channels.example = find_example(trainer, pl_module, channels.example_input)
        if trainer.world_size > 1:
            check_single_process(trainer, self)
        super().on_fit_start(trainer, pl_module)
        if isinstance(strategy, _DDP) and strategy.model is not pl_module:
            # wrapped again: the trial cut has replaced the parameters of the gradient hooks
            strategy.model = pl_module
            strategy.configure_ddp()
        for name, reason in self.pruner.not_prunable.items():
            rank_zero_warn(f"{name} keeps its channels, a trial cut breaks the network: {reason}")

    def on_suite_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # within a window of accumulated gradients a cut would lose some of them
        begins = batch_idx % trainer.accumulate_grad_batches == 0
        if begins:  # what a budget has accepted since
            self._compact_settled(trainer)
            record_activations(trainer, pl_module, self.session, batch)
        super().on_suite_batch_start(trainer, pl_module, batch, batch_idx)
        if begins:
            self._compact_settled(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # here, because a budget may still roll events back in on_train_end
        if self.session.current is None:
            return
        super().on_fit_end(trainer, pl_module)
        if self.compact_at is None:
            return
        self._try_to_compact()
        if not self.plan.kept or self._is_masked():
            return
        batches = training_inputs(trainer, self.recalibrate) if self.recalibrate else []
        if self.recalibrate and not batches:
            rank_zero_warn(
                "recalibrate= needs training batches that are tensors or (inputs, ...), so "
                "statistics stay as they are: call regrow.channels.recalibrate(module, batches)"
            )
        finish = partial(recalibrate_on, trainer, pl_module, batches)
        finish()
        self.session.averages.copy_from_model(pl_module)  # it went into the module before
        write_compact_checkpoints(trainer, self.pruner, pl_module, self.state_key, finish)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.strategy.remember((checkpoint.get("callbacks") or {}).get(self.state_key))
        if not self._evaluates:  # else the masks were loaded and cut before the weights
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        self._tell_shapes(checkpoint)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._hooks.remove()
        if self._final is not None:
            (state, weights), self._final = self._final, None
            self.pruner.load_state_dict(state)
            pl_module.load_state_dict(weights)

    def _is_masked(self) -> bool:
        """Whether channels are masked and not cut."""
        return any(len(channels) for channels in self.pruner.removed.values())

    def _compact_settled(self, trainer: pl.Trainer) -> None:
        """Cut, within the fit, channels whose event can no longer be rolled back."""
        tried = self._last_failed_event == len(self.history)
        due = self.compact_at == "event" and self._is_masked() and not tried
        if due and no_event_pending(trainer):
            self._try_to_compact()
            self._last_failed_event = len(self.history)

    def _compact(self) -> ChannelCut | None:
        session = self.session
        plan = self.pruner.compact(session.optimizers)
        if plan is None:
            return None
        session.averages.slice(plan)
        if session.clock is not None:
            session.add_position(self.history[-1])
            trainer = session.clock.trainer
            for callback in suite_callbacks(trainer):
                if callback is not self:
                    callback.on_compact(trainer, trainer.lightning_module, plan)
        return plan

    def _try_to_compact(self) -> None:
        """Cut if possible, else warn and leave channels masked."""
        try:
            self._compact()
        except StateError as error:
            rank_zero_warn(str(error))

    def _require_state(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
        state = super()._require_state(checkpoint)
        self.strategy.remember(state)
        return state

    def _fit_shapes(self, module: pl.LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Give a module the shapes of a checkpoint that is about to be loaded."""
        session = self.session
        state = (checkpoint.get("callbacks") or {}).get(self.state_key) or {}
        cuts = (state.get("pruner") or {}).get("cuts") or []
        if (
            session.current is None
            and cuts
            and not ChannelCut.from_state(cuts[-1]["plan"]).matches(module)
        ):
            self.strategy.remember(state)  # while there are channels to be found
            session.current = self.strategy.make_pruner(module)
        fitting = module.trainer.state.fn == "fit"
        if session.current is None or session.current.model is not module:
            fit_shapes(module, checkpoint)
        elif fitting or not self.plan.kept or self._is_masked():
            session.current.reshape(cuts)
        else:
            self._load_compact(module, checkpoint, state.get("pruner"))
        Averages(module.trainer).resize(module)

    def _load_compact(
        self, module: pl.LightningModule, checkpoint: Any, state: Mapping[str, Any] | None
    ) -> None:
        """Cut a checkpoint's channels after the fit, and remember a final network with fewer."""
        check_masked_state(checkpoint, self.state_key, module.trainer.ckpt_path)
        self._evaluates = True
        weights = present_weights(module, module.state_dict())
        final = self.pruner.state_dict(), weights
        load_compact(self.pruner, module, checkpoint, state)
        present = module.state_dict()
        if any(present[name].numel() > value.numel() for name, value in weights.items()):
            self._final = final
            rank_zero_info(
                "the checkpoint has more channels than the final network, which returns afterwards"
            )
        checkpoint["state_dict"] = present_weights(module, checkpoint["state_dict"])

    def _tell_shapes(self, checkpoint: dict[str, Any]) -> None:
        pruner = self.session.current
        if pruner is not None and pruner.plan.kept:
            checkpoint[KEY] = pruner.plan.state_dict()
        if pruner is not None and self.compact_at is not None and self._is_masked():
            checkpoint[MASKED] = {name: c.clone() for name, c in pruner.removed.items()}


@dataclass(eq=False, kw_only=True)
class Channels(PruningStrategy[ChannelPruner]):
    """Masks channels up to the sparsity of each milestone."""

    config: ChannelConfig
    example_input: Any  # as given
    example: Any = None  # what it is traced with, once that is known

    def make_pruner(self, model: nn.Module) -> ChannelPruner:
        known = self.example
        example = find_example(None, model, self.example_input) if known is None else known
        return ChannelPruner(model, example, self.config, keep_removed=bool(self.keep_removed))

    def remember(self, state: Mapping[str, Any] | None) -> None:
        """Read the example input from a saved state."""
        if state is not None and state["pruner"] is not None:
            self.example = state["pruner"]["example"]

    def plan(
        self, session: PruningSession[ChannelPruner], timeline: Timeline, start: float
    ) -> PruningPlan:
        return super().plan(session, timeline, start) if session.final else ()

    def before_fit(self, session: PruningSession[ChannelPruner]) -> None:
        if self.config.latency_ms is not None:
            session.final = session.pruner.affordable()

    def before_resume(
        self, session: PruningSession[ChannelPruner], state: Mapping[str, Any]
    ) -> None:
        if self.config.latency_ms is not None:
            session.final = state["final"]  # measured when the fit started
