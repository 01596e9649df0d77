# SPDX-License-Identifier: MIT
"""Write the values of returning weights: removed ones (`unprune`) or new ones (`regrow`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from regrow.distributed.shard import ShardedCounts
from regrow.masks.targets import Target
from regrow.pruning.growth import (
    GrowthCriterion,
    check_supports_sharding,
    get_growth_criterion,
    gradient_growth,
    select_regrown,
)
from regrow.pruning.initializers import (
    BY_ROWS,
    Initializer,
    MakeRegrown,
    RegrownWeights,
    initial_values,
    make_initializer,
    removed_values,
)
from regrow.pruning.removed_weights import MOMENT
from regrow.pruning.state import MaskState, moments
from regrow.utils.errors import StateError
from regrow.utils.names import callable_name
from regrow.utils.random import make_generator


def restore_removed(
    state: MaskState, targets: Iterable[Target], optimizers: Sequence[Optimizer]
) -> None:
    """Restore removed values and moments of some targets, which are dense afterwards."""
    state.enforcer.transaction.mark_started()
    for target in targets:
        weight, removed = target.weight, state.removed_weights
        if removed is not None:  # else soft: the dense values return with the mask
            mask = state.enforcer.mask(target.name)
            removed.restore(target.name, weight, mask)
            for key, moment in moments(target.parameter, optimizers).items():
                removed.restore(f"{target.name}{MOMENT}{key}", moment, mask)
            removed.drop(target.name)  # moments without an optimizer
        state.count(target.name, torch.ones_like(weight, dtype=torch.bool))


def return_pruned(
    state: MaskState,
    targets: Sequence[Target],
    amount: int,
    by: str | GrowthCriterion,
    init: str | Initializer,
    optimizers: Sequence[Optimizer],
) -> dict[str, Tensor]:
    """Let pruned weights return; see `Pruner.regrow`.

    Returns bool tensors by parameter name, True = returned.
    """
    growth, initializer = get_growth_criterion(by), make_initializer(init)
    check_supports_sharding(growth, initializer, targets)
    if growth is gradient_growth and amount:
        _check_gradients_dense(state, targets)
    kept = [state.enforcer.kept(target.name) for target in targets]
    seed = (state.seed, len(state.history))
    regrown = select_regrown(
        growth, targets, kept, amount, momenta=state.momenta, removed=state.removed, seed=seed
    )
    places = {t.name: returns for t, returns in zip(targets, regrown, strict=True)}
    if state.shards.ranks is None:  # else all ranks must do the same
        targets = [target for target in targets if places[target.name].any()]
    makes = [partial(make_regrown, state, t, places[t.name], seed, initializer) for t in targets]
    values = initial_values(initializer, makes)
    state.enforcer.transaction.mark_started()  # nothing was changed so far
    for make, value in zip(makes, values, strict=True):
        write_regrown(state, make, value, initializer is removed_values, optimizers)
    return places


def make_regrown(
    state: MaskState,
    target: Target,
    places: Tensor,
    seed: tuple[int, int],
    initializer: Initializer,
) -> RegrownWeights:
    """Make the initializer's argument for one target; removed values only if it may read them."""
    wanted = initializer is removed_values or initializer not in BY_ROWS
    return RegrownWeights(
        target.name,
        target.weight,
        state.enforcer.mask(target.name),
        places,
        make_generator(*seed, f"{target.name} init"),
        target.input_dim,
        target.groups,
        state.removed(target) if wanted else None,
        state.originals.get(target.name),
        target.shard,
    )


def write_regrown(
    state: MaskState,
    make: MakeRegrown,
    value: Initializer,
    restore: bool,
    optimizers: Sequence[Optimizer],
) -> None:
    """Write the values of one parameter's returning weights; clear or restore their moments."""
    back = make()
    name, values = back.name, value(back).to(back.weight.device, back.weight.dtype)
    torch.where(back.regrown, values, back.weight, out=back.weight)
    for key, moment in moments(state.enforcer.parameters[name], optimizers).items():
        stored = None
        if restore and state.removed_weights is not None:
            key = f"{name}{MOMENT}{key}"
            stored = state.removed_weights.scatter_like(key, moment, back.kept)
        if stored is None:
            moment.masked_fill_(back.regrown, 0)
        else:
            torch.where(back.regrown, stored, moment, out=moment)
    mask = back.kept | back.regrown
    del back, values  # storing what the new mask removes needs their memory
    state.set(name, mask, optimizers)


def describe_regrowth(
    by: str | GrowthCriterion,
    init: str | Initializer,
    count: int,
    train: str | tuple[str, ...],
) -> dict[str, Any]:
    """Make the fields of a history entry that describe a regrowth."""
    return {
        "by": callable_name(by),
        "init": callable_name(init),
        "count": count,
        "train": train if isinstance(train, str) else list(train),
    }


def _check_gradients_dense(state: MaskState, targets: Iterable[Target]) -> None:
    """Check that some gradient at a pruned position is not zero, as all are after masking."""
    nonzero = []
    for target in targets:
        grad, kept = target.grad, state.enforcer.kept(target.name)
        if grad is None:
            nonzero.append(1)
        else:
            nonzero.append(0 if kept is None else int(((grad != 0) & (kept == 0)).any()))
    if any(ShardedCounts([target.shard for target in targets]).sums(nonzero)):
        return
    raise StateError(
        "all gradients at pruned positions are zero, so they were masked already: grow by "
        "'gradient' after backward() and before masks are applied; within a fit write "
        "Regrow(by='gradient', ...), which does so"
    )
