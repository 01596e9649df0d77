# SPDX-License-Identifier: MIT
"""PruneAtInit: prunes an untrained network once (SNIP, GraSP, SynFlow, random)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.callbacks.core.session import GradualMagnitude, PruningSession
from regrow.callbacks.support.probe import (
    example_for,
    peek_batches,
    probe_copy,
    scaled_logits,
    training_loss,
)
from regrow.criteria.precomputed import Scores, needs_data
from regrow.criteria.saliency import Loss, grasp, snip, unsharded_targets
from regrow.criteria.synflow import synflow
from regrow.pruning.config import PruningConfig
from regrow.pruning.migration import answer_other_arguments
from regrow.pruning.pruner import Pruner
from regrow.pruning.state import HistoryEntry
from regrow.schedules.base import Milestone
from regrow.schedules.one_shot import OneShot
from regrow.utils.errors import (
    ConfigError,
    check_choice,
    check_count,
    check_keep_removed,
    check_positive,
)
from regrow.utils.lightning_classes import overrides, pl

GRADIENTS: Mapping[str, Callable[..., Scores]] = {"snip": snip, "grasp": grasp}
METHODS = (*GRADIENTS, "synflow", "random")


class Probe(NamedTuple):
    """What an untrained network is scored with."""

    model: nn.Module  # the network or a copy
    data: Any  # batches; for "synflow" an example input
    across_ranks: Callable[[Tensor], Tensor]  # mean of gradients; "synflow": the first rank's
    loss: Loss | None = None  # (model, batch) -> loss; not for "synflow"


class PruneAtInit(PruningCallback[Pruner]):
    """Prune an untrained network once, before the fit's first optimizer step, and keep the masks.

    Weights are scored on a copy of the module in eager mode, single precision and without autocast
    ("synflow": double precision), so the fit itself is unaffected: no step is taken, nothing is
    logged, and buffers, metrics, random generators and data loader keep their state. With several
    ranks, gradients are averaged over all of them.

    "snip" and "grasp" use the loss of `training_step` on the first batch, and on `batches` - 1 more
    from a copy of the train loader. "synflow" calls `forward` on ones, `rounds` times. "random" is
    the control. Memory: one more copy of the module and one tensor per weight ("grasp" two, and a
    graph for second derivatives). Cost in training steps on one batch: "snip" one per batch,
    "grasp" about four per batch, "synflow" one on a single example per round, and a ranking.

    Args:
        sparsity: Fraction of the selected weights to prune, in [0, 1), reached exactly.
        method: "snip" (|g w|), "grasp" (w (H g)), "synflow" or "random".
        batches: Number of batches that "snip" and "grasp" use, on each rank; None: 1.
        temperature: Divisor of the logits while "grasp" scores; None: 1. Its authors' code uses
            200, which can change accuracy by points.
        logits: The submodule that computes the logits; None: the module itself, as `self(x)`.
        rounds: How often "synflow" scores and prunes; None: 100.
        distribution: "global", "uniform" or "erk"; None: "global", and "erk" with "random".
        include: Patterns of parameters or modules to prune; None: the weights of convolutions,
            Linear and recurrent layers and attention.
        exclude: Patterns to leave dense; "@first", "@last", "@depthwise" name layers.
        keep_removed: What is stored for `unprune`: True (values), "moments" or False.
        seed: Seed of "random".

    Raises:
        ConfigError: For invalid settings, at construction where possible, else before the first
            step; "snip" and "grasp" under manual optimization; all but "random" for sharded
            weights.
        StateError: For models and checkpoints that do not match, and modules that cannot be copied.

    Source: Lee et al. 2019 (SNIP); Wang et al. 2020 (GraSP); Tanaka et al. 2020 (SynFlow).

    Example:
        >>> PruneAtInit(0.9, method="sinp")
        Traceback (most recent call last):
            ...
        regrow.ConfigError: method must be one of grasp, random, snip, synflow, got 'sinp': \
did you mean 'snip'?
    """

    @answer_other_arguments
    def __init__(
        self,
        sparsity: float = 0.9,
        *,
        method: str = "snip",
        batches: int | None = None,
        temperature: float | None = None,
        logits: str | None = None,
        rounds: int | None = None,
        distribution: str | None = None,
        include: str | list[str] | None = None,
        exclude: str | list[str] | None = None,
        keep_removed: bool | str = True,
        seed: int = 0,
    ) -> None:
        check_choice("method", method, METHODS)
        if batches is not None and method not in GRADIENTS:
            raise ConfigError(f"method={method!r} looks at no data: leave batches={batches} out")
        if rounds is not None and method != "synflow":
            raise ConfigError(
                f"method={method!r} scores once: leave rounds={rounds} out, or write "
                "method='synflow'"
            )
        if temperature is not None and method != "grasp":
            raise ConfigError(
                f"temperature={temperature} is of method='grasp': leave it out with {method!r}"
            )
        if logits is not None and temperature is None:
            raise ConfigError(
                f"logits={logits!r} is what temperature divides: write temperature=200, or leave "
                "it out"
            )
        if temperature is not None:
            temperature = check_positive("temperature", temperature, "200")
        keep = check_keep_removed(keep_removed)
        if distribution is None:
            distribution = "erk" if method == "random" else "global"
        check_choice("distribution", distribution, ("global", "uniform", "erk"))
        criterion: Any = "random"
        if method != "random":
            criterion = needs_data(
                method,
                f"PruneAtInit ranks weights by {method} once, at the fit's first step: to prune "
                "further, use MagnitudePruning",
            )
        parts = PruningConfig(criterion, distribution, "weight", None, include, exclude, seed)
        strategy = AtInit(
            parts,
            keep,
            scoring=method,
            batches=1 if batches is None else check_count("batches", batches),
            rounds=100 if rounds is None else check_count("rounds", rounds),
            temperature=temperature,
            logits=logits,
        )
        super().__init__(strategy, OneShot(0), parts.check_target(sparsity))
        self.strategy = strategy

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        scoring = self.strategy.scoring
        if scoring == "random":
            return
        unsharded_targets(pl_module, self.config.include, self.config.exclude)
        if scoring in GRADIENTS and not pl_module.automatic_optimization:
            raise ConfigError(
                f"method={scoring!r} needs the loss that training_step returns, and under "
                "manual optimisation that steps by itself: write method='synflow' or 'random'"
            )
        if scoring == "synflow" and not overrides(pl_module, "forward", "LightningModule"):
            raise ConfigError(
                f"method='synflow' runs forward(), which {type(pl_module).__name__} does not have: "
                "define it, or write method='snip'"
            )

    def on_suite_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.session.due() is not None:
            self.strategy.make_probe = partial(self._make_probe, trainer, pl_module, batch)
            try:
                self.session.step()
            finally:
                self.strategy.make_probe = None

    def _make_probe(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any) -> Probe:
        twin, strategy = probe_copy(trainer, module), trainer.strategy
        if self.strategy.scoring == "synflow":  # devices may add up in another order
            return Probe(twin, example_for(module, batch), partial(_broadcast, trainer))

        def mean(grad: Tensor) -> Tensor:
            reduced = strategy.reduce(grad, reduce_op="mean")
            assert isinstance(reduced, Tensor)
            return reduced

        count = 1 if trainer.fast_dev_run else self.strategy.batches  # type: ignore[attr-defined]
        return Probe(twin, peek_batches(trainer, batch, count), mean, training_loss)


@dataclass(eq=False, kw_only=True)
class AtInit(GradualMagnitude):
    """Prunes once, by scores of the untrained network."""

    scoring: str
    batches: int
    rounds: int
    temperature: float | None
    logits: str | None
    make_probe: Callable[[], Probe] | None = None  # set while a session steps

    def acts_on_gradients(self, pruner: Pruner) -> bool:
        return False

    def apply(
        self, session: PruningSession[Pruner], due: Milestone, optimizers: list[Optimizer]
    ) -> HistoryEntry | None:
        if self.scoring == "random":
            return super().apply(session, due, optimizers)
        pruner = session.pruner
        device = pruner.targets[0].parameter.device.type
        with pl.utilities.seed.isolate_rng(), torch.autocast(device, enabled=False):
            scores = self._scores(pruner, due.sparsity)
        return pruner.prune_to(due.sparsity, optimizers, scores=scores)

    def _scores(self, pruner: Pruner, sparsity: float) -> Mapping[str, Tensor]:
        assert self.make_probe is not None
        model, data, across_ranks, loss = self.make_probe()
        chosen = {"include": self.config.include, "exclude": self.config.exclude}
        if self.scoring == "synflow":
            kept = pruner.masks
            scores = synflow(model, data, sparsity, rounds=self.rounds, kept=kept, **chosen)
            return {name: across_ranks(values) for name, values in scores.items()}
        cold = self.temperature
        looked = nullcontext() if cold is None else scaled_logits(model, self.logits, cold)
        with looked, torch.compiler.set_stance("force_eager"):
            return GRADIENTS[self.scoring](model, data, loss, mean=across_ranks, **chosen)


def _broadcast(trainer: pl.Trainer, scores: Tensor) -> Tensor:
    """The scores of the first rank."""
    if trainer.world_size > 1:
        scores = scores.to(trainer.strategy.root_device)
        torch.distributed.broadcast(scores, 0)
    return scores
