# SPDX-License-Identifier: MIT
"""The picture of `undoing.py`, from its table; equal tables give identical files."""

from itertools import groupby
from operator import itemgetter
from pathlib import Path

from _plotting import FIXED, SAVED, opened

# colors that color-blind readers can distinguish (Okabe and Ito 2008)
STYLES = {
    "never pruned": ("#6e6e6e", "--"),
    "a fifth by gradient, then the rest": ("#0072b2", "-"),
    "stays pruned": ("#000000", "-"),
    "un-pruned": ("#d55e00", "-"),
    "largest fifth un-pruned": ("#009e73", "-"),
    "He-initialised": ("#b0568f", "-"),
    "He-initialised, survivors held": ("#b0568f", ":"),
}


def draw(table: Path, picture: Path) -> None:
    """Draws the accuracies of the table."""
    pyplot, rows = opened(table)
    arms = {arm: list(points) for arm, points in groupby(rows, itemgetter("arm"))}
    with pyplot.rc_context(FIXED):
        figure, (one, many) = pyplot.subplots(
            2, 1, figsize=(8, 7.2), height_ratios=(1, 1.15), layout="constrained"
        )
        _one_fit(one, arms)
        _ways_back(many, arms)
        figure.savefig(picture, **SAVED)
        pyplot.close(figure)


def _line(axes, arm, points, start=0.0, **more):
    """The mean over seeds, and the band between the lowest and the highest."""
    points = [p for p in points if float(p["epoch"]) >= start]
    epochs, mean, low, high = (
        [float(p[key]) for p in points] for key in ("epoch", "accuracy", "lowest", "highest")
    )
    colour, dashes = STYLES[arm]
    axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(epochs, mean, color=colour, linestyle=dashes, **more)
    return epochs[-1], mean[-1]


def _one_fit(axes, arms):
    dense, grown = list(arms)[:2]
    _line(axes, grown, arms[grown], linewidth=1.8)
    _line(axes, dense, arms[dense], linewidth=1.2)
    for epoch, event, text, x, y, side in (
        (2, "unprune", "98 % pruned\nand back at\nonce: the\nsame bits", 1.9, 66, "right"),
        (3, "prune", "98 % pruned", 3.12, 42, "left"),
        (6, "regrow", "a fifth\nregrown by\ngradient,\nfrom zero", 6.12, 72, "left"),
        (8, "unprune", "the rest un-pruned,\nbeside survivors\nthat trained on", 8.12, 72, "left"),
    ):
        here = (p for p in arms[grown] if float(p["epoch"]) == epoch and p["event"] == event)
        axes.axvline(epoch, color="#bbbbbb", linewidth=0.7, zorder=0)
        axes.plot(epoch, float(next(here)["accuracy"]), "o", color=STYLES[grown][0], markersize=4)
        axes.text(x, y, text, ha=side, va="top")
    axes.text(10.12, 92, "never\npruned", color=STYLES[dense][0], va="center")
    axes.text(10.12, 82, "this fit", color=STYLES[grown][0], va="center")
    axes.set(xlim=(0, 10), ylim=(20, 95), ylabel="validation accuracy, %", xticks=range(11))
    axes.set_title("One fit: dense, pruned, regrown, un-pruned", loc="left", fontweight="bold")


def _ways_back(axes, arms):
    ends, before = {}, 5.5
    for arm, points in arms.items():
        common = arm in list(arms)[:2]  # until epoch 6 all other arms are equal
        ends[arm] = _line(axes, arm, points, start=before if common else 6, linewidth=1.5)
    gap, last = 0.42, float("-inf")
    for arm, (epoch, value) in sorted(ends.items(), key=lambda item: item[1][1]):
        last = max(value, last + gap)  # labels that would overlap move up
        axes.text(epoch + 0.12, last, f"{value:.1f}  {arm}", color=STYLES[arm][0], va="center")
    lowest = [p["accuracy"] for p in arms["He-initialised"] if p["event"] == "regrow"]
    axes.text(6.45, 84.25, f"{float(lowest[0]):.0f} at once", color=STYLES["He-initialised"][0])
    axes.set(xlim=(before, 10), ylim=(84, 91.2), xticks=range(6, 11), xlabel="epochs")
    axes.set_ylabel("validation accuracy, %")
    axes.set_title("Ways back at epoch 6", loc="left", fontweight="bold")
