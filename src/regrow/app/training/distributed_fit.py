# SPDX-License-Identifier: MIT
"""Run a fit on one or more devices.

On several devices the fit runs in a subprocess, which Lightning multiplies to one per device; the
command reads the results from the folder afterwards.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from regrow.app.config.instantiate import wrap_error
from regrow.app.config.recipe_export import named_recipe
from regrow.app.training.build import build_pruning
from regrow.app.training.fit import LevelRecorder, fit_in_process, under_submitit
from regrow.app.training.module_metrics import QUIET
from regrow.app.training.processes import exclusive, exit_with_parent, handling, on_rank_zero
from regrow.callbacks.core.pruning_callback import PruningCallback
from regrow.io.checkpoints import read_checkpoint
from regrow.io.files import read_json, write_atomic, write_json, write_text
from regrow.utils import errors
from regrow.utils.errors import ConfigError, RegrowError, StateError
from regrow.utils.lightning_classes import pl
from regrow.utils.logging import quiet_third_party

# Files in the folder "ranks": the request, and the answer of rank 0.
CONFIG, RECIPE, START = "config.yaml", "recipe.json", "start.pt"
DONE, FAILED = "fitted.json", "error.json"
STOP_SECONDS = 30.0  # from a forwarded signal until ranks that have not stopped are killed


def fit(
    cfg: DictConfig,
    folder: Path,
    weights: Mapping[str, Tensor] | None,
    pruning: PruningCallback | None,
) -> tuple[Path, LevelRecorder | None]:
    """Run `fit_in_process` on the devices that the trainer settings request."""
    if world_size(cfg) == 1:
        return fit_in_process(cfg, folder, weights, pruning, named_recipe(cfg))
    _fit_in_subprocess(cfg, folder, weights)
    done = read_json(folder / "ranks" / DONE)
    levels = None
    if pruning is not None:
        levels = LevelRecorder(pruning, folder / "levels", cfg.monitor, cfg.monitor_mode)
        levels.levels = done["levels"]
    return folder / done["checkpoint"], levels


def world_size(cfg: DictConfig) -> int:
    """Return the number of processes of the fit, one per device."""
    if cfg.trainer.get("num_nodes") not in (None, 1, "1"):
        raise ConfigError(
            f"trainer.num_nodes={cfg.trainer.num_nodes}: the command trains on one node; for "
            "several, use the callback in a Lightning program"
        )
    devices = cfg.trainer.get("devices")
    if devices in (1, "1"):
        return 1
    given = list(devices) if isinstance(devices, ListConfig) else devices
    try:
        trainer = pl.Trainer(
            accelerator=cfg.trainer.get("accelerator") or "auto",
            devices="auto" if given is None else given,
            **QUIET,
        )
    except Exception as error:
        raise wrap_error(f"trainer.devices={devices} is not available", error) from error
    return int(trainer.num_devices)


def check_single_node(environ: Mapping[str, str] = os.environ) -> None:
    """Check that no launcher has started several processes of this command."""
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        if environ.get(name, "1") not in ("", "1"):
            raise ConfigError(
                f"{name}={environ[name]}: the command starts the ranks itself: start it once "
                "(without torchrun, with --ntasks=1) and write trainer.devices=N"
            )


def _fit_in_subprocess(cfg: DictConfig, folder: Path, weights: Mapping[str, Tensor] | None) -> None:
    request = folder / "ranks"
    request.mkdir(parents=True, exist_ok=True)
    for name in (START, DONE, FAILED):
        (request / name).unlink(missing_ok=True)
    if weights is not None:
        write_atomic(request / START, lambda file: torch.save(dict(weights), file))
    write_json(request / RECIPE, named_recipe(cfg))
    write_text(request / CONFIG, OmegaConf.to_yaml(cfg, resolve=True))
    command = [sys.executable, "-m", "regrow.app.training.distributed_fit", str(request.absolute())]
    environ = os.environ | {"REGROW_PARENT": str(os.getpid())}
    process = subprocess.Popen(command, env=environ, start_new_session=True)
    with forward_signals(process):
        status = process.wait()
    if (request / FAILED).is_file():
        failed = read_json(request / FAILED)
        raise getattr(errors, failed["type"])(failed["message"])
    if status or not (request / DONE).is_file():
        raise StateError(
            f"the training processes ended with status {status}, see above: the same command "
            f"resumes from {folder / 'checkpoints'}"
        )


@contextmanager
def forward_signals(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Forward termination signals to all training processes and wait for them.

    Ranks that stop at different batches may wait for each other in a collective: after
    `STOP_SECONDS`, or at a second signal, all are killed.
    """
    received: list[int] = []
    timer = threading.Timer(STOP_SECONDS, lambda: _kill(process))
    timer.daemon = True

    def forward(number: int, frame: object) -> None:
        if number in received:
            _kill(process)
            return
        if not received:
            timer.start()
        received.append(number)
        os.killpg(process.pid, number)

    numbers = {signal.SIGINT}
    if not under_submitit(os.environ):  # it ignores SIGTERM until the job is requeued
        numbers.add(signal.SIGTERM)
    try:
        with handling(forward, *numbers):
            yield
    finally:
        timer.cancel()
        if process.poll() is None:
            _kill(process)
            process.wait()
    if signal.SIGTERM in received:
        raise SystemExit(128 + signal.SIGTERM)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its group, if there are any left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def main(request: Path) -> None:
    """Run the fit of one rank; rank 0 records the result."""
    exit_with_parent(int(os.environ["REGROW_PARENT"]))
    cfg = OmegaConf.load(request / CONFIG)
    assert isinstance(cfg, DictConfig)
    quiet_third_party()
    if cfg.threads is not None:
        torch.set_num_threads(int(cfg.threads))
    weights = read_checkpoint(request / START) if (request / START).is_file() else None
    folder, lock = request.parent, exclusive(request) if on_rank_zero() else nullcontext()
    try:
        with lock:
            arguments = (cfg, folder, weights, build_pruning(cfg), read_json(request / RECIPE))
            checkpoint, recorder = fit_in_process(*arguments, world_size(cfg))
            if on_rank_zero():
                levels = [] if recorder is None else recorder.levels
                done = {"checkpoint": os.path.relpath(checkpoint, folder), "levels": levels}
                write_json(request / DONE, done)
        if torch.distributed.is_initialized():
            # else threads of gloo may abort the process when it exits (PyTorch issue 190489)
            torch.distributed.destroy_process_group()
    except RegrowError as error:
        if on_rank_zero():
            failure = {"type": type(error).__name__, "message": str(error)}
            write_json(request / FAILED, failure)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main(Path(sys.argv[1]))
