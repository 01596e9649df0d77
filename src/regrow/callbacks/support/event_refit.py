# SPDX-License-Identifier: MIT
"""Refit kept weights at prune events, and restore what refits changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import islice
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from regrow.calibration.calibrate import calibrated_layers, inputs_of, refit_layers
from regrow.calibration.moments import Data, check_forwards, order_layers
from regrow.callbacks.core.base import Callback, PruneEvent, PrunerOwner, waits_for_gradients
from regrow.callbacks.core.dispatch import suite_callbacks
from regrow.callbacks.core.pruning_callback import PruningCallback, pruning_callbacks
from regrow.callbacks.support.probe import probe_copy, read_training_batches
from regrow.pruning.config import PruningConfig
from regrow.utils.errors import ConfigError
from regrow.utils.lightning_classes import overrides, pl
from regrow.utils.names import buffers, matches_pattern, named_parameters

SAMPLES = 1024  # per rank
DAMPING = 1e-3


class RefittedState(TypedDict):
    """What refits changed, by parameter name.

    Attributes:
        before: Values before.
        after: Values after; at pruned positions those that un-pruning restores.
    """

    before: dict[str, Tensor]
    after: dict[str, Tensor]


class Refitted:
    """The values of what refits changed, before and after, in host memory."""

    def __init__(self) -> None:
        self.state: RefittedState = {"before": {}, "after": {}}

    def add(
        self, model: nn.Module, before: Mapping[str, Tensor], masks: Mapping[str, Tensor]
    ) -> None:
        """Add what a refit changed; weights that did not train since an earlier refit keep its.

        Args:
            model: After pruning and refit.
            before: The values of its parameters before both, in host memory.
            masks: Bool masks of the weights.
        """
        changed: RefittedState = {"before": {}, "after": {}}
        now, earlier = values_of(model), self.state
        for name, old in before.items():
            after, first = now[name].detach().cpu().clone(), old
            kept = masks[name].cpu() if name in masks else torch.ones_like(old, dtype=torch.bool)
            stored = old
            if name in earlier["after"]:
                pruned = ~kept & (old == 0)  # by an earlier event
                stored = torch.where(pruned, earlier["after"][name], old)
                same = stored == earlier["after"][name]
                first = torch.where(same, earlier["before"][name], stored)
            after = torch.where(kept, after, stored)
            if not torch.equal(first, after):
                changed["before"][name], changed["after"][name] = first.clone(), after
        self.state = changed

    @torch.no_grad()
    def restore(self, model: nn.Module, names: Iterable[str] | str | None = None) -> None:
        """Restore the values of weights and biases that have not changed since the refit.

        Args:
            model: After its pruner has restored the removed values.
            names: Patterns of weights, whose biases are restored too; None: all.
        """
        patterns = [names] if isinstance(names, str) else names
        named = values_of(model)
        for name, after in self.state["after"].items():
            owners = _weights_beside(name, named)
            tensors = named[name], after, self.state["before"][name]
            parts = [tensor.chunk(3) if len(owners) > 1 else (tensor,) for tensor in tensors]
            for owner, now, fitted, dense in zip(owners, *parts, strict=True):
                if patterns is None or any(
                    matches_pattern(known, p) for known in (name, owner) for p in patterns
                ):
                    same = now == fitted.to(now.device)
                    now.copy_(torch.where(same, dense.to(now), now))


class EventRefit(Callback):
    """Refits the kept weights and biases after each planned event of the callback it belongs to.

    Each layer reproduces the outputs that it had before the event, on training inputs; see
    `regrow.calibrate`.

    Args:
        config: The settings of that callback, by whose patterns the state is saved.
    """

    needs_whole_parameters = True
    loads_when_attached = True

    def __init__(self, config: PruningConfig) -> None:
        super().__init__()
        self.config = config
        self.refitted = Refitted()
        self._before: pl.LightningModule | None = None  # the module before the present event

    @cached_property
    def state_key(self) -> str:
        return self._generate_state_key(include=self.config.include, exclude=self.config.exclude)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        owner, callbacks = self._owner(trainer), suite_callbacks(trainer)
        check_forward(pl_module, f"refit=True of {type(owner).__name__}")
        if any(callback.rewinds and callback.restores_weights for callback in callbacks):
            raise ConfigError(
                "refit=True fits the weights that a rewind replaces: leave one of them out, or "
                "write Rewind(to, what='finetune')"
            )
        if waits_for_gradients(owner.pruner):
            raise ConfigError(
                "refit=True acts between steps, and this criterion ranks by the gradients of a "
                "step: write criterion='magnitude', or leave refit out"
            )
        calibrated_layers(pl_module, self.config.include, self.config.exclude)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        layers = calibrated_layers(pl_module, self.config.include, self.config.exclude)
        batches = read_training_batches(trainer, (self.config.seed, 0))
        inputs = (inputs_of(pl_module, [batch], None)[0] for batch in islice(batches, 1))
        check_forwards(pl_module, layers, inputs)  # now, and not at an event much later

    def before_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, pruner: PrunerOwner
    ) -> None:
        if pruner is self._owner(trainer):
            self._before = probe_copy(trainer, pl_module, single=False)

    def on_prune_event(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, event: PruneEvent
    ) -> None:
        dense, owner = self._before, self._owner(trainer)
        if dense is None or event.pruner is not owner:
            return
        self._before = None
        if event.entry["kind"] != "prune":
            return
        values = {name: value.detach().cpu() for name, value in values_of(dense).items()}
        masks = _masks_of_all(trainer)
        config = self.config
        batches = read_training_batches(trainer, (config.seed, event.entry["event"]))
        data = Data(
            inputs_of(pl_module, batches, SAMPLES), seed=config.seed, total=sum_over_ranks(trainer)
        )
        with pl.utilities.seed.isolate_rng(), torch.autocast(pl_module.device.type, enabled=False):
            layers = calibrated_layers(pl_module, config.include, config.exclude)
            ordered = order_layers(pl_module, layers, data.batches)
            event.entry["refitted"] = refit_layers(pl_module, dense, ordered, masks, data, DAMPING)
        if owner.keep_removed:
            self.refitted.add(pl_module, values, masks)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._before = None

    def state_dict(self) -> dict[str, Any]:
        return dict(self.refitted.state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.refitted.state = {"before": state_dict["before"], "after": state_dict["after"]}

    def _owner(self, trainer: pl.Trainer) -> PruningCallback:
        return next(c for c in pruning_callbacks(trainer) if self in c.children)


def _weights_beside(name: str, named: Mapping[str, Tensor]) -> list[str]:
    """The weight with which a bias is refitted, or a weight itself; of attention's bias, three."""
    path, dot, key = name.rpartition(".")
    if key == "in_proj_bias" and f"{path}{dot}in_proj_weight" not in named:
        return [f"{path}{dot}{part}_proj_weight" for part in "qkv"]
    return [f"{path}{dot}{key.replace('bias', 'weight')}"]


def values_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module by name."""
    return {**named_parameters(module), **buffers(module)}


def make_refit(refit: bool, config: PruningConfig) -> tuple[EventRefit, ...]:
    """The child callbacks for the argument `refit=` of a pruning callback."""
    return (EventRefit(config),) if refit else ()


def check_forward(module: pl.LightningModule, what: str) -> None:
    """Check that a module can be called on inputs, without labels."""
    if not overrides(module, "forward", "LightningModule"):
        raise ConfigError(
            f"{what} runs forward(), which {type(module).__name__} does not have: define "
            "forward(self, inputs)"
        )


def sum_over_ranks(trainer: pl.Trainer) -> Any:
    """Return a function that sums a tensor over ranks; None if there is one."""
    if trainer.world_size == 1:
        return None
    device = trainer.strategy.root_device  # NCCL takes no tensors of the CPU

    def total(values: Tensor) -> Tensor:
        found: Tensor = trainer.strategy.reduce(values.to(device), reduce_op="sum")
        return found.to(values.device)

    return total


def _masks_of_all(trainer: pl.Trainer) -> dict[str, Tensor]:
    """The masks of all pruning callbacks; what one of them prunes is False."""
    masks: dict[str, Tensor] = {}
    for callback in pruning_callbacks(trainer):
        for name, mask in callback.masks.items():
            masks[name] = masks[name] & mask if name in masks else mask
    return masks
