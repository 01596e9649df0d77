# SPDX-License-Identifier: MIT
"""Choose among attempts to prune a network, and write the page that says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Attempt(NamedTuple):
    """One way to prune a network, and what came of it.

    Attributes:
        name: Its folder.
        what: What was done.
        epochs: Epochs of training that it took.
        why: Why it was not tried; empty if it was.
        of: What was pruned: "weights", or the measure of channels.
        sparsity: The fraction of that which is gone.
        params: Remaining parameters.
        macs: MACs of one example, without those of pruned weights.
        latency_ms: Measured milliseconds.
        drop: Loss of the monitored metric on the validation set.
        test_drop: Loss on the test set, which decides nothing.
        holds: Whether the loss, and the latency, are within what is allowed.
        fast: Whether the latency is.
        seconds: Time that it took.
        checkpoint: Path within the folder of the search.
    """

    name: str
    what: str
    epochs: int
    why: str = ""
    of: str = "weights"
    sparsity: float = 0.0
    params: int = 0
    macs: int = 0
    latency_ms: float = 0.0
    drop: float = 0.0
    test_drop: float = 0.0
    holds: bool = False
    fast: bool = True
    seconds: float = 0.0
    checkpoint: str = ""


def choose(attempts: Sequence[Attempt]) -> Attempt | None:
    """Return the attempt with the fewest parameters among those that hold; None if none does.

    Of equal ones the first, which trained less.

    Example:
        >>> a, b = Attempt("a", "", 0, params=9, holds=True), Attempt("b", "", 2, params=5)
        >>> choose([a, b]).name, choose([a, b._replace(holds=True)]).name, choose([b])
        ('a', 'b', None)
    """
    return min((one for one in attempts if one.holds), key=lambda one: one.params, default=None)


def write_page(
    record: Mapping[str, Any], attempts: Sequence[Attempt], chosen: Attempt | None
) -> str:
    """Return the page of a search as Markdown.

    Args:
        record: Recipe, allowed loss and latency, epochs, metric, and the dense network.
        attempts: In the order in which they were made.
        chosen: The result of `choose`.
    """
    dense = record["dense"]
    lines = [f"# {record['recipe']}, pruned automatically", "", _headline(record, chosen), ""]
    lines += [*_table(dense, attempts, chosen), "", "## Why", ""]
    lines += [f"- {_reason(one, record, chosen)}" for one in attempts]
    lines += _fastest(dense, attempts, chosen)
    lines += ["", "## How it was judged", "", *_method(record)]
    if chosen is not None:
        lines += ["", "## What to do with it", "", *_commands(record, chosen)]
    return "\n".join([*lines, ""])


def _headline(record: Mapping[str, Any], chosen: Attempt | None) -> str:
    allowed = _points(record["max_drop"])
    limit = record["latency_ms"]
    within = allowed if limit is None else f"{allowed} and {limit:g} ms"
    if chosen is None:
        return f"**No network was found within {within}**; the dense network stays."
    fewer = record["dense"]["params"] / max(1, chosen.params)
    return (
        f"**Chosen: {chosen.name}**, with {fewer:.1f} times fewer parameters for "
        f"{_points(chosen.drop)} on the validation set ({_points(chosen.test_drop)} on the test "
        f"set), {chosen.epochs} epochs of training after the dense network. Allowed: {within}."
    )


def _table(
    dense: Mapping[str, Any], attempts: Sequence[Attempt], chosen: Attempt | None
) -> list[str]:
    heads = ["attempt", "epochs", "gone", "parameters", "MACs", "latency, ms", "validation loss"]
    heads += ["test loss", "holds", "time, s"]
    size = f"{dense['params']:,}", f"{dense['macs']:,}", f"{dense['latency_ms']['median']:.3f}"
    rows = [heads, ["---"] * len(heads), ["dense", "", "", *size, "", "", "", ""]]
    for one in attempts:
        name = f"**{one.name}**" if one is chosen else one.name
        if one.why:
            rows.append([name, "", *["-"] * 6, "not tried", ""])
            continue
        gone = f"{100 * one.sparsity:.1f} % of {one.of}"
        rows.append([
            name, str(one.epochs), gone, f"{one.params:,}", f"{one.macs:,}",
            f"{one.latency_ms:.3f}", _points(one.drop), _points(one.test_drop),
            "yes" if one.holds else "no", f"{one.seconds:.0f}",
        ])  # fmt: skip
    return [f"| {' | '.join(row)} |" for row in rows]


def _reason(one: Attempt, record: Mapping[str, Any], chosen: Attempt | None) -> str:
    if one.why:
        return f"**{one.name}** was not tried: {one.why}."
    head = f"**{one.name}** ({one.what})"
    if not one.fast:
        return f"{head} takes {one.latency_ms:.3f} ms, more than {record['latency_ms']:g} ms."
    if not one.holds:
        return f"{head} loses {_points(one.drop)}, more than {_points(record['max_drop'])}."
    if one is chosen:
        return f"{head} holds, and keeps the fewest parameters of those that do."
    assert chosen is not None
    more = one.params / max(1, chosen.params)
    return f"{head} holds, but keeps {more:.1f} times as many parameters."


def _fastest(
    dense: Mapping[str, Any], attempts: Sequence[Attempt], chosen: Attempt | None
) -> list[str]:
    """Name the fastest attempt that holds, if it is another one and clearly faster."""
    holding = [one for one in attempts if one.holds]
    fastest = min(holding, key=lambda one: one.latency_ms, default=chosen)
    if fastest is None or chosen is None or fastest.latency_ms > 0.9 * chosen.latency_ms:
        return []
    ratio = dense["latency_ms"]["median"] / fastest.latency_ms
    return [f"- The fastest that holds is **{fastest.name}**: {ratio:.2f} times as fast as dense."]


def _method(record: Mapping[str, Any]) -> list[str]:
    words = " ".join(record["words"])
    return [
        f"`{words}`: every attempt starts from the same dense network ({record['metric']} "
        f"{record['dense']['val']:.4f}). The validation set decides; the test set is measured once "
        "for each network, and decides nothing. Up to "
        f"{record['epochs']} epochs were allowed after the dense training. Parameters and MACs do "
        "not count masked weights; only removed channels make a dense kernel faster.",
    ]


def _commands(record: Mapping[str, Any], chosen: Attempt) -> list[str]:
    path = f"{record['folder']}/{chosen.checkpoint}"
    return [f"    regrow inspect {path}", f"    regrow export {path} --to onnx"]


def _points(loss: float) -> str:
    """Return a loss of a fraction in points.

    Example:
        >>> _points(0.0123), _points(-0.002)
        ('1.23 points', '-0.20 points')
    """
    return f"{100 * loss:.2f} points"
