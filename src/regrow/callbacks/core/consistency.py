# SPDX-License-Identifier: MIT
"""Check that all ranks hold the same masks and weights."""

from __future__ import annotations

import torch

from regrow.distributed.fingerprint import fingerprint
from regrow.distributed.parameters import Shards
from regrow.pruning.enforcer import MaskEnforcer
from regrow.utils.errors import StateError
from regrow.utils.lightning_classes import pl


def check_ranks_agree(trainer: pl.Trainer, enforcer: MaskEnforcer, when: str) -> None:
    """Check that all ranks have the same masks and weights; each rank sends three numbers.

    The error comes on every rank, so that none waits for another; `when` says what has happened.
    """
    if trainer.world_size == 1:
        return
    ranks = Shards(enforcer.parameters).ranks
    shard = 0 if ranks is None else ranks.rank
    replicated = ranks is not None and ranks.size < trainer.world_size
    masks = {name: enforcer.kept(name) for name in enforcer.parameters}
    rows = fingerprint(enforcer.parameters, masks, cut=True) if replicated else shard
    own = [fingerprint(enforcer.parameters, masks), shard, rows]
    sent = torch.tensor(own, device=trainer.strategy.root_device)
    received = trainer.strategy.all_gather(sent).view(-1, len(own)).tolist()
    expected = {shard: rows for _, shard, rows in reversed(received)}  # of its first rank
    differing = [
        rank
        for rank, (whole, shard, rows) in enumerate(received)
        if whole != received[0][0] or rows != expected[shard]
    ]
    if differing:
        raise StateError(
            f"after {when}, masks or weights of rank {', '.join(map(str, differing))} differ from "
            "those of the first rank with the same parameters: does something change the model on "
            "some ranks only, or with a different random generator? The last checkpoint was saved "
            "before that"
        )


def reduce_metric(trainer: pl.Trainer, value: float) -> float:
    """The mean over ranks of a logged number, in case it was logged without sync_dist."""
    if trainer.world_size == 1:
        return value
    sent = torch.tensor(value, dtype=torch.float64, device=trainer.strategy.root_device)
    values = trainer.strategy.all_gather(sent).flatten()
    return value if bool((values == values[0]).all()) else float(values.mean())
