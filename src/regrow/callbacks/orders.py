# SPDX-License-Identifier: MIT
"""Whose weights an order brings back, and whether they can, before anything happens."""

from __future__ import annotations

import lightning.pytorch as pl

from regrow.by_rows import refuse_whole
from regrow.callbacks.access import PrunerAccess
from regrow.callbacks.carrying import refuse_swapped
from regrow.callbacks.reached import pruners
from regrow.callbacks.requests import Order
from regrow.channel_pruner import ChannelPruner
from regrow.errors import ConfigError, check_patterns
from regrow.initializers import make_initializer
from regrow.initializers import removed as removed_values
from regrow.regrowth import by_momentum, by_removed, make_growth


def chosen(trainer: pl.Trainer, order: Order) -> list[tuple[PrunerAccess, list[str] | None]]:
    """The pruning callbacks that an order means, with the patterns that are theirs.

    Raises:
        ConfigError: If there are several and no names, or a pattern that is nobody's.
    """
    found, patterns = pruners(trainer), check_patterns("names", order.names)
    if patterns is None:
        if len(found) > 1:
            keys = ", ".join(callback.state_key for callback in found)
            raise ConfigError(
                f"the Trainer has {len(found)} pruning callbacks ({keys}), and Regrow must know "
                "whose weights come back: write names=[...], layers of one of them"
            )
        return [(found[0], None)]
    own: dict[int, list[str]] = {}
    for pattern in patterns:
        hits = [number for number, callback in enumerate(found) if _means(callback, pattern)]
        if not hits:
            found[0].pruner.named(pattern)  # says what is near
        for number in hits:
            own.setdefault(number, []).append(pattern)
    if len(own) > 1 and order.count is not None:
        raise ConfigError(
            f"count={order.count} cannot be shared among {len(own)} pruning callbacks: write "
            "fraction=, or names of one of them"
        )
    return [(found[number], names) for number, names in own.items()]


def refuse_unable(trainer: pl.Trainer, order: Order) -> None:
    """Refuses an order that no later moment could fulfil.

    Raises:
        ConfigError: Saying what is lacking.
    """
    for callback, names in chosen(trainer, order):
        pruner = callback.pruner
        if pruner.hold.check(order.train) != "all":
            refuse_swapped(trainer)
        if isinstance(pruner, ChannelPruner):
            pruner.check_regrowth(order.by, order.init)
        elif pruner.shards.ranks is not None:
            refuse_whole(make_growth(order.by), make_initializer(order.init), pruner.targets)
        weights = sum(target.parameter.numel() for target in pruner.named(names))
        if order.count is not None and order.count > weights:
            raise ConfigError(f"count={order.count} is more than all {weights} weights there are")
        if pruner.soft:
            raise ConfigError(
                "soft=True brings weights back by itself, at each event: leave Regrow out"
            )
        for what, given, wants in (
            ("by", order.by, ("removed", by_removed)),
            ("init", order.init, ("removed", removed_values)),
        ):
            if given in wants and pruner.vault is None:
                raise ConfigError(
                    f"{what}='removed' needs the removed values: write keep_removed=True in "
                    f"{type(callback).__name__}"
                )
        if order.by in ("momentum", by_momentum) and getattr(callback, "grow", "") != "momentum":
            raise ConfigError(
                "by='momentum' needs the mean dense gradient, which DynamicSparseTraining("
                "grow='momentum') tracks: write by='gradient'"
            )
        parameters = {id(target.parameter) for target in pruner.named(names)}
        held = [
            {id(p) for group in optimizer.param_groups for p in group["params"]}
            for optimizer in trainer.optimizers
        ]
        if order.dense and not any(parameters <= one for one in held):
            raise ConfigError(
                "growth that looks at gradients needs one optimizer that trains all the parameters "
                "that may come back (frozen layers, or one optimizer a part?): write names=[...]"
            )


def _means(callback: PrunerAccess, pattern: str) -> bool:
    try:
        return bool(callback.pruner.named(pattern))
    except ConfigError:
        return False
