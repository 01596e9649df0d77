# SPDX-License-Identifier: MIT
"""Run `regrow doctor`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from regrow.app.experiment.evaluate import load_network
from regrow.app.experiment.load_run import load_run
from regrow.app.training.build import network_of
from regrow.runtime.diagnosis import diagnose


def show_diagnosis(path: Path) -> None:
    """Print which runtimes would use the zeros and shapes of a run's checkpoint.

    Args:
        path: A checkpoint in the folder of a run of `regrow train`.

    Raises:
        ConfigError: If the checkpoint is not of a run.
        StateError: If it is damaged.
    """
    cfg, checkpoint = load_run(
        path, "in Python, regrow.diagnose(model, example_input) takes any model"
    )
    module, _ = load_network(cfg, checkpoint)
    Console().print(diagnose(network_of(module), module.example_input_array))
