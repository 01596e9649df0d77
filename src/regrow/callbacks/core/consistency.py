# SPDX-License-Identifier: MIT
"""Ranks hold the same masks."""

from __future__ import annotations

import lightning.pytorch as pl
import torch

from regrow.distributed.fingerprint import fingerprint
from regrow.distributed.parameters import Shards
from regrow.pruning.enforcer import MaskEnforcer
from regrow.utils.errors import StateError


def check_ranks_agree(trainer: pl.Trainer, enforcer: MaskEnforcer, when: str) -> None:
    """Check that all ranks have the same masks and weights; three numbers a rank are sent.

    Rows of sharded parameters are compared among the ranks that hold the same ones.

    Args:
        trainer: In a fit.
        enforcer: This rank's.
        when: What has just happened, for the message.

    Raises:
        StateError: On every rank alike, so that none waits for another.
    """
    if trainer.world_size == 1:
        return
    ranks = Shards(enforcer.parameters).ranks
    place = 0 if ranks is None else ranks.rank
    twins = ranks is not None and ranks.size < trainer.world_size
    masks = {name: enforcer.kept(name) for name in enforcer.parameters}
    rows = fingerprint(enforcer.parameters, masks, cut=True) if twins else place
    own = [fingerprint(enforcer.parameters, masks), place, rows]
    sent = torch.tensor(own, device=trainer.strategy.root_device)
    every = trainer.strategy.all_gather(sent).view(-1, len(own)).tolist()
    wanted = {place: rows for _, place, rows in reversed(every)}  # of the first that holds them
    odd = [
        rank
        for rank, (whole, place, rows) in enumerate(every)
        if whole != every[0][0] or rows != wanted[place]
    ]
    if odd:
        raise StateError(
            f"after {when}, masks or weights of rank {', '.join(map(str, odd))} differ from those "
            "of the first rank that holds the same: does something change the model on some ranks "
            "only, or at random from a generator of their own? The last checkpoint is from before "
            "that"
        )


def reduce_metric(trainer: pl.Trainer, value: float) -> float:
    """A logged number as all ranks see it: their mean, where it was logged without sync_dist."""
    if trainer.world_size == 1:
        return value
    own = torch.tensor(value, dtype=torch.float64, device=trainer.strategy.root_device)
    every = trainer.strategy.all_gather(own).flatten()
    return value if bool((every == every[0]).all()) else float(every.mean())
