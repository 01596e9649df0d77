# SPDX-License-Identifier: MIT
"""The examples run from the command line, and a killed one resumes exactly."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gloo_ranks import EXIT_CHECK
from installed_versions import needs_lightning

WEIGHTS = 64 * 128 + 128 * 10
EPOCHS = 4


def run(checkout, name, folder, *words, kill=None):
    """The output of `python examples/NAME.py`, whose processes are killed at the text `kill`."""
    command = [sys.executable, checkout / "examples" / name, "--epochs", str(EPOCHS)]
    paths = os.pathsep.join([str(checkout / "src"), str(EXIT_CHECK)])
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(
        [*command, "--folder", folder, *words],
        env=env, cwd=folder.parent, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said = []
        for line in job.stdout:
            said.append(line)
            if kill is not None and re.search(kill, line):
                os.killpg(job.pid, signal.SIGKILL)
                assert job.wait() == -signal.SIGKILL
                return "".join(said)
        assert job.wait(300) == 0, "".join(said)
        assert kill is None, "".join(said)
        return "".join(said)
    finally:
        job.kill()


def state(folder: Path):
    """The last checkpoint of the pruned network: its tensors, and the values that were removed."""
    found = torch.load(folder / "sparse.pt", weights_only=True)
    net = found.get("net", found.get("model"))
    assert found["epoch"] == EPOCHS - 1
    return net | found["pruner"]["removed_weights"], net


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def accuracy(net):
    """Of the network in a checkpoint, with nothing of the example."""
    from sklearn.datasets import load_digits

    data, labels = load_digits(return_X_y=True)
    first, second = ((net[f"{i}.weight"].numpy(), net[f"{i}.bias"].numpy()) for i in (0, 2))
    hidden = (data[1437:] / 16 @ first[0].T + first[1]).clip(0)
    return ((hidden @ second[0].T + second[1]).argmax(1) == labels[1437:]).mean()


def check(said, net):
    """What was printed, against the checkpoint."""
    gone = sum(int((net[f"{i}.weight"].view(torch.int32) == 0).sum()) for i in (0, 2))
    assert gone == round(0.9 * WEIGHTS)
    assert f"pruned gradually: accuracy {accuracy(net):.4f}, sparsity 0.9000" in said
    assert "pruned in one shot: accuracy" in said
    assert "un-pruned: weights restored exactly: True" in said
    assert float(re.search(r"dense: accuracy (\S+)", said)[1]) > 0.8
    assert accuracy(net) > 0.8


@pytest.fixture(scope="module")
def plain(checkout, tmp_path_factory):
    """An uninterrupted run: what it printed, and its folder."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    return run(checkout, "plain.py", folder), folder


def test_plain_example_prunes_saves_and_unprunes(plain):
    said, folder = plain
    check(said, state(folder)[1])


@needs_lightning  # for lightning.fabric
def test_fabric_on_one_device_equals_plain_pytorch_exactly(plain, checkout, tmp_path):
    said = run(checkout, "fabric.py", tmp_path / "run")
    found, net = state(tmp_path / "run")
    assert same(found, state(plain[1])[0])
    check(said, net)


@pytest.mark.guard
@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain.py", "fabric.py"])
def test_killed_run_resumes_to_the_same_result(name, plain, checkout, tmp_path):
    folder = tmp_path / "run"
    said = run(checkout, name, folder, kill=r"epoch 1: sparsity 0\.[1-8]")
    assert "pruned gradually" not in said
    said = run(checkout, name, folder)
    assert len(re.findall(r"epoch \d+: sparsity", said)) < EPOCHS  # it went on
    found, net = state(folder)
    assert same(found, state(plain[1])[0])
    check(said, net)


@pytest.mark.guard
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_devices_agree_and_resume_exactly(strategy, plain, checkout, tmp_path):
    words = ["--devices", "2", "--strategy", strategy]
    said = run(checkout, "fabric.py", tmp_path / "whole", *words)
    found, net = state(tmp_path / "whole")
    check(said, net)
    # sums over ranks round otherwise than sums over batches
    one, other = (torch.cat([t.flatten() for t in n.values()]) for n in (net, state(plain[1])[1]))
    assert (one - other).norm() < 0.3 * other.norm()
    run(checkout, "fabric.py", tmp_path / "cut", *words, kill=r"epoch 1: sparsity 0\.[1-8]")
    run(checkout, "fabric.py", tmp_path / "cut", *words)
    assert same(state(tmp_path / "cut")[0], found)
