# SPDX-License-Identifier: MIT
"""What a pruner needs of strategy, optimizers, model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from regrow.callbacks.core.averaging import check_averages_complete
from regrow.callbacks.core.dispatch import suite
from regrow.callbacks.core.pruner_types import AnyPruner
from regrow.channels.pruner import ChannelPruner
from regrow.distributed.shard import is_dtensor, reshard_fsdp
from regrow.pruning.pruner import Pruner
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.names import named_parameters

if TYPE_CHECKING:
    from regrow.callbacks.core.pruning_callback import PruningCallback


_SHARDED = (DeepSpeedStrategy, FSDPStrategy)


def check_pruner_fits(trainer: pl.Trainer, module: nn.Module, pruner: AnyPruner) -> None:
    """All that is refused when a fit starts.

    Raises:
        ConfigError: For a strategy, callback or optimizer that masks do not reach.
        StateError: For another model, or one whose parameters are no longer those masked.
    """
    check_same_model(module, pruner)
    reshard_fsdp(module)  # else these stand in the parameters' place
    check_parameters_not_replaced(module, pruner)
    check_averages_complete(trainer, {target.name: target.parameter for target in pruner.targets})
    check_sharding_supported(trainer, pruner)
    if not any(isinstance(callback, BaseFinetuning) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        check_one_optimizer(
            trainer.optimizers, pruner
        )  # else layers may join before the first event
    if pruner.soft:
        check_no_closures(trainer.optimizers)


def check_sharding_supported(trainer: pl.Trainer, pruner: AnyPruner) -> None:
    """Refuses what cannot be right where each rank keeps a part of the weights.

    Raises:
        ConfigError: Naming the strategy, or what does not go with sharded parameters.
    """
    strategy, name = trainer.strategy, type(trainer.strategy).__name__
    if isinstance(strategy, _SHARDED):
        raise ConfigError(
            f"{name} keeps parameters in flat parts, which have no rows to mask: write "
            "strategy='ddp', or strategy=ModelParallelStrategy() and fully_shard the module in "
            "configure_model (FSDP2)"
        )
    cut = [target.name for target in pruner.targets if is_dtensor(target.parameter)]
    if not cut or isinstance(pruner, ChannelPruner):  # that was refused when it looked at the model
        return
    names = f"parameters are sharded among ranks ({', '.join(cut[:3])}, ...)"
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        raise ConfigError(f"{names}, and LBFGS needs whole ones: write another optimizer")
    for callback in suite(trainer):
        if callback.needs_whole_parameters:
            raise ConfigError(
                f"{names}, and {type(callback).__name__} remembers whole ones: leave it out, or "
                "write strategy='ddp'"
            )
    if getattr(strategy, "_save_distributed_checkpoint", False) and (what := _unsharded(pruner)):
        raise ConfigError(
            f"{name} saves every rank's shards of weights and optimizer state, and has no place "
            f"for {what}: leave that out, or write "
            f"{name}(save_distributed_checkpoint=False)"
        )


def _unsharded(pruner: Pruner) -> str:
    """What a pruner would have to put into a checkpoint besides masks; nothing: ''."""
    if pruner.removed_weights is not None:
        return "removed values (keep_removed=True)"
    if pruner.soft:
        return "dense values beneath masks (soft=True)"
    if pruner.collects_gradients:
        return "what the criterion has gathered"
    return "running means of gradients (grow='momentum')" if pruner.state.averages_gradients else ""


def check_same_model(module: nn.Module, pruner: AnyPruner) -> None:
    """Refuses another model than the one that is masked.

    Raises:
        StateError: Saying how masks are carried over.
    """
    if pruner.model is not module:
        raise StateError(
            "the pruning callback holds the masks of another model object: call attach(model) to "
            "carry them over, or make a new callback for a fresh model"
        )


def waits_for_gradients(pruner: AnyPruner) -> bool:
    """Whether events fire where gradients are: this step's count too."""
    return pruner.needs_gradients or pruner.collects_gradients


def check_parameters_not_replaced(module: nn.Module, pruner: AnyPruner) -> None:
    """Refuses a model whose parameters are no longer the ones that are masked.

    Raises:
        StateError: Naming those that were replaced since.
    """
    named = named_parameters(module)
    lost = [t.name for t in pruner.targets if named.get(t.name) is not t.parameter]
    if lost:
        raise StateError(
            f"{', '.join(lost[:5])} of the model were replaced by other parameters since they were "
            "masked: call attach(model) to carry the masks over"
        )


def check_one_optimizer(optimizers: Sequence[Optimizer], pruner: AnyPruner) -> None:
    """Refuses gradient criteria over parameters that no single optimizer holds together.

    Raises:
        ConfigError: Gradients of different optimizers are never there at the same moment.
    """
    if waits_for_gradients(pruner) and not any(map(pruner.trained_by, optimizers)):
        raise ConfigError(
            "this criterion ranks gradients of all pruned parameters together, but no optimizer "
            "trains all of them (frozen layers, or one optimizer a part?): exclude what is not "
            "trained, or use one pruning callback an optimizer with include="
        )


def ranks_now(trainer: pl.Trainer, pruner: AnyPruner, optimizer: Optimizer) -> bool:
    """Whether the gradients that an event ranks are there at this optimizer's step.

    Raises:
        ConfigError: If they never are, as those of layers that are frozen still.
    """
    check_one_optimizer(trainer.optimizers, pruner)
    return pruner.trained_by(optimizer)


def check_no_closures(optimizers: Sequence[Optimizer]) -> None:
    """Refuses soft pruning with optimizers that call their closure several times a step.

    Raises:
        ConfigError: The forward pass would see masked weights once and dense ones after.
    """
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
        raise ConfigError(
            "soft=True keeps dense values in the weights while the optimizer steps, and LBFGS runs "
            "the network within its step: write soft=False, or another optimizer"
        )


def warn_unfinished(trainer: pl.Trainer, callback: PruningCallback) -> None:
    """Warns of a fit that ended before its events did."""
    ahead = callback.progress.remaining
    if ahead and not trainer.should_stop:
        rank_zero_warn(
            f"the fit ended at sparsity {callback.sparsity:.4g}, before {len(ahead)} planned "
            f"events, the last of them to sparsity {ahead[-1].sparsity:.4g}. Does the module call "
            "step() of a raw optimizer? Lightning neither counts such steps nor shows their "
            "gradients: use self.optimizers()"
        )
