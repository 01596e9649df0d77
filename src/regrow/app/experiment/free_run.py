# SPDX-License-Identifier: MIT
"""Search the sparsity that a run's network holds without training, and write it as a run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from regrow.app.config import recipe_export
from regrow.app.experiment import evaluate as evaluation
from regrow.app.experiment.load_run import combined_masks, load_run
from regrow.app.experiment.result import Result, finished_result
from regrow.app.experiment.run import compared_fields, judged_fields, run_fields, write_result
from regrow.app.training.build import build_pruning, editable_copy
from regrow.app.training.classifier import Classifier
from regrow.app.training.fit import save_untrained
from regrow.app.training.lightning_packages import lightning_package
from regrow.app.training.module_metrics import QUIET, validate
from regrow.app.training.processes import exclusive
from regrow.calibration.free_sparsity import FreeSparsity, free_sparsity
from regrow.callbacks.post_training_pruning import PostTrainingPruning
from regrow.io.checkpoints import KEY
from regrow.io.files import write_text
from regrow.report.load import FILE
from regrow.utils.errors import ConfigError
from regrow.utils.lightning_classes import pl
from regrow.utils.logging import info, quiet_third_party

_ADVICE = "in Python, regrow.free_sparsity(model, loader) takes any model"

MEASURED = ("count", "error", "agreement", "kl")  # of a fidelity


@dataclass(frozen=True)
class FreeOptions:
    """Options of `regrow free`; `max_drop` is a fraction."""

    max_drop: float = 0.005
    of: str = "params"
    criterion: str = "obs"
    samples: int = 1024
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None


def free_run(path: Path, folder: Path, options: FreeOptions) -> Result:
    """Prune the network of a run's checkpoint as far as it holds, without training.

    Writes the folder of a run: `checkpoints/best.ckpt`, the configuration, and `result.json` with
    the search under "free". A finished one with the same checkpoint and options is not repeated.
    """
    cfg, checkpoint = load_run(path, _ADVICE)
    masks = combined_masks(checkpoint)
    if KEY in checkpoint or (masks is not None and masks.pruned):
        raise ConfigError(
            f"{path} holds a network that is pruned already: write the checkpoint of a dense one, "
            "as `regrow train pruning=none` leaves it"
        )
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    text = json.dumps([content, asdict(options)], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    quiet_third_party()
    with exclusive(folder, "search", "write another --out"):
        result = finished_result(folder, key)
        if result is not None:
            info(f"{folder / FILE}: already finished; remove the file to search again")
            return result
        return _search_and_write(cfg, checkpoint, path, folder, options, key)


def _search_and_write(
    cfg: DictConfig,
    checkpoint: Mapping[str, Any],
    path: Path,
    folder: Path,
    options: FreeOptions,
    key: str,
) -> Result:
    started = time.perf_counter()
    module, data = evaluation.load_network(cfg, path)
    found = _search(cfg, module, data, options)
    cfg = _free_config(cfg, path, folder, options, found)
    pruning = build_pruning(cfg)
    assert isinstance(pruning, PostTrainingPruning)
    pruning.attach(module)
    pruning.prune_as(found.masks, found.values)
    trainer = lightning_package(module).Trainer(callbacks=[pruning], **QUIET)
    file = folder / "checkpoints" / "best.ckpt"
    save_untrained(trainer, module, file)
    write_text(folder / ".hydra" / "config.yaml", OmegaConf.to_yaml(cfg))
    recipe = checkpoint.get(recipe_export.KEY) or {"name": "custom"}
    fields = run_fields(cfg, key, str(recipe["name"]), [f"free={options.max_drop:g}"])
    fields |= judged_fields(cfg, module, data)
    fields |= {"epochs": None, "levels": [], "free": free_record(found, options)}
    fields |= compared_fields(cfg, folder, evaluation.measure(cfg, path, None), file)[0]
    return write_result(folder, fields, started)


def _search(
    cfg: DictConfig, module: pl.LightningModule, data: pl.LightningDataModule, options: FreeOptions
) -> FreeSparsity:
    """Search on training inputs, judged by the validation set."""
    data.prepare_data()
    data.setup("fit")
    if isinstance(module, Classifier):
        judged: dict[str, Any] = {"validation": data.val_dataloader()}
    else:
        sign = 1 if cfg.monitor_mode == "max" else -1
        judged = {"evaluate": lambda _: sign * validate(cfg, module, data)[str(cfg.monitor)]}
    return free_sparsity(module, data.train_dataloader(), **asdict(options), **judged)


def _free_config(
    cfg: DictConfig, path: Path, folder: Path, options: FreeOptions, found: FreeSparsity
) -> DictConfig:
    """Return the configuration of the pruned network, as `regrow train` would have it."""
    changed = editable_copy(cfg)
    changed.start, changed.dense_epochs, changed.trainer.max_epochs = str(path), None, 0
    changed.trainer.default_root_dir = str(folder)  # Hydra, which it names, is not running
    changed.pruning = {
        "_target_": "regrow.PostTrainingPruning",
        "sparsity": found.sparsity,
        "criterion": options.criterion,
        "include": None if options.include is None else [*options.include],
        "exclude": None if options.exclude is None else [*options.exclude],
    }
    return changed


def free_record(found: FreeSparsity, options: FreeOptions) -> dict[str, Any]:
    """Return the search as plain values: what was asked, found and tried."""
    fidelity = found.fidelity
    return {
        "max_drop": options.max_drop,
        "of": found.of,
        "removed": found.removed,
        "metric": found.metric,
        "before": found.before,
        "after": found.after,
        **{n: None if fidelity is None else getattr(fidelity, n) for n in MEASURED},
        "damage": {} if fidelity is None else {str(k): v for k, v in fidelity.damage().items()},
        "trials": [asdict(trial) for trial in found.trials],
    }
