# SPDX-License-Identifier: MIT
"""Run `regrow doctor`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from regrow.app.experiment.evaluate import load_network
from regrow.app.experiment.load_run import load_run
from regrow.app.training.build import network_of
from regrow.runtime.diagnosis import Diagnosis, diagnose
from regrow.utils.display import shorten_names


def show_diagnosis(path: Path) -> None:
    """Print which runtimes would use the zeros and shapes of a run's checkpoint."""
    cfg, checkpoint = load_run(
        path, "in Python, regrow.diagnose(model, example_input) takes any model"
    )
    module, _ = load_network(cfg, checkpoint)
    diagnosis, console = diagnose(network_of(module), module.example_input_array), Console()
    for table in diagnosis_tables(diagnosis):
        console.print(table)
    if note := diagnosis.note():
        console.print(note, soft_wrap=True)


def diagnosis_tables(diagnosis: Diagnosis) -> list[Table]:
    """Return the table of the layers and that of the runtimes."""
    (heads, *rows), (fields, *runtimes) = diagnosis.layer_rows(), diagnosis.runtime_rows()
    layers = Table(*heads, title="layers")
    for name, (_, *cells) in zip(shorten_names([row[0] for row in rows], 28), rows, strict=True):
        layers.add_row(name, *cells)
    if left := len(diagnosis.layers) - len(rows):
        layers.caption = f"small layers left out: {left}"
    table = Table(title="runtimes")
    table.caption = "fits: share of MACs in layers that the runtime can use; measure the gain"
    for field in fields:
        table.add_column(field, overflow="fold")
    for row in runtimes:
        table.add_row(*row)
    return [layers, table]
