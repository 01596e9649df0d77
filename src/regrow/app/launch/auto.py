# SPDX-License-Identifier: MIT
"""Run `regrow auto`: try ways to prune a recipe's network, from cheap to dear, and choose one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from regrow.app.config.initial_weights import SCRATCH
from regrow.app.config.recipes import load, no_recipe, read_recipe, recipe_files
from regrow.app.config.run_dirs import folder_name
from regrow.app.experiment.dense_baseline import DenseBaseline
from regrow.app.experiment.evaluate import load_network
from regrow.app.experiment.free_run import FreeOptions, free_run
from regrow.app.experiment.result import Result, latency_record
from regrow.app.experiment.run import train
from regrow.app.launch.hydra_app import compose_job, handle_sigterm
from regrow.app.training.module_metrics import validate
from regrow.app.training.processes import exclusive
from regrow.io.files import check_folder, read_json, write_json, write_text
from regrow.profiling.latency import latency
from regrow.report.auto_page import Attempt, choose, write_page
from regrow.utils.batches import resize_batch
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.logging import info, quiet_third_party

PAGE = "auto.md"
_CHOSEN_HERE = ("pruning", "callbacks", "dense_epochs", "hydra.run.dir")
_LEAST = 2  # epochs of a fit that judges its own events


@dataclass(frozen=True)
class AutoOptions:
    """Options of `regrow auto`."""

    words: tuple[str, ...]  # the recipe and other settings, as for `regrow train`
    max_drop: float  # what the metric may lose on the validation set, as a fraction
    latency_ms: float | None  # that the network may take; None: any
    epochs: int | None  # of training after that of the dense network; None: as many as that
    out: Path | None  # the folder to write; None: below outputs/auto


def run_auto(options: AutoOptions) -> Path:
    """Try the ladder of methods, and write a page that says which network was chosen, and why.

    Every attempt is a run in a folder of its own: the same command goes on after an interruption,
    and repeats nothing.
    """
    quiet_third_party()
    with tempfile.TemporaryDirectory() as scratch:  # what is refused leaves no folder
        name, *_ = _compose_dense(options.words, Path(scratch))
    folder = options.out or _default_folder(name, options)
    check_folder("--out", folder)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder, "search", "write another --out"), handle_sigterm():
        ladder = _Ladder(options, folder)
        attempts = ladder.climb()
        record = {
            "recipe": ladder.name,
            "folder": os.path.relpath(folder),
            "words": list(options.words),
            "max_drop": options.max_drop,
            "latency_ms": options.latency_ms,
            "epochs": ladder.epochs,
            "metric": ladder.monitor,
            "dense": ladder.dense_record(),
            "attempts": [attempt._asdict() for attempt in attempts],
        }
        chosen = choose(attempts)
        record["chosen"] = None if chosen is None else chosen.name
        write_json(folder / "auto.json", record)
        page = write_page(record, attempts, chosen)
        write_text(folder / PAGE, page)
    return folder / PAGE


class _Ladder:
    """The attempts of one search, from cheap to dear."""

    def __init__(self, options: AutoOptions, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.name, self.words, self.cfg = _compose_dense(options.words, folder)
        self.monitor = str(self.cfg.monitor)
        result = train(self.cfg)
        checkpoint = folder / "dense" / result["checkpoint"]
        self.baseline = DenseBaseline(checkpoint, result["dense"], None)
        self.dense_value = self._validated(folder / "dense", self.cfg, checkpoint)
        trained = int(self.cfg.trainer.max_epochs or 0)
        self.epochs = trained if options.epochs is None else options.epochs

    def climb(self) -> list[Attempt]:
        """Make the attempts."""
        dense, limit = self.dense_record()["latency_ms"]["median"], self.options.latency_ms
        if limit is not None and dense > limit:
            why = "zeros do not make a dense kernel faster"
            skipped = [_skipped(name, why) for name in ("free", "refit", "gradual")]
            return [*skipped, self._channels(self.epochs)]
        free = self._free()
        short = max(1, self.epochs // 8)  # for each of two refits; the others share the rest
        share = (self.epochs - 2 * short) // 2
        if share < _LEAST:
            why = f"training needs 6 epochs, and {self.epochs} are allowed: write --epochs 6"
            return [free, *(_skipped(name, why) for name in ("refit", "gradual", "channels"))]
        density = 1 - free.sparsity
        first = self._refit(1 - density / 2, short)
        second = self._refit(1 - density * (0.25 if first.holds else 0.75), short)
        tried = [free, first, second]
        most = max(one.sparsity for one in tried if one.holds or one is free)
        # what a short training did not hold, a longer one may
        next_one = min((one.sparsity for one in tried if one.sparsity > most), default=None)
        goal = 1 - (1 - most) / 2 if next_one is None else next_one
        return [*tried, self._gradual(goal, share), self._channels(share)]

    def dense_record(self) -> dict[str, Any]:
        """Return the measurements of the dense network, latency and validation included."""
        file = self.folder / "dense" / "latency.json"
        if not file.is_file():
            module, _ = load_network(self.cfg, self.baseline.checkpoint)
            example = resize_batch(module.example_input_array, int(self.cfg.latency.batch))
            write_json(file, latency_record(latency(module, example)))
        return {**self.baseline.block, "latency_ms": read_json(file), "val": self.dense_value}

    def _free(self) -> Attempt:
        info("free: no training")
        options = FreeOptions(self.options.max_drop)
        try:
            result = free_run(self.baseline.checkpoint, self.folder / "free", options)
        except ConfigError as error:  # layers that cannot be calibrated
            return _skipped("free", str(error))
        return self._attempt("free", "calibrated and refitted, no training", 0, result)

    def _refit(self, sparsity: float, epochs: int) -> Attempt:
        name = f"refit-{sparsity:.3f}"
        words = ["pruning=obs", f"pruning.sparsity={sparsity:.3f}"]
        what = "calibrated and refitted once, then fine-tuned"
        return self._train(name, what, epochs, words)

    def _gradual(self, sparsity: float, epochs: int) -> Attempt:
        words = [f"pruning.sparsity={sparsity:.3f}", "pruning.begin=0", "pruning.end=0.5"]
        what = "gradual magnitude pruning, then fine-tuned"
        return self._train(f"gradual-{sparsity:.3f}", what, epochs, ["pruning=gmp", *words])

    def _channels(self, epochs: int) -> Attempt:
        words = ["pruning=channel"]
        if self.options.latency_ms is None:
            what = "channels removed gradually, as far as validation allows"
            words += ["pruning.sparsity=0.75", *self._budget(epochs)]
        else:
            what = f"channels removed until {self.options.latency_ms:g} ms"
            goal = f"+pruning.latency_ms={self.options.latency_ms:g}"
            words += ["~pruning.sparsity", "pruning.of=latency", goal]
        return self._train("channels", what, epochs, words)

    def _budget(self, epochs: int) -> list[str]:
        """Return the words of a fit that rolls back what loses too much."""
        return [
            *("pruning.begin=0", f"pruning.end={max(1, epochs // 2)}ep", "pruning.every=1ep"),
            "callbacks=budget",
            f"callbacks.budget.max_drop={self.options.max_drop:g}",
            f"callbacks.budget.monitor={self.monitor}",
            f"callbacks.budget.mode={self.cfg.monitor_mode}",
            f"callbacks.budget.reference={self.dense_value}",
        ]

    def _train(self, name: str, what: str, epochs: int, words: Sequence[str]) -> Attempt:
        info(f"{name}: {what}, {epochs} epochs")
        folder = self.folder / name
        start = os.path.relpath(self.baseline.checkpoint)
        more = [f"start={start}", f"trainer.max_epochs={epochs}", *self._rate()]
        cfg = compose_job([*self.words, *words, *more], folder)
        try:
            result = train(cfg, self.baseline)
        except ConfigError as error:
            return _skipped(name, str(error))
        return self._attempt(name, what, epochs, result)

    def _rate(self) -> list[str]:
        """Return the learning rate of fine-tuning, lower than that of the dense training."""
        rate = OmegaConf.select(self.cfg, "optimizer.lr")
        written = any(word.startswith("finetune.lr=") for word in self.words)
        if written or self.cfg.finetune.lr is not None or rate is None:
            return []
        return [f"finetune.lr={0.4 * float(rate):g}"]

    def _attempt(self, name: str, what: str, epochs: int, result: Result) -> Attempt:
        """Judge a network on the validation set."""
        folder = self.folder / name
        cfg = OmegaConf.load(folder / ".hydra" / "config.yaml")
        assert isinstance(cfg, DictConfig)
        cfg.trainer.default_root_dir = str(folder)
        checkpoint = folder / result["checkpoint"]
        value = self._validated(folder, cfg, checkpoint)
        drop = self.dense_value - value if cfg.monitor_mode == "max" else value - self.dense_value
        pruned = result["pruned"]
        time, limit = pruned["latency_ms"]["median"], self.options.latency_ms
        fast = limit is None or time <= limit
        return Attempt(
            name,
            what,
            epochs,
            of=result["of"],
            sparsity=result["sparsity"],
            params=pruned["params"],
            macs=pruned["macs"],
            latency_ms=time,
            drop=drop,
            test_drop=result["accuracy_drop"],
            holds=drop <= self.options.max_drop + 1e-9 and fast,
            fast=fast,
            seconds=result["seconds"],
            checkpoint=os.path.relpath(checkpoint, self.folder),
        )

    def _validated(self, folder: Path, cfg: DictConfig, checkpoint: Path) -> float:
        """Return the monitored metric of a network; it is measured once."""
        file = folder / "validation.json"
        if not file.is_file() or file.stat().st_mtime < checkpoint.stat().st_mtime:
            value = validate(cfg, *load_network(cfg, checkpoint)).get(self.monitor)
            if value is None:
                raise StateError(f"{self.monitor} is not logged in validation: write monitor=NAME")
            write_json(file, {self.monitor: value})
        found: Mapping[str, float] = read_json(file)
        return float(found[self.monitor])


def _skipped(name: str, why: str) -> Attempt:
    return Attempt(name, "not tried", 0, why=why)


def _compose_dense(words: Sequence[str], folder: Path) -> tuple[str, list[str], DictConfig]:
    """Return the recipe's name, the words without pruning, and the job of the dense network."""
    name, kept, start = without_pruning(words, folder)
    given = [] if start == SCRATCH else ["trainer.max_epochs=0"]
    dense = [*kept, "pruning=none", f"start={start}", *given]
    return name, kept, compose_job(dense, folder / "dense")


def without_pruning(words: Sequence[str], folder: Path) -> tuple[str, list[str], str]:
    """Write the recipe without what `auto` chooses; return its name, the words, and `start`."""
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if key in _CHOSEN_HERE or key.startswith("pruning."):
            raise ConfigError(f"regrow auto chooses {key} itself: leave {word} out")
    names = [word.removeprefix("recipe=") for word in words if word.startswith("recipe=")]
    if len(names) != 1:
        raise ConfigError(
            "regrow auto needs one recipe: write `regrow auto recipe=digits/dense` (`regrow "
            "recipes` lists them)"
        )
    name, file = names[0], Path(names[0])
    if file.suffix in (".yaml", ".yml"):
        recipe = read_recipe(file)
    elif name in recipe_files():
        recipe = load(recipe_files()[name])
    else:
        raise no_recipe(name)
    start = recipe.pop("start", None)
    epochs = recipe.pop("dense_epochs", None)
    if start in (None, SCRATCH) and epochs is not None:
        OmegaConf.update(recipe, "trainer.max_epochs", epochs)
    for key in ("pruning", "callbacks"):
        recipe.pop(key, None)
        groups = [entry for entry in recipe.get("defaults", []) if f"override /{key}" not in entry]
        recipe["defaults"] = groups
    given = [word.removeprefix("start=") for word in words if word.startswith("start=")]
    start = given[0] if given else start or SCRATCH
    stem = file.with_suffix("").as_posix().strip("./").replace("/", "_")
    stripped = folder / "recipe" / f"{stem}.yaml"
    write_text(stripped, OmegaConf.to_yaml(recipe))
    kept = [word for word in words if not word.startswith(("recipe=", "start="))]
    return name, [f"recipe={os.path.relpath(stripped)}", *kept], str(start)


def _default_folder(recipe: str, options: AutoOptions) -> Path:
    """Return a folder below outputs/auto that the options name."""
    more = {
        "max_drop": f"{100 * options.max_drop:g}",
        "latency_ms": options.latency_ms,
        "epochs": options.epochs,
    }
    words = [word for word in options.words if not word.startswith("recipe=")]
    words += [f"{key}={value}" for key, value in more.items() if value is not None]
    name = recipe if recipe in recipe_files() else Path(recipe).stem
    return Path("outputs", "auto", name, folder_name(",".join(sorted(words))))
