# SPDX-License-Identifier: MIT
"""The comparison as a picture: one row a recipe, one mark a sparsity."""

from collections import defaultdict
from pathlib import Path

from _plotting import FIXED, SAVED, opened

COLOURS = ("#0072b2", "#d55e00", "#008f68")
LEFT = 77.5  # lower accuracies are written at the left edge


def draw(table: Path, picture: Path) -> None:
    """Draws docs/compare.csv; the best at the highest sparsity on top."""
    pyplot, rows = opened(table)
    found = defaultdict(dict)
    for row in rows:
        found[float(row["sparsity"])][row["recipe"].rpartition("/")[2]] = row
    last = found[max(found)]
    names = sorted(last, key=lambda name: float(last[name]["accuracy %"]))
    with pyplot.rc_context(FIXED):
        figure, axes = pyplot.subplots(figsize=(8, 0.26 * len(names) + 1.1), layout="constrained")
        dense = [float(row["dense %"]) for row in rows]
        axes.axvspan(min(dense), max(dense), color="#dddddd", label="dense")
        edge = dict.fromkeys(names, LEFT + 0.1)
        for (sparsity, here), colour in zip(sorted(found.items()), COLOURS, strict=True):
            for place, name in enumerate(names):
                mean, spread = (float(here[name][key] or 0) for key in ("accuracy %", "sd"))
                if mean < LEFT:
                    axes.text(edge[name], place, f"{mean:.1f}", va="center", color=colour)
                    edge[name] += 0.6
                    continue
                label = f"{sparsity:.0%} sparse" if place == len(names) - 1 else None
                style = {"fmt": "o", "ms": 4, "lw": 1, "color": colour, "label": label}
                axes.errorbar(mean, place, xerr=spread, **style)
        axes.set_yticks(range(len(names)), [name.removeprefix("lenet300_") for name in names])
        axes.set(xlim=(LEFT, 90.3), xlabel="test accuracy, %: mean and deviation of three seeds")
        axes.grid(axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncol=4, frameon=False)
        figure.savefig(picture, **SAVED)
        pyplot.close(figure)
