# SPDX-License-Identifier: MIT
"""PostTrainingPruning: prunes a trained network once, with calibration data."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.calibration.calibrate import (
    NAMES,
    calibrated_layers,
    check_distribution,
    check_refit,
    inputs_of,
    refit_layers,
    rounds_of,
    score_in_rounds,
)
from regrow.calibration.joint_refit import refit_jointly
from regrow.calibration.moments import Data
from regrow.calibration.repair_ladder import agreement_with, climb
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.core.session import GradualMagnitude, PruningSession
from regrow.callbacks.support.event_refit import (
    Refitted,
    RefittedState,
    check_forward,
    sum_over_ranks,
    values_of,
)
from regrow.callbacks.support.probe import peek_batches, probe_copy
from regrow.criteria.precomputed import Scores, needs_data
from regrow.criteria.saliency import unsharded_targets
from regrow.masks.masks import Masks
from regrow.pruning.config import PruningConfig
from regrow.pruning.migration import answer_other_arguments
from regrow.pruning.pruner import Pruner
from regrow.pruning.state import HistoryEntry
from regrow.schedules.base import Milestone
from regrow.schedules.one_shot import OneShot
from regrow.utils.batches import Batches, batches_of
from regrow.utils.errors import (
    ConfigError,
    check_choice,
    check_count,
    check_damping,
    check_keep_removed,
    check_positive,
)
from regrow.utils.lightning_classes import pl
from regrow.utils.names import named_parameters


class PostTrainingPruning(PruningCallback[Pruner]):
    """Prune a trained network once, before the fit's first optimizer step, and refit what is kept.

    Weights are scored by the second moments of their layers' inputs, on the first training batches.
    Then, layer by layer, the kept weights and biases are refitted by least squares, so that a layer
    reproduces its dense outputs from the inputs that the pruned network gives it. Labels are not
    used. The fit that follows fine-tunes with the masks kept. Without a fit: `regrow.calibrate`.

    Outside a fit: `attach(model)`, then `calibrate(batches)`. Under several ranks the sums of all
    ranks are used. Random generators and the data loader keep
    their state.

    Args:
        sparsity: Fraction of the selected weights to prune, in [0, 1), reached exactly.
        criterion: "obs", "sparsegpt", "wanda", "ria" or "magnitude".
        refit: Whether kept weights are refitted; "joint": in the end those of all layers together.
        min_agreement: Share of the calibration examples for which the pruned network must choose
            the dense one's class. The repairs of `regrow.repair` are then tried, from the cheapest,
            until one suffices, and the history says which; the best, if none does. None: a refit.
        batches: Number of training batches to use, on each rank.
        distribution: "erk" or "uniform", for "obs" and "magnitude" also "global" or "lamp"; None:
            "global" where possible, else "erk".
        granularity: "weight", "2:4" (any "n:m") or "block:4x4".
        include: Patterns of parameters or modules to prune; None: the weights of convolutions,
            Linear and recurrent layers and attention.
        exclude: Patterns to leave dense; "@first", "@last", "@depthwise" name layers.
        damping: Ridge term, as a fraction of the mean squared input.
        keep_removed: What is stored for `unprune`: True (values), "moments" or False. `unprune()`
            also restores each refitted weight and bias that has not changed since, for which two
            copies of the refitted layers are stored.
        seed: For the draw of input rows of large convolutions.

    Raises:
        ConfigError: For invalid settings; for selected weights of layers other than Linear and
            convolutions; for sharded weights.
        StateError: For inputs that are not finite, and modules that cannot be copied.

    Source: Frantar and Alistarh 2022 (OBC); Sun et al. 2024 (Wanda); Frantar and Alistarh 2023
    (SparseGPT).

    Example:
        >>> PostTrainingPruning(0.8, criterion="hessian")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        regrow.ConfigError: criterion must be one of magnitude, obs, ria, sparsegpt, wanda, got ...
    """

    @answer_other_arguments
    def __init__(
        self,
        sparsity: float = 0.8,
        *,
        criterion: str = "obs",
        refit: bool | str = True,
        min_agreement: float | None = None,
        batches: int = 8,
        distribution: str | None = None,
        granularity: str = "weight",
        include: str | list[str] | None = None,
        exclude: str | list[str] | None = None,
        damping: float = 1e-3,
        keep_removed: bool | str = True,
        seed: int = 0,
    ) -> None:
        check_choice("criterion", criterion, NAMES)
        distribution = check_distribution(criterion, distribution)
        keep = check_keep_removed(keep_removed)
        named: Any = criterion
        if criterion != "magnitude":
            named = needs_data(
                criterion,
                f"PostTrainingPruning ranks weights by {criterion!r} on calibration data: outside "
                "a fit, call calibrate(batches)",
            )
        config = PruningConfig(named, distribution, granularity, None, include, exclude, seed)
        strategy = Calibrated(
            config,
            keep,
            scoring=criterion,
            refit=check_refit(refit),
            min_agreement=check_agreement(min_agreement, refit),
            batches=check_count("batches", batches),
            damping=check_damping(damping),
        )
        super().__init__(strategy, OneShot(0), config.check_target(sparsity))
        self.strategy = strategy

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        unsharded_targets(pl_module, self.config.include, self.config.exclude)
        calibrated_layers(pl_module, self.config.include, self.config.exclude)
        check_forward(pl_module, "PostTrainingPruning")

    def on_suite_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.session.due() is not None:
            self.strategy.seen = trainer, pl_module, batch
            try:
                self.session.step()
            finally:
                self.strategy.seen = None

    def calibrate(self, data: Batches) -> HistoryEntry:
        """Prune an attached model now, without a fit; see `attach`.

        Args:
            data: As for `regrow.calibrate`; as many batches are used as the callback says.

        Raises:
            ConfigError: If there are none.
        """
        module = self.pruner.model
        used = inputs_of(module, islice(batches_of(data), self.strategy.batches), None)
        dense = copy.deepcopy(module) if self.strategy.refit else None
        return self.session.change(
            lambda optimizers: self.strategy.calibrate(
                self.pruner,
                module,
                dense,
                Data(used, seed=self.config.seed),
                self.final,
                optimizers,
            )
        )

    def prune_as(self, masks: Masks, values: Mapping[str, Tensor]) -> HistoryEntry:
        """Prune an attached model to given masks and kept values, as `free_sparsity` finds them.

        Args:
            masks: Bool masks by parameter name.
            values: Values of refitted weights and biases by name.
        """
        module, scores = self.pruner.model, {name: mask.float() for name, mask in masks.items()}
        before = {name: p.detach().cpu().clone() for name, p in named_parameters(module).items()}

        def act(optimizers: list[Optimizer]) -> HistoryEntry:
            entry = self.pruner.prune_to(masks.sparsity, optimizers, scores=scores)
            self.strategy.write(self.pruner, before, values)
            return entry

        return self.session.change(act)

    def unprune(self, names: Iterable[str] | str | None = None) -> HistoryEntry:
        """Restore removed weights, and refitted ones that have not been trained since."""
        entry = super().unprune(names)
        self.strategy.refitted.restore(self.pruner.model, names)
        return entry


def check_agreement(given: float | None, refit: bool | str) -> float | None:
    """Check the least agreement with the dense network, if there is one."""
    if given is None:
        return None
    if not refit:
        raise ConfigError(
            f"min_agreement={given} repairs the pruned network, and refit=False leaves it as it "
            "is: leave one of them out"
        )
    value = check_positive("min_agreement", given, "0.99")
    if value > 1:
        raise ConfigError(f"min_agreement must be at most 1, got {given}: write 0.99 for 99 %")
    return value


@dataclass(eq=False, kw_only=True)
class Calibrated(GradualMagnitude):
    """Prunes once by calibrated scores, and refits; see `PostTrainingPruning` for the attributes.

    The criterion of `config` only names the method.
    """

    scoring: str
    refit: bool | str
    min_agreement: float | None
    batches: int
    damping: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: tuple[pl.Trainer, pl.LightningModule, Any] | None = None  # in the first step
        self.refitted = Refitted()

    def apply(
        self, session: PruningSession[Pruner], due: Milestone, optimizers: list[Optimizer]
    ) -> HistoryEntry | None:
        assert self.seen is not None
        trainer, module, batch = self.seen
        count = 1 if trainer.fast_dev_run else self.batches  # type: ignore[attr-defined]
        ahead = [batch for _, batch in peek_batches(trainer, batch, count)]
        total = sum_over_ranks(trainer)
        data = Data(inputs_of(module, ahead, None), seed=self.config.seed, total=total)
        device = module.device.type
        with pl.utilities.seed.isolate_rng(), torch.autocast(device, enabled=False):
            dense = probe_copy(trainer, module, single=False) if self.refit else None
            pruner, sparsity = session.pruner, due.sparsity
            return self.calibrate(pruner, module, dense, data, sparsity, optimizers)

    def calibrate(
        self,
        pruner: Pruner,
        module: nn.Module,
        dense: nn.Module | None,
        data: Data,
        sparsity: float,
        optimizers: list[Optimizer],
    ) -> HistoryEntry:
        """Prune by calibrated scores, and refit if there is a dense copy of the module."""
        layers = calibrated_layers(module, self.config.include, self.config.exclude)
        names = ("distribution", "granularity", "include", "exclude", "seed")
        settings = {name: getattr(self.config, name) for name in names}
        rounds = rounds_of(layers, self.scoring, dense is not None, self.config.granularity)
        original = module if dense is None else dense
        known = calibrated_layers(original, self.config.include, self.config.exclude)
        ordered, scores = score_in_rounds(
            original, known, data, self.scoring, sparsity, self.damping, settings, rounds
        )
        by_name = {layer.name: layer for layer in layers}
        ordered = [by_name[layer.name] for layer in ordered]
        given = scores if isinstance(scores, Scores) else None
        entry = pruner.prune_to(sparsity, optimizers, scores=given)
        if dense is not None:
            before = {name: value.detach().cpu() for name, value in values_of(dense).items()}
            masks, damping = pruner.masks, self.damping
            if self.min_agreement is None:
                refit_layers(module, dense, ordered, masks, data, damping)
                if self.refit == "joint":
                    refit_jointly(module, dense, ordered, masks, data)
            else:
                judge, goal = agreement_with(dense, data), self.min_agreement
                done = climb(module, dense, masks, data, judge, goal, None, damping)
                entry["repair"], entry["agreement"] = done.rung, done.measures[done.rung]
            self._store(pruner, before)
        return entry

    @torch.no_grad()
    def write(
        self, pruner: Pruner, before: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> None:
        """Write refitted values, and store those before."""
        named = named_parameters(pruner.model)
        for name, value in values.items():
            named[name].copy_(value)
        pruner.state.apply()
        self._store(pruner, before)

    def _store(self, pruner: Pruner, before: Mapping[str, Tensor]) -> None:
        if self.keep_removed:
            self.refitted.add(pruner.model, before, pruner.masks)

    def state_dict(self, session: PruningSession[Pruner]) -> dict[str, Any]:
        return {"refitted": dict(self.refitted.state)}

    def after_load(self, session: PruningSession[Pruner], state: Mapping[str, Any]) -> None:
        self.refitted.state = cast(RefittedState, state["refitted"])
