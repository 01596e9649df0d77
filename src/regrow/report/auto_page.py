# SPDX-License-Identifier: MIT
"""Choose among attempts to prune a network, and write the page that says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from regrow.report.page import load_template


class Attempt(NamedTuple):
    """One way to prune a network, and what came of it."""

    name: str  # its folder
    what: str  # what was done
    epochs: int  # of training that it took
    why: str = ""  # why it was not tried; empty if it was
    of: str = "weights"  # what was pruned: "weights", or the measure of channels
    sparsity: float = 0.0  # the fraction of that which is gone
    params: int = 0  # remaining parameters
    macs: int = 0  # of one example, without those of pruned weights
    latency_ms: float = 0.0  # measured
    drop: float = 0.0  # loss of the monitored metric on the validation set
    test_drop: float = 0.0  # loss on the test set, which decides nothing
    holds: bool = False  # whether the loss, and the latency, are within what is allowed
    fast: bool = True  # whether the latency is
    seconds: float = 0.0  # time that it took
    checkpoint: str = ""  # path within the folder of the search


def choose(attempts: Sequence[Attempt]) -> Attempt | None:
    """Return the one with the fewest parameters that holds, of equal ones the first, if any."""
    return min((one for one in attempts if one.holds), key=lambda one: one.params, default=None)


def write_page(
    record: Mapping[str, Any], attempts: Sequence[Attempt], chosen: Attempt | None
) -> str:
    """Return the page of a search as Markdown; `record` has what is the same for all attempts."""
    holding = [one for one in attempts if one.holds]
    fastest = min(holding, key=lambda one: one.latency_ms, default=None)
    facts = {**record, "attempts": attempts, "chosen": chosen, "fastest": fastest}
    return load_template("auto.md.j2").render(facts)
