# SPDX-License-Identifier: MIT
"""What ranks send at an event: histograms and counts, however many parameters there are."""

import importlib
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

PROGRAM = """
import sys
sys.path.insert(0, "benchmarks")
from scaling import together

if __name__ == "__main__":
    for points in together(2, [20_000, 2_000_000]):
        print(*(point["bytes sent"] for point in points))
"""


@pytest.mark.slow
def test_bytes_sent_do_not_depend_on_the_number_of_parameters(checkout, tmp_path):
    script = tmp_path / "bytes.py"
    script.write_text(PROGRAM.replace('"benchmarks"', repr(str(checkout / "benchmarks"))))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second  # both ranks
    small, large = map(int, first.split())
    assert small == large
    histograms = 2 * 65_536 * 8  # of the upper and the lower half of a float32, in int64
    assert histograms < large < histograms + 1024
    assert large < 2_000_000 * 4 / 2  # less than the weights of a rank


@pytest.fixture
def scaling(checkout, monkeypatch):
    monkeypatch.syspath_prepend(str(checkout / "benchmarks"))
    return importlib.import_module("scaling")


def test_the_counter_sees_every_collective(scaling):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sent, got = torch.zeros(10, dtype=torch.int64), [torch.zeros(10, dtype=torch.int64)]
        with scaling.Sent() as counted:
            dist.all_reduce(sent)
            dist.all_gather(got, sent)
            dist.gather(sent[:5], [got[0][:5]], dst=0)
        assert (counted.bytes, counted.calls) == (80 + 80 + 40, 3)
        with scaling.Sent(), pytest.raises(KeyError):  # one it does not know
            dist.reduce_scatter(sent, [sent])
    finally:
        dist.destroy_process_group()


def test_fitted_line_through_collinear_points_is_exact(scaling):
    points = [{"million": n, "s": 0.5 + 3e-3 * n} for n in (1, 10, 1000)]
    assert scaling.line(points) == pytest.approx((0.5, 3e-9))
