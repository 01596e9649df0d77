# SPDX-License-Identifier: MIT
"""Run `regrow sensitivity`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import cast

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.app.experiment.load_run import combined_masks, load_run, load_small
from regrow.app.training.build import build_data, build_module
from regrow.app.training.classifier import Batch, Classifier
from regrow.channels.importance import CHANNEL_CRITERIA
from regrow.criteria.base import CRITERIA as WEIGHT_CRITERIA
from regrow.criteria.base import Criterion, needs_gradients
from regrow.sensitivity_analysis.recommend import Recommendation, recommend
from regrow.sensitivity_analysis.scan import (
    DEFAULT_CRITERIA,
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
from regrow.utils.batches import device_of
from regrow.utils.errors import ConfigError, check_choice
from regrow.utils.lightning_classes import pl
from regrow.utils.modes import eval_mode

_ADVICE = "in Python, regrow.sensitivity(model, evaluate) takes any model"
_GRADIENT_BATCHES = 16  # training batches for criteria that need gradients
_SUBSET_BATCH = 256


def show_sensitivity(options: ScanOptions) -> None:
    """Prune one layer of a run's checkpoint at a time; print a table, write it and a plot."""
    criterion = options.criterion or DEFAULT_CRITERIA[options.by]
    known = WEIGHT_CRITERIA if options.by == "weights" else {**CHANNEL_CRITERIA, "random": None}
    check_choice("--criterion", criterion, known)
    if options.by == "channels" and criterion == "fisher":
        raise ConfigError(
            "--criterion fisher is the mean of squared gradients over training steps, and nothing "
            "is trained here: write --criterion taylor"
        )
    cfg, checkpoint = load_run(options.checkpoint, _ADVICE)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {options.out} cannot be a folder: {error}") from error
    data = build_data(cfg)
    module = build_module(cfg, data)
    if not isinstance(module, Classifier):
        raise ConfigError(f"{type(module).__name__} is no classification of the command; {_ADVICE}")
    remarks = []
    if load_small(module, checkpoint) is not None:
        remarks.append("the network has removed channels: sparsities are of the remaining ones")
    module.to(_choose_device(cfg))
    evaluate = Validation(data, options.samples)
    if _reads_gradients(options.by, criterion):
        count = leave_gradients(module, data, _GRADIENT_BATCHES)
        remarks.append(f"gradients are those of {count:,} training samples")
    units, excluded = find_units(
        module,
        options.by,
        options.criterion,
        masks=combined_masks(checkpoint),
        example_input=module.example_input_array,
        include=options.include,
        exclude=options.exclude,
        seed=int(cfg.seed),
    )
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)  # a pipe has no width: keep a layer on one line
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        tracked = progress.track(units, description="one layer at a time")
        example = module.example_input_array
        found = scan(module, evaluate, tracked, excluded, options.sparsities, example)
    step = recommend(found, options.max_drop)
    together = None
    if options.by == "weights":
        together = _measure_all_limits(module, evaluate, units, step)
    console.print(sensitivity_table(found, options, evaluate.count, remarks, console.width))
    table = write_csv(found, options)
    files = f"{table}; {write_plot(found, options, table)}"
    for text in (format_recommendation(found, step, options, together), files):
        console.print(text, soft_wrap=True, markup=False, highlight=False)


def _measure_all_limits(
    module: Classifier, evaluate: Validation, units: Sequence[PruningUnit], step: Recommendation
) -> float | None:
    """Return the accuracy with every layer pruned to its limit, without training."""
    zeros = []
    for unit in units:
        if unit.name in step.layers:
            count = min(round(step.layers[unit.name] * unit.size), unit.size - 1)
            zeros += unit.zeros(max(unit.n_pruned, count))
    if not zeros:
        return None
    with zero_temporarily(module, zeros):
        return measure_accuracy(module, evaluate)


def _reads_gradients(by: str, criterion: str) -> bool:
    if by == "channels":
        return criterion == "taylor"
    rule: Criterion | type = WEIGHT_CRITERIA[criterion]
    return not isinstance(rule, type) and needs_gradients(rule)


def _choose_device(cfg: DictConfig) -> torch.device:
    allowed = cfg.trainer.get("accelerator") != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if allowed else "cpu")


class Validation:
    """Compute the accuracy of a network on the validation set, which selects where to prune.

    `samples` is the size of a random subset, kept in memory and equal in each call (None: all);
    `count` is the number of samples of the last call.
    """

    def __init__(self, data: pl.LightningDataModule, samples: int | None = None) -> None:
        data.prepare_data()
        data.setup("validate")
        self._data = data
        self._subset = None if samples is None else _draw_samples(data.val_dataloader(), samples)
        self.count = 0

    def __call__(self, module: nn.Module) -> float:
        """Return the accuracy as a fraction."""
        device = device_of(module)
        right, self.count = 0, 0
        for images, labels in self._batches():
            logits = module(images.to(device))
            right += int((logits.argmax(1) == labels.to(device)).count_nonzero())
            self.count += len(labels)
        return right / max(1, self.count)

    def _batches(self) -> Iterable[Batch]:
        if self._subset is None:
            return cast("Iterable[Batch]", self._data.val_dataloader())
        size, (images, labels) = _SUBSET_BATCH, self._subset
        starts = range(0, len(labels), size)
        return ((images[i : i + size], labels[i : i + size]) for i in starts)


def leave_gradients(module: nn.Module, data: pl.LightningDataModule, batches: int) -> int:
    """Set the gradients to those of the mean loss over some training batches; count the samples."""
    device, count = device_of(module), 0
    module.zero_grad()
    with eval_mode(module):
        for images, labels in islice(iter(data.train_dataloader()), batches):
            logits = module(images.to(device))
            loss = F.cross_entropy(logits, labels.to(device), reduction="sum")
            torch.autograd.backward([loss])
            count += len(labels)
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad /= count
    return count


def _draw_samples(batches: Iterable[Batch], count: int) -> tuple[Tensor, Tensor]:
    """Draw a random subset in one pass: the samples with the smallest random numbers."""
    generator = torch.Generator().manual_seed(0)
    kept: list[Tensor] = []
    for images, labels in batches:
        keys = torch.rand(len(labels), generator=generator)
        new = [keys, images.cpu(), labels.cpu()]
        kept = [torch.cat(pair) for pair in zip(kept, new, strict=True)] if kept else new
        if len(kept[0]) > count:
            lowest = kept[0].argsort()[:count].sort().values
            kept = [tensor[lowest] for tensor in kept]
    return kept[1], kept[2]
