# SPDX-License-Identifier: MIT
"""A budget in milliseconds: the cut that just meets it, found by measuring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from regrow.channels.verify import Bench
from regrow.cost import latency
from regrow.errors import ConfigError, check_positive

ROUNDS = 7  # halvings of the share of MACs: to less than a hundredth


def latency_budget(
    chosen: Callable[[float], dict[str, Tensor]],
    bench: Bench,
    model: nn.Module,
    example_input: Any,
    sparsity: float,
    latency_ms: float | None = None,
    timer: Callable[[nn.Module], float] | None = None,
) -> dict[str, Tensor]:
    """The least cut whose measured latency meets the budget.

    Args:
        chosen: The channels to remove so that a share of the MACs remains.
        bench: Makes cuts.
        model: The dense model.
        example_input: A batch; its size is that of the figure.
        sparsity: Fraction of the dense latency to save.
        latency_ms: How long a pass may take, instead.
        timer: What tells a model's milliseconds; None: the median measured here.

    Raises:
        ConfigError: If no cut is fast enough, with the fastest one's figure.
    """
    timed = timer or (lambda m: latency(m, example_input, repeats=20, warmup=3).median_ms)
    dense = timed(model)
    limit = (1 - sparsity) * dense
    if latency_ms is not None:
        limit = check_positive("latency_ms", latency_ms, "latency_ms=5.0")
    if dense <= limit:
        return {}
    low, high, best = 0.0, 1.0, None
    fastest = dense
    for _ in range(ROUNDS):
        share = (low + high) / 2
        try:
            removed = chosen(share)
        except ConfigError:  # so few MACs cannot be reached
            low = share
            continue
        undo = bench.search(removed).undo
        try:
            found = timed(model)
        finally:
            undo()
        fastest = min(fastest, found)
        if found <= limit:
            low, best = share, removed
        else:
            high = share
    if best is None:
        raise ConfigError(
            f"a latency of {limit:.3g} ms cannot be reached: the dense model takes {dense:.3g} ms, "
            f"the fastest cut tried {fastest:.3g} ms; ask for more milliseconds, or lower "
            "min_channels"
        )
    return best
