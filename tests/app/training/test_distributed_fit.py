# SPDX-License-Identifier: MIT
"""The command on two devices: ranks train in separate processes, one process decides."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gloo_ranks import EXIT_CHECK

from regrow.app.experiment import run
from regrow.app.experiment.run import train
from regrow.app.training import distributed_fit
from regrow.app.training.build import build_data
from regrow.app.training.distributed_fit import check_single_node, world_size
from regrow.app.training.preflight import on_one_device
from regrow.utils.errors import ConfigError

TWO = ("trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu")
SMALL = ("recipe=digits/gmp", "start=scratch", "dense_epochs=null", "pruning.every=0.1", *TWO)


@pytest.mark.guard
@pytest.mark.slow
def test_two_ranks_train_and_one_process_measures(job, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(EXIT_CHECK), prepend=os.pathsep)
    cfg = job(*SMALL)
    result = train(cfg)
    folder = tmp_path / "run"
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert len(result["levels"]) == len({level["sparsity"] for level in result["levels"]})
    assert {event["kind"] for event in result["history"]} == {"prune"}
    saved = torch.load(folder / result["checkpoint"], weights_only=True)
    # 1293 training samples: 11 batches of 64 a rank, in each of two epochs
    assert result["history"][-1]["step"] < 22 == 2 * 11
    assert saved["global_step"] % 11 == 0
    curve = (folder / "logs" / "metrics.csv").read_text().splitlines()
    assert sum(",val/accuracy" in line for line in curve) == 1  # one rank wrote it
    assert json.loads((folder / "ranks" / "fitted.json").read_text())["levels"]


@pytest.mark.guard
@pytest.mark.slow
def test_error_on_a_rank_keeps_its_type_and_message(job, monkeypatch):
    real = run.set_up  # without the callback, its error is found only when it trains
    monkeypatch.setattr(run, "set_up", lambda cfg, pruning: real(cfg, None))
    cfg = job(*SMALL, "pruning.every=null", "pruning.begin=1ep", "pruning.end=7ep")
    with pytest.raises(ConfigError, match="7ep"):
        train(cfg)


def test_plan_counts_batches_of_each_rank(job):
    cfg = job(*SMALL)
    node = on_one_device(cfg, build_data(cfg))
    assert (node.devices, node.limit_train_batches) == (1, 11)
    cfg.trainer.devices = 1
    assert on_one_device(cfg, build_data(cfg)) == cfg.trainer


def test_number_of_devices_is_read_from_the_trainer_settings(job):
    assert world_size(job(*SMALL)) == 2
    assert world_size(job("recipe=digits/gmp", "trainer.accelerator=cpu")) == 1
    with pytest.raises(ConfigError, match=r"num_nodes=2.*one node"):
        world_size(job("recipe=digits/gmp", "+trainer.num_nodes=2"))


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_NTASKS"])
def test_command_started_as_one_of_many_processes_raises(name):
    check_single_node({name: "1"})
    with pytest.raises(ConfigError, match=f"{name}=4.*trainer.devices=N"):
        check_single_node({name: "4"})


@pytest.mark.guard
@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_killed_command_ends_its_ranks_and_resumes(kind, tmp_path):
    command = [
        sys.executable, "-m", "regrow", "train", *SMALL, "trainer.max_epochs=12",
        "latency.repeats=3", "~callbacks.progress", "+trainer.enable_progress_bar=false",
    ]  # fmt: skip
    given = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "text": True}

    def run(folder: Path) -> dict:
        done = subprocess.run(
            [*command, f"hydra.run.dir={folder}"], cwd=tmp_path, capture_output=True, **given
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads((folder / "result.json").read_text())

    whole = run(tmp_path / "whole")
    folder = tmp_path / "cut"
    last = folder / "checkpoints" / "last.ckpt"
    job = subprocess.Popen([*command, f"hydra.run.dir={folder}"], cwd=tmp_path, **given)
    while not last.is_file():
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(kind)
    job.wait(60)
    assert not (folder / "result.json").is_file()
    deadline = time.monotonic() + 60
    while ranks_of(folder):
        assert time.monotonic() < deadline, "ranks outlive the command"
        time.sleep(0.2)
    again = run(folder)
    for key in ("history", "levels", "sparsity"):
        assert again[key] == whole[key]
    assert again["pruned"]["accuracy"] == whole["pruned"]["accuracy"]


def test_ranks_that_do_not_stop_are_killed(monkeypatch):
    """As two ranks that wait for each other in a collective."""
    monkeypatch.setattr(distributed_fit, "STOP_SECONDS", 0.5)
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True
    )
    process.stdout.readline()  # it ignores SIGTERM from here on

    def stop():
        with distributed_fit.forward_signals(process):
            os.kill(os.getpid(), signal.SIGTERM)
            assert process.wait(30) == -signal.SIGKILL

    with pytest.raises(SystemExit, match="143"):
        stop()


def ranks_of(folder: Path) -> list[str]:
    """Processes that train into a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if "regrow.app.training.distributed_fit" in words and str(folder / "ranks") in words:
            found.append(path.parent.name)
    return found
