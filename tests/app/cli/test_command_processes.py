# SPDX-License-Identifier: MIT
"""The command in separate processes: killed, run in parallel, and on Fashion-MNIST."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from regrow.app.data.fashion_mnist import DEBIAN

QUICK = ("latency.repeats=10", "~callbacks.progress", "+trainer.enable_progress_bar=false")


@pytest.fixture
def start(checkout, tmp_path):
    """Starts `regrow WORDS...` and does not wait."""

    def begin(*words: str) -> subprocess.Popen[str]:
        env = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "regrow", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env=env, **pipes)

    return begin


@pytest.mark.guard
@pytest.mark.slow
def test_run_killed_at_random_moments_ends_as_the_uninterrupted_one(start, tmp_path):
    words = ("train", "recipe=digits/gmp", "trainer.max_epochs=8", *QUICK)
    whole = start(*words, "hydra.run.dir=whole")
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output
    draw = random.Random(0)
    kills = 0
    for _ in range(3):
        job = start(*words, "hydra.run.dir=cut", f"paths.controls={tmp_path}/outputs/controls")
        before = stamp(tmp_path / "cut" / "checkpoints" / "last.ckpt")
        while job.poll() is None and stamp(tmp_path / "cut/checkpoints/last.ckpt") == before:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        kills += job.poll() is None
        job.send_signal(signal.SIGKILL)
        job.communicate()
    assert kills, "no kill hit a running job"
    last = start(*words, "hydra.run.dir=cut", f"paths.controls={tmp_path}/outputs/controls")
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    results = [json.loads((tmp_path / d / "result.json").read_text()) for d in ("whole", "cut")]
    for part in ("sparsity", "history", "levels", "layers"):
        assert results[0][part] == results[1][part]
    for name in ("accuracy", "loss", "params", "macs", "bytes"):
        assert results[0]["pruned"][name] == results[1]["pruned"][name]
    states = [
        torch.load(tmp_path / d / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for d in ("whole", "cut")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow  # with threads: experiment/test_run.py
def test_parallel_jobs_train_their_dense_baseline_once(start, tmp_path):
    words = ("train", "recipe=digits/gmp", "trainer.max_epochs=2", *QUICK)
    jobs = [start(*words, f"pruning.sparsity={s}") for s in (0.8, 0.9)]
    outputs = [job.communicate(timeout=300)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    assert sum(text.count("training the dense baseline") for text in outputs) == 1
    assert len(list((tmp_path / "outputs" / "controls").glob("*/result.json"))) == 1


def test_configuration_error_is_one_message_before_training(start, tmp_path):
    job = start("train", "recipe=digits/gmp", "pruning.sparsity=90", *QUICK)
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 1
    assert "error: sparsity must be in [0, 1), got 90: write 0.9 for 90 %" in output
    assert "Traceback" not in output
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.vision
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_recipe_runs_to_its_end(start, tmp_path):
    """LeNet-300-100, 16 epochs, 98 %: within two points and a half of the dense network."""
    job = start("train", "recipe=fashion_mnist/lenet300_gmp", *QUICK)
    output, _ = job.communicate(timeout=900)
    assert job.returncode == 0, output
    [path] = (tmp_path / "outputs" / "fashion_mnist").rglob("result.json")
    result = json.loads(path.read_text())
    assert result["sparsity"] == round(0.98 * 266_200) / 266_200
    assert result["dense"]["accuracy"] > 0.885
    assert result["pruned"]["accuracy"] > result["dense"]["accuracy"] - 0.025
    assert result["epochs"] == 16


def stamp(path: Path) -> int:
    """When a file was last written; 0 if it is not there."""
    return path.stat().st_mtime_ns if path.is_file() else 0
