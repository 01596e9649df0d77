# SPDX-License-Identifier: MIT
"""`regrow train` killed repeatedly, on a full disk, and from a damaged checkpoint."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from tiny_fits import equal, read

from regrow.io.checkpoints import read_checkpoint

WORDS = [
    "recipe=digits/gmp", "trainer.max_epochs=6", "pruning.every=0.05", "latency.repeats=1",
    "~callbacks.progress", "+trainer.enable_progress_bar=false", "hydra.run.dir=run",
]  # fmt: skip
TIMES = ("latency_ms", "seconds")


def started(folder, checkout, limit=None):
    """Start the command in a folder, optionally on a disk with room only for small files."""
    command = [sys.executable, "-m", "regrow", "train", *WORDS]
    if limit is not None:  # in blocks of 1024 bytes; Python gets an error instead of a signal
        command = ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "-", *command]
    env = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)  # fmt: skip


def finished(folder, checkout, limit=None):
    process = started(folder, checkout, limit)
    said = process.communicate(timeout=600)[0]
    return process.returncode, said


def outcome(folder):
    """The result of a run without its timings."""
    result = json.loads((folder / "run" / "result.json").read_text())
    numbers = {
        part: {k: v for k, v in result[part].items() if k not in TIMES}
        for part in ("dense", "pruned")
    }
    last = read(folder / "run" / "checkpoints" / "last.ckpt")
    return [numbers, result["history"], result["levels"], last["state_dict"],
            last["optimizer_states"]]  # fmt: skip


def look(folder):
    """Check that every file with its final name is complete."""
    for path in folder.rglob("*.ckpt"):
        read_checkpoint(path)
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, checkout):
    folder = tmp_path_factory.mktemp("whole")
    start = time.monotonic()
    status, said = finished(folder, checkout)
    assert status == 0, said
    return outcome(folder), time.monotonic() - start


@pytest.mark.guard
@pytest.mark.slow
def test_run_killed_at_any_time_resumes_to_the_same_result(whole, tmp_path, checkout):
    (end, seconds), draw, kills = whole, random.Random(0), 0
    for _ in range(6):
        process = started(tmp_path, checkout)
        try:
            process.wait(draw.uniform(0.2, 0.5) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(draw.choice([signal.SIGKILL, signal.SIGTERM]))
        process.communicate()
        kills += process.returncode != 0
        look(tmp_path)
        if (tmp_path / "run" / "result.json").exists():
            break
    status, said = finished(tmp_path, checkout)
    assert status == 0, said
    assert kills >= 2
    assert equal(outcome(tmp_path), end)


@pytest.mark.guard
@pytest.mark.slow
@pytest.mark.parametrize("limit", [8, 40])
def test_full_disk_gives_one_line_and_the_next_run_resumes(limit, whole, tmp_path, checkout):
    """With room only for small files, neither the config nor a checkpoint is partly written."""
    status, said = finished(tmp_path, checkout, limit)
    assert status == 1
    assert "could not be written" in said
    assert "free disk space" in said
    assert "Traceback" not in said
    look(tmp_path)
    assert not [*tmp_path.rglob("*.part")]
    assert not (tmp_path / "run" / "result.json").exists()
    status, said = finished(tmp_path, checkout)
    assert status == 0, said
    assert equal(outcome(tmp_path), whole[0])


@pytest.mark.guard
@pytest.mark.slow
def test_damaged_checkpoint_raises_with_its_name(whole, tmp_path, checkout):
    process, last = started(tmp_path, checkout), tmp_path / "run" / "checkpoints" / "last.ckpt"
    until = time.monotonic() + 300
    while not last.exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    raw = last.read_bytes()
    for damaged in (raw[: len(raw) // 2], raw[:20_000] + b"\x00\xff" + raw[20_002:]):
        last.write_bytes(damaged)
        status, said = finished(tmp_path, checkout)
        assert status == 1
        assert "last.ckpt is damaged" in said
        assert "or remove it" in said
        assert "Traceback" not in said
    last.unlink()
    status, said = finished(tmp_path, checkout)
    assert status == 0, said
    assert equal(outcome(tmp_path), whole[0])
