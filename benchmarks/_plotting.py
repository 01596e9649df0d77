# SPDX-License-Identifier: MIT
"""Shared by the pictures: matplotlib without a display, and the rows of the table."""

import csv
from pathlib import Path

# the same table gives the same bytes
FIXED = {
    "svg.hashsalt": "regrow",
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
SAVED = {"facecolor": "white", "metadata": {"Date": None, "Creator": None}}


def opened(table: Path):
    """matplotlib.pyplot, and the table's rows."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install 'regrow[plots]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with table.open(newline="") as file:
        return pyplot, list(csv.DictReader(file))
