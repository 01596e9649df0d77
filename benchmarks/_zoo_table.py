# SPDX-License-Identifier: MIT
"""The table of `zoo.py`, and the summary above it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from _zoo_deployed import DEPLOYED

Row = dict[str, Any]
SHARES = ("0.3", "0.5")
NEAR = 0.02  # two points
EQUAL = 1e-8  # relative error in float64
TARGETS = {
    "correctly smaller": (95, "at least"),
    "wrong": (0, "at most"),
    "half cut": (0, "at most"),
    "within two points": (85, "at least"),
    "median groups held back": (0, "at most"),
    "median analysis seconds": (2, "at most"),
}
DEPLOYED_TARGETS = {
    "correctly smaller": (97, "at least"),
    "wrong": (0, "at most"),
    "half cut": (0, "at most"),
    "within two points": (90, "at least"),
}
DEPLOYED_TITLE = "## Detectors, transformers, segmentation, recurrent networks"
DEPLOYED_HEAD = f"""{DEPLOYED_TITLE}

{{count}} networks of torchvision's detectors, `ultralytics`, `transformers`,
`segmentation_models_pytorch` and `torch.nn`, small, with random weights; as above, in the same run.
A detector is cut whole, in one call; its outputs are compared before boxes are chosen. Llama,
Mistral and Qwen3 compute norms in float32 whatever the weights are: their errors may be 1e-6.
Torch-Pruning is told the layers that give the outputs.

| | regrow | target | Torch-Pruning 1.6.1, same run |
|---|---|---|---|
{{summary}}
"""
HEAD = """# Which networks can be cut

{count} architectures of torchvision and timm, random weights, float64, CPU; each loses 30 % and
50 % of its MACs (`regrow.channels.prune(model, x, share, of="macs")`). Made by
`python benchmarks/zoo.py`. Seconds are CPU time on one thread.

| | regrow | target | Torch-Pruning 1.6.1, same run |
|---|---|---|---|
{summary}

*Correctly smaller*: runs with batches of two sizes, outputs of the same shape, fewer parameters.
A cut of the exact groups computes what the masked network does, and permuting the channels of a
group does not change the outputs; the benchmark checks both with its own code (relative error under
1e-8, or under 100 times the effect of a change of the input by 1e-15). A network that fails a check
is *wrong*. *Half cut*: the network is not restored exactly after an error or after `plan.undo()`.
*Within two points*: the MACs that went are at most two points more than was asked. *Held back*:
groups that cannot be cut, other than those of the output, as found before a cut. In the tables of
networks, *px* is the height and width of the input, and *error* the largest relative difference
from the masked network at 50 %.

Torch-Pruning: group magnitude, default settings, classifier ignored, no hints such as `num_heads`
or `unwrapped_parameters`, 45 seconds of CPU time; small steps until no more than the target MACs
remain. It is only required to run, with outputs of the same shape and fewer parameters. Its README
(version 1.2) reports 81 of 85 models of torchvision 0.13.1, with hints.
"""


def right(row: Row, share: str) -> bool:
    """Smaller and correct."""
    facts = row["shares"].get(share, {})
    return bool(facts.get("shapes") and facts.get("smaller") and facts.get("finite", True))


def wrong(row: Row) -> bool:
    errors = [row.get("permuted"), *(f.get("error_exact") for f in row["shares"].values())]
    allowed = max(EQUAL, 100 * row.get("noise", 0.0))
    odd = any(error is not None and not error <= allowed for error in errors)
    shapes = any(f.get("shapes") is False for f in row["shares"].values())
    return odd or shapes or any(f.get("finite") is False for f in row["shares"].values())


def half(row: Row) -> bool:
    return any(f.get("untouched") is False for f in (row, *row["shares"].values()))


def near(row: Row, share: str) -> bool:
    facts = row["shares"].get(share, {})
    return right(row, share) and abs(facts["went"] - float(share)) <= NEAR


def percent(hits: Iterable[bool]) -> float:
    hits = list(hits)
    return 100 * sum(hits) / max(1, len(hits))


def middle(values: Iterable[Any]) -> float:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else float("nan")


def figures(rows: Sequence[Row]) -> dict[str, float]:
    both = [(row, share) for row in rows for share in SHARES]
    return {
        "correctly smaller": percent(right(r, s) and not wrong(r) for r, s in both),
        "wrong": sum(wrong(row) for row in rows),
        "half cut": sum(half(row) for row in rows),
        "within two points": percent(near(r, s) for r, s in both),
        "median groups held back": middle(row.get("stuck") for row in rows),
        "median analysis seconds": middle(row.get("seconds") for row in rows),
        "median seconds of a cut": middle(f.get("seconds") for r, s in both if (f := _of(r, s))),
    }


def _of(row: Row, share: str) -> Row:
    return row["shares"].get(share, {})


def table(rows: Mapping[tuple[str, str, str], Row], before: str) -> tuple[str, dict[str, Any]]:
    """Markdown, and the figures with their targets; a section without rows stays as `before`."""
    first, _, second = before.partition(DEPLOYED_TITLE)
    sections, found = [first, DEPLOYED_TITLE + second if second else ""], dict[str, Any]()
    for number, (name, head, targets) in enumerate(
        (("families", HEAD, TARGETS), ("deployed", DEPLOYED_HEAD, DEPLOYED_TARGETS))
    ):
        chosen = {k: row for k, row in rows.items() if (k[1] in DEPLOYED) == bool(number)}
        if chosen:
            sections[number], found[name] = _section(chosen, head, targets)
    return "\n\n".join(text.strip() for text in sections if text.strip()) + "\n", found


def _section(
    rows: Mapping[tuple[str, str, str], Row], head: str, targets: Mapping[str, tuple[float, str]]
) -> tuple[str, dict[str, Any]]:
    mine = [row for (side, *_), row in rows.items() if side == "ours"]
    peers = {key[1:]: row for key, row in rows.items() if key[0] == "peer"}
    found, other = figures(mine), figures([*peers.values()])
    lines = [_summary(name, found[name], targets, other, len(peers)) for name in found]
    text = head.format(count=len(mine), summary="\n".join(lines))
    kind = "px" if head is HEAD else "kind"
    text += (
        f"\n| model | {kind} | groups | held back | analysis s | 30 % asked | 50 % asked | error | "
    )
    text += "Torch-Pruning 30 %, 50 % |\n" + "|---" * 9 + "|\n"
    for row in sorted(mine, key=_order):
        text += _line(row, peers.get((row["source"], row["name"]))) + "\n"
    return text, {"ours": found, "peer": other, "targets": targets, "models": len(mine)}


def _order(row: Row) -> tuple[int, str]:
    kinds = ("torchvision", "timm", *DEPLOYED)
    return kinds.index(row["source"]), row["name"]


def _summary(
    name: str,
    value: float,
    targets: Mapping[str, tuple[float, str]],
    other: Row,
    peers: int,
) -> str:
    target, word = targets.get(name, ("", ""))
    unit = " %" if name in ("correctly smaller", "within two points") else ""
    known = other[name] if peers and name not in ("wrong", "half cut") else None
    if name == "median groups held back":
        known = None
    theirs = "" if known is None or known != known else f"{known:.3g}{unit} of {peers}"
    if not unit and theirs:
        theirs = f"{known:.3g}"
    return f"| {name} | {value:.3g}{unit} | {word} {target}{unit if word else ''} | {theirs} |"


def _line(row: Row, peer: Row | None) -> str:
    errors = [f.get("error_exact") for f in row["shares"].values()]
    known = [error for error in errors if error is not None]
    error = f"{max(known):.0e}" if known else ("approximate" if row["shares"] else "")
    cells = [
        row["name"],
        row.get("pixels", row["source"]),
        row.get("groups", ""),
        row.get("stuck", ""),
        f"{row['seconds']:.1f}" if "seconds" in row else "",
        *(_cell(row, share) for share in SHARES),
        error,
        ", ".join(dict.fromkeys(_cell(peer, share) for share in SHARES)) if peer else "",
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _cell(row: Row, share: str) -> str:
    facts = _of(row, share)
    if "went" in facts:
        mark = "" if right(row, share) else " (wrong)"
        return f"{100 * facts['went']:.1f} %{mark}"
    return str(facts.get("error") or row.get("ended") or "not run").replace("|", "/")[:60]
