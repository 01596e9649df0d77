# SPDX-License-Identifier: MIT
"""LearnedMasks: trains which weights to keep, then hardens the masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, TypedDict

import torch
from torch import nn
from torch.optim import Optimizer

from regrow.callbacks.core.gradients import amp_step_skipped
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.core.session import PruningSession, PruningStrategy
from regrow.distributed.shard import is_dtensor
from regrow.learned.learner import OPTIMIZERS, Learner, MarginCriterion
from regrow.learned.learning_window import LearningWindow
from regrow.learned.methods import MaskMethod, get_method
from regrow.pruning.config import PruningConfig, check_same_settings
from regrow.pruning.migration import answer_other_arguments
from regrow.pruning.pruner import Pruner
from regrow.pruning.state import HistoryEntry
from regrow.schedules.base import Milestone, ProportionalLayers, PruningPlan, step_within
from regrow.schedules.time import Time, TimeLike, Timeline, parse_time
from regrow.utils.errors import (
    ConfigError,
    StateError,
    check_choice,
    check_keep_removed,
    check_positive,
    check_sparsity,
)
from regrow.utils.lightning_classes import pl
from regrow.utils.modes import no_compile


def rate_factor(optimizer: Optimizer, parameter: nn.Parameter) -> float:
    """The learning rate of a parameter relative to the peak of its schedule; 1 without a schedule.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> sgd = torch.optim.SGD(layer.parameters(), lr=0.4)
        >>> _ = torch.optim.lr_scheduler.ExponentialLR(sgd, 0.5)
        >>> sgd.param_groups[0]["lr"] = 0.1
        >>> rate_factor(sgd, layer.weight)
        0.25
    """
    for group in optimizer.param_groups:
        if any(other is parameter for other in group["params"]):
            rate = float(group["lr"])
            peak = float(group.get("max_lr", group.get("initial_lr", rate)))
            return rate / peak if peak else 1.0
    return 1.0


def check_learnable(trainer: pl.Trainer, pruner: Pruner) -> None:
    """Check that hooks see the gradients of all effective weights.

    LBFGS and a fused step with a scaler hide them; frozen weights have none.
    """
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ConfigError(
                "LBFGS runs the network within its step, where learned masks keep dense weights: "
                "write another optimizer"
            )
        scales = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scales and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ConfigError(
                f"a fused {type(optimizer).__name__} unscales 16-bit gradients within its step, so "
                "scores would learn from scaled ones: write fused=False, or precision='bf16-mixed'"
            )
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    trained = {id(p) for group in groups for p in group["params"] if p.requires_grad}
    frozen = [t.name for t in pruner.targets if id(t.parameter) not in trained]
    if frozen:
        raise ConfigError(
            f"{', '.join(frozen[:3])} trains under no optimizer (frozen?), so no gradient would "
            "reach the scores: exclude it, or unfreeze it: train_weights=False keeps its weights "
            "fixed while masks are learned"
        )
    sharded = [t.name for t in pruner.targets if is_dtensor(t.parameter)]
    if sharded:
        raise ConfigError(
            f"{sharded[0]} is sharded, and masks of sharded parameters are not learned yet: write "
            "strategy='ddp', or MagnitudePruning"
        )


@dataclass(frozen=True)
class Learning(ProportionalLayers):
    """The steps in which masks are learned; the one event hardens them."""

    begin: TimeLike = 0
    end: TimeLike = 0.75

    def __post_init__(self) -> None:
        begin, end = self.times()
        if begin.unit == end.unit and begin.amount >= end.amount:
            raise ConfigError(f"begin={begin} must lie before end={end}")

    def times(self) -> tuple[Time, ...]:
        return parse_time("begin", self.begin), parse_time("end", self.end)

    def first(self, timeline: Timeline) -> int:
        return timeline.step(self.times()[0], "begin")

    def plan(self, target: float, timeline: Timeline, start: float = 0.0) -> PruningPlan:
        last = step_within("end", self.times()[1], timeline)
        if self.first(timeline) >= last:
            raise ConfigError(
                f"begin={self.begin} (step {self.first(timeline)}) must lie before "
                f"end={self.end} (step {last})"
            )
        return (Milestone(last, target),)


class LearnedMasks(PruningCallback[Pruner]):
    """Learn which weights to keep, reach a target sparsity, and harden the masks.

    From `begin` to `end` the module computes with effective weights f(w, s), in validation and
    checkpoints too, while the optimizer updates the dense weights w, and an own optimizer the
    scores s. No layer is wrapped and no key is added. A controller sets the weight of the penalty
    on s such that the sparsity follows a cubic ramp. At `end` exactly the target is pruned; kept
    weights get their effective values and train on under fixed masks.

    Until `end`, `pruning/sparsity` is the fraction of effective weights that are exactly zero (none
    with "cs", whose gates close at the end). The learning rate of the scores follows the schedule
    of the weights. Memory: one more copy of the weights, and up to three more for methods with one
    score per weight.

    Args:
        method: "str" (soft thresholds, one per layer), "cs" (continuous sparsification), "l0"
            (hard-concrete gates), "edge_popup" (top scores), or a method with settings, such as
            `L0(keep=0.5)`; see `regrow.learned.methods`.
        sparsity: Fraction of the selected weights to prune, in (0, 1).
        begin: Start of learning; the network is dense before.
        end: When masks are hardened.
        ramp: Fraction of the learning steps in which the target rises, in [0, 1]; None: 0.7, and 0
            with "edge_popup", whose count is exact from the start.
        score_lr: Learning rate of the scores at the peak of the schedule. None: computed, such that
            a score can cross its range while masks are learned (at most 0.2 with "l0").
        score_optimizer: "adam" or "sgd".
        score_momentum: Momentum of "sgd".
        train_weights: Whether w is trained while masks are learned; None: as in the paper, True
            except for "edge_popup".
        include: Patterns of parameters or modules to prune; None: the weights of convolutions,
            Linear and recurrent layers and attention.
        exclude: Patterns to leave dense; "@first", "@last", "@depthwise" name layers.
        keep_removed: What is stored for `unprune`: True (dense values), "moments" or False.
        seed: Seed of the first scores and of the gates' noise.
        on_change: What to do on resume if `end` has moved; see `MagnitudePruning`.

    Raises:
        ConfigError: For invalid settings, at construction where possible, else before the first
            step; beside LBFGS or `ChannelPruning`, or for frozen weights.
        StateError: For models and checkpoints that do not match.

    Source: Kusupati et al. 2020 (STR); Savarese et al. 2020 (continuous sparsification); Louizos et
    al. 2018 (L0); Ramanujan et al. 2020 (edge-popup).

    Example:
        >>> LearnedMasks("l1", 0.9)
        Traceback (most recent call last):
            ...
        regrow.ConfigError: method must be one of cs, edge_popup, l0, str, got 'l1': \
did you mean 'l0'?
    """

    @answer_other_arguments
    def __init__(
        self,
        method: str | MaskMethod = "str",
        sparsity: float = 0.9,
        *,
        begin: TimeLike = 0,
        end: TimeLike = 0.75,
        ramp: float | None = None,
        score_lr: float | None = None,
        score_optimizer: str = "adam",
        score_momentum: float = 0.9,
        train_weights: bool | None = None,
        include: str | list[str] | None = None,
        exclude: str | list[str] | None = None,
        keep_removed: bool | str = True,
        seed: int = 0,
        on_change: str = "refuse",
    ) -> None:
        rule = get_method(method)
        final = check_sparsity("sparsity", sparsity, zero=False)
        ramp = rule.ramp if ramp is None else _share("ramp", ramp)
        if score_lr is not None:
            score_lr = check_positive("score_lr", score_lr, "0.01")
        if train_weights not in (None, True, False):
            raise ConfigError(f"train_weights must be True, False or null, got {train_weights!r}")
        learner = Learner(
            rule,
            optimizer=check_choice("score_optimizer", score_optimizer, OPTIMIZERS),
            momentum=check_sparsity("score_momentum", score_momentum),
            train_weights=rule.trains_weights if train_weights is None else train_weights,
            seed=seed,
        )
        config = PruningConfig(
            MarginCriterion(learner), rule.distribution, "weight", None, include, exclude, seed
        )
        learning = Learning(begin, end)
        pace: dict[str, Any] = {"ramp": ramp, "score_lr": score_lr}
        settings = {
            "method": repr(rule) if is_dataclass(rule) else type(rule).__name__,
            **pace,
            "score_optimizer": f"{score_optimizer}, {score_momentum}",
            "train_weights": train_weights,
        }
        strategy = LearnedMask(
            config=config,
            keep_removed=check_keep_removed(keep_removed),
            learner=learner,
            learning=learning,
            settings=settings,
            **pace,
        )
        super().__init__(strategy, learning, final, on_change)
        self.strategy = strategy

    def prune_to(self, sparsity: float) -> HistoryEntry:
        """Raise `StateError`: learned masks are hardened once, at `end`."""
        raise StateError(
            f"learned masks are hardened once, at end={self.strategy.learning.end}, to sparsity="
            f"{self.final:g}: ask for another sparsity there, or prune with MagnitudePruning"
        )

    def unprune(self, names: Iterable[str] | str | None = None) -> HistoryEntry:
        """Restore removed values bit-exactly; all dense weights if a fit ended before `end`.

        Raises:
            StateError: While masks are being learned.
        """
        if self.session.clock is not None:
            self._check_hardened("unpruned")
        self.strategy.learner.restore_dense()
        return super().unprune(names)

    def regrow(self, *args: Any, **kwargs: Any) -> HistoryEntry:
        """Bring pruned weights back; raise `StateError` while masks are being learned."""
        self._check_hardened("regrown")
        return super().regrow(*args, **kwargs)

    def _check_hardened(self, what: str) -> None:
        if self.strategy.learner.active:
            raise StateError(
                f"weights cannot be {what} while masks are being learned, until "
                f"end={self.strategy.learning.end}: do it later"
            )

    @property
    def keeps_dense_copy(self) -> bool:
        """Whether dense weights are stored: while masks are learned."""
        return not self.progress.started or not self.progress.all_done

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        check_learnable(trainer, self.pruner)
        for optimizer in trainer.optimizers:
            self.session.add_step_hook(optimizer, no_compile(self._after_step))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.strategy.learner.deterministic()  # what was restored may be of another device

    def on_suite_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_suite_batch_start(trainer, pl_module, batch, batch_idx)
        if self.progress.all_done:
            return
        learner, now = self.strategy.learner, self.session.time.current_step()
        if not learner.active and now >= self.strategy.first:
            self.strategy.start(self.session, now)
        if learner.active and learner.method.stochastic:
            learner.sample_noise(int(trainer.global_step))  # the same within an accumulation window

    @no_compile
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        # no hook follows a skipped step
        if self.changes_between_events and not amp_step_skipped(trainer, optimizer):
            self.strategy.learner.backward_to_dense(optimizer)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        clock = self.session.clock
        if clock is None or not self.changes_between_events:
            return
        learner = self.strategy.learner
        factors = [rate_factor(optimizer, p) for p in learner.targets_of(optimizer)[:1]]
        learner.step(optimizer, clock.current_step(), *factors)


class LearnedMaskStateDict(TypedDict):
    """State of `LearnedMask`; that of its learner is saved as the criterion's."""

    first: int  # the step at which learning begins
    learning: dict[str, Any]  # settings that a resume must not change


@dataclass(eq=False, kw_only=True)
class LearnedMask(PruningStrategy[Pruner]):
    """Learns masks in the steps of `learning`, and hardens them at the last one."""

    learns_masks = True
    config: PruningConfig
    learner: Learner
    learning: Learning
    ramp: float
    score_lr: float | None
    settings: Mapping[str, Any]  # compared when a fit resumes
    first: int = 0  # the step at which learning begins

    def make_pruner(self, model: nn.Module) -> Pruner:
        pruner = Pruner(model, self.config, keep_removed=self.keep_removed)
        self.learner.attach_to(pruner)
        return pruner

    def start(self, session: PruningSession[Pruner], now: int) -> None:
        last = session.progress.plan[-1].step
        window = LearningWindow(session.final, self.ramp, now, last)
        self.learner.start(window, self.score_lr)

    def apply(
        self, session: PruningSession[Pruner], due: Milestone, optimizers: list[Optimizer]
    ) -> HistoryEntry:
        if not self.learner.active:
            self.start(session, due.step)
        return self.learner.harden(session.pruner, due.sparsity, optimizers)

    def flush_dense(self, pruner: Pruner) -> None:
        super().flush_dense(pruner)
        self.learner.flush_dense()

    def is_changing(self, pruner: Pruner) -> bool:
        return self.learner.active

    def sparsity(self, pruner: Pruner) -> float:
        """While masks are learned, the fraction of effective weights that are zero."""
        return self.learner.sparsity if self.learner.active else pruner.sparsity

    def densities(self, pruner: Pruner) -> dict[str, float]:
        return self.learner.densities if self.learner.active else pruner.densities

    def before_fit(self, session: PruningSession[Pruner]) -> None:
        self.learner.restore_dense()  # another fit learns anew, from dense weights

    def after_plan(self, session: PruningSession[Pruner], timeline: Timeline) -> None:
        if session.progress.plan:
            if session.pruner.pruned:
                raise ConfigError(
                    f"the model has sparsity {session.pruner.sparsity:.6g} already, and masks are "
                    "learned from a dense one: call unprune() first, or continue with "
                    "MagnitudePruning"
                )
            dry, begun = session.time.dry_run, session.progress.first
            self.first = begun if dry else self.learning.first(timeline)

    def after_replan(self, session: PruningSession[Pruner], timeline: Timeline) -> None:
        if self.learner.active:
            self.learner.window.last = session.progress.plan[-1].step
        else:
            self.first = self.learning.first(timeline)

    def before_resume(self, session: PruningSession[Pruner], state: Mapping[str, Any]) -> None:
        check_same_settings(state["learning"], self.settings)

    def after_resume(self, session: PruningSession[Pruner], state: Mapping[str, Any]) -> None:
        self.first, learner = int(state["first"]), self.learner
        if not (learner.active or session.progress.all_done):
            planned, first = self.first, self.learning.first(session.timeline)
            if first != planned and session.on_change == "refuse":
                raise ConfigError(
                    f"the checkpoint planned to learn masks from step {planned} on, this fit from "
                    f"step {first}: restore begin, max_epochs, batch size and ranks, or write "
                    "on_change='keep' or 'stretch'"
                )
            self.first = planned if session.on_change == "keep" else first
        if learner.active and session.progress.plan:
            learner.window.last = session.progress.plan[-1].step

    def state_dict(self, session: PruningSession[Pruner]) -> LearnedMaskStateDict:
        return {"first": self.first, "learning": dict(self.settings)}


def _share(what: str, given: object) -> float:
    if given in (0, 1) and not isinstance(given, bool):
        return float(given)
    return check_sparsity(what, given)
