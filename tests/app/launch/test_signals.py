# SPDX-License-Identifier: MIT
"""Sweeps that are stopped, killed or preempted resume exactly in the same folder."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

LONGER = ("recipe=digits/gmp", "trainer.max_epochs=16")
PARTS = ("sparsity", "history", "levels", "layers")


def children(pid):
    """The processes that a process has started, and theirs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            child = int(path.parent.name)
            found += [child, *children(child)]
    return found


def wait_for(what, seconds=120):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)
    return found


def half_way(root):
    """Waits for a checkpoint of the job itself, not of its control."""
    return wait_for(lambda: [*root.glob("outputs/digits/**/seed=0/**/last.ckpt")])


def state(root):
    [path] = root.glob("outputs/digits/**/seed=0/**/last.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture
def whole(sweep, reports, found, tmp_path):
    """The result and weights of the uninterrupted sweep, in the same folder before."""
    assert sweep(*LONGER) == 0
    [result], weights = found("result.json").values(), state(tmp_path)
    (tmp_path / "outputs").rename(tmp_path / "before")
    return result, weights


def same(root, found, whole):
    """Whether what lies there is what an uninterrupted sweep leaves."""
    [result] = found("result.json").values()
    assert not found("failed.json")
    for part in PARTS:
        assert result[part] == whole[0][part]
    for name in ("accuracy", "loss", "params", "macs", "bytes"):
        assert result["pruned"][name] == whole[0]["pruned"][name]
    weights = state(root)
    assert all(torch.equal(weights[name], value) for name, value in whole[1].items())


def submitit_tasks(root):
    """The processes of the jobs, below the one that submitit starts for each."""
    starters = [int(path.name) for path in root.glob("outputs/.submitit/[0-9]*")]
    return [task for starter in starters for task in children(starter)]


@pytest.mark.guard
@pytest.mark.slow
def test_sigterm_stops_a_sweep_without_marking_failures(begin, found, tmp_path):
    command = begin("recipe=digits/gmp", "trainer.max_epochs=160", "seed=0,1")
    wait_for(lambda: [*tmp_path.glob("outputs/**/last.ckpt")])
    command.terminate()
    output, _ = command.communicate(timeout=60)
    assert command.returncode == 128 + signal.SIGTERM, output
    assert not found("failed.json")
    assert len(list(tmp_path.glob("outputs/digits/gmp/*/seed=*"))) == 1, "the second never began"
    assert "1 of 1 jobs did not end:" in output
    assert "the same command resumes this sweep" in output


@pytest.mark.guard
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_joblib_workers_end_with_the_command(begin, found, sweep, whole, tmp_path, number):
    command = begin(*LONGER, "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    half_way(tmp_path)
    wait_for(lambda: len(found("run.json")) == 2)
    workers = children(command.pid)
    assert len(workers) >= 2
    command.send_signal(number)
    command.communicate(timeout=60)
    assert command.returncode != 0
    wait_for(lambda: not [pid for pid in workers if os.path.exists(f"/proc/{pid}")], 30)
    assert not found("result.json")
    assert not found("failed.json")
    assert sweep(*LONGER) == 0
    same(tmp_path, found, whole)


@pytest.mark.guard
@pytest.mark.slow
def test_submitit_requeues_a_preempted_job(begin, found, whole, tmp_path):
    """First SIGTERM, as a scheduler announces it, then the signal at which submitit requeues."""
    words = ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10")
    command = begin(*LONGER, *words)
    half_way(tmp_path)
    [task] = submitit_tasks(tmp_path)
    os.kill(task, signal.SIGTERM)
    time.sleep(0.3)
    assert os.path.exists(f"/proc/{task}"), "SIGTERM ended it"
    os.kill(task, signal.SIGUSR2)
    output, _ = command.communicate(timeout=300)
    assert command.returncode == 0, output
    logs = "".join(path.read_text() for path in tmp_path.glob("outputs/.submitit/*/*_log.*"))
    assert logs.count("Starting with JobEnvironment") == 2
    assert "Requeued job" in logs
    same(tmp_path, found, whole)


@pytest.mark.guard
@pytest.mark.slow
def test_killed_submitit_job_resumes_with_the_same_command(begin, found, sweep, whole, tmp_path):
    command = begin(*LONGER, "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10")
    half_way(tmp_path)
    [task] = submitit_tasks(tmp_path)
    os.kill(task, signal.SIGKILL)
    output, _ = command.communicate(timeout=300)
    assert command.returncode == 1
    assert "1 of 1 jobs did not end:" in output
    [notes] = (tmp_path / "outputs" / "sweeps").glob("*/jobs/*.json")
    assert json.loads(notes.read_text())["state"] == "started"
    assert sweep(*LONGER) == 0
    same(tmp_path, found, whole)
