# SPDX-License-Identifier: MIT
"""Regrow sensitivity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from regrow.app.experiment.load_run import held_masks, load_small, run_config
from regrow.app.training.build import build_data, build_module
from regrow.app.training.classifier import Classifier
from regrow.app.training.validation import Validation, leave_gradients
from regrow.channels.importance import CHANNEL_CRITERIA as CHANNEL_CRITERIA
from regrow.criteria.base import CRITERIA as WEIGHT_CRITERIA
from regrow.criteria.base import Criterion, needs_gradients
from regrow.io.checkpoints import read_checkpoint
from regrow.sensitivity_analysis.recommend import Recommendation, recommend
from regrow.sensitivity_analysis.scan import (
    DEFAULT_CRITERIA,
    Sensitivities,
    count_totals,
    find_units,
    measure_accuracy,
    scan,
    zero_temporarily,
)
from regrow.sensitivity_analysis.scan_options import ScanOptions
from regrow.sensitivity_analysis.scan_plot import write_plot
from regrow.sensitivity_analysis.scan_table import (
    format_recommendation,
    sensitivity_table,
    write_csv,
)
from regrow.sensitivity_analysis.scan_units import PruningUnit
from regrow.utils.errors import ConfigError, check_choice

_ADVICE = "in Python, regrow.sensitivity(model, evaluate) takes any model"


_GRADIENT_BATCHES = 16  # of training, for criteria that need gradients


def show_sensitivity(options: ScanOptions) -> None:
    """Tries each layer of a run's checkpoint alone; prints a table, writes it and a plot.

    Raises:
        ConfigError: If the checkpoint is not of a run, or the options are not for its network.
        StateError: If the checkpoint is damaged.
    """
    _check_criterion(options)
    cfg = run_config(options.checkpoint, _ADVICE)
    checkpoint = read_checkpoint(options.checkpoint)
    if "state_dict" not in checkpoint:
        raise ConfigError(f"{options.checkpoint} is no checkpoint of a run: it holds no state_dict")
    if isinstance(cfg.get("threads"), int):
        torch.set_num_threads(cfg.threads)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {options.out} cannot be a folder: {error}") from error
    data = build_data(cfg)
    module = build_module(cfg, data)
    cut = load_small(module, checkpoint) is not None
    module.to(_device(cfg))
    evaluate = Validation(data, options.samples)
    remarks = ["the network as it was cut: sparsities count what is left of it"] if cut else []
    if _reads_gradients(options):
        count = leave_gradients(module, data, _GRADIENT_BATCHES)
        remarks.append(f"gradients are those of {count:,} training samples")
    units, excluded = find_units(
        module,
        options.by,
        options.criterion,
        masks=held_masks(checkpoint),
        example_input=module.example_input_array,
        include=options.include,
        exclude=options.exclude,
        seed=int(cfg.seed),
    )
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a pipe has no width: keep a layer on one line
    found = _scanned(module, evaluate, units, excluded, options.sparsities, console)
    step = recommend(found, options.max_drop)
    together = _at_once(module, evaluate, units, step) if options.by == "weights" else None
    console.print(sensitivity_table(found, options, evaluate.count, remarks))
    console.print(
        format_recommendation(found, step, options, together),
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
    table = write_csv(found, options)
    console.print(
        f"{table}; {write_plot(found, options, table)}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


def _scanned(
    module: Classifier,
    evaluate: Validation,
    units: Sequence[PruningUnit],
    excluded: Mapping[str, str],
    sparsities: Sequence[float],
    console: Console,
) -> Sensitivities:
    """The rows, with a bar that says how far it is."""
    accuracy, rows = measure_accuracy(module, evaluate), []
    totals = count_totals(module, module.example_input_array)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("one layer at a time", total=len(units))
        for row in scan(module, evaluate, units, sparsities, accuracy, totals):
            rows.append(row)
            progress.advance(task)
    return Sensitivities(accuracy, tuple(rows), excluded)


def _at_once(
    module: Classifier, evaluate: Validation, units: Sequence[PruningUnit], step: Recommendation
) -> float | None:
    """The accuracy with every layer at its own limit, without training."""
    zeros = []
    for unit in units:
        if unit.name in step.layers:
            count = min(round(step.layers[unit.name] * unit.size), unit.size - 1)
            zeros += unit.zeros(max(unit.n_pruned, count))
    if not zeros:
        return None
    with zero_temporarily(module, zeros):
        return measure_accuracy(module, evaluate)


def _check_criterion(options: ScanOptions) -> None:
    known = WEIGHT_CRITERIA if options.by == "weights" else {**CHANNEL_CRITERIA, "random": None}
    check_choice("--criterion", options.criterion or DEFAULT_CRITERIA[options.by], known)


def _reads_gradients(options: ScanOptions) -> bool:
    name = options.criterion or DEFAULT_CRITERIA[options.by]
    if options.by == "channels":
        return name == "taylor"
    rule: Criterion | type = WEIGHT_CRITERIA[name]
    return not isinstance(rule, type) and needs_gradients(rule)


def _device(cfg: DictConfig) -> torch.device:
    allowed = cfg.trainer.get("accelerator") != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if allowed else "cpu")
