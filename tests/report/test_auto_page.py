# SPDX-License-Identifier: MIT
"""The page of `regrow auto` says what was chosen and why, for each way a search can end."""

import re

from regrow.report.auto_page import Attempt, choose, write_page

DENSE = {"params": 1000, "macs": 9000, "latency_ms": {"median": 2.0}, "val": 0.95}
RECORD = {
    "recipe": "digits/dense", "folder": "outputs/auto", "words": ["recipe=digits/dense"],
    "max_drop": 0.01, "latency_ms": None, "epochs": 8, "metric": "val/accuracy", "dense": DENSE,
}  # fmt: skip
FREE = Attempt(
    "free", "no training", 0, sparsity=0.5, params=500, macs=4000, latency_ms=2.0, drop=0.002,
    test_drop=0.004, holds=True, seconds=3.0, checkpoint="free/checkpoints/best.ckpt",
)  # fmt: skip
REFIT = FREE._replace(name="refit", epochs=2, sparsity=0.75, params=250, drop=0.02, holds=False)
GRADUAL = FREE._replace(name="gradual", epochs=3, sparsity=0.8, params=200, drop=0.009)


def test_the_smallest_network_that_holds_is_chosen_and_others_are_explained():
    attempts = [FREE, REFIT, GRADUAL, Attempt("channels", "not tried", 0, why="no channels")]
    chosen = choose(attempts)
    assert chosen is GRADUAL
    page = write_page(RECORD, attempts, chosen)
    assert "**Chosen: gradual**, with 5.0 times fewer parameters for 0.90 points" in page
    assert "**free** (no training) holds, but keeps 2.5 times as many" in page
    assert "**refit** (no training) loses 2.00 points, more than 1.00 points" in page
    assert "**channels** was not tried: no channels" in page
    assert "regrow export outputs/auto/free/checkpoints/best.ckpt --to onnx" in page


def test_a_faster_network_that_holds_is_named():
    fast = FREE._replace(name="channels", params=900, latency_ms=1.0)
    assert "fastest that holds is **channels**: 2.00 times" in write_page(
        RECORD, [FREE, fast], FREE
    )
    assert "fastest" not in write_page(RECORD, [FREE, fast._replace(latency_ms=1.95)], FREE)


def test_every_row_of_the_table_has_all_cells():
    attempts = [FREE, REFIT, Attempt("channels", "not tried", 0, why="no channels")]
    rows = [line for line in write_page(RECORD, attempts, FREE).splitlines() if line[:1] == "|"]
    assert len(rows) == 2 + 1 + len(attempts)
    assert {len(re.findall(r"\|", row)) for row in rows} == {11}


def test_a_network_that_is_too_slow_does_not_hold():
    slow = GRADUAL._replace(holds=False, fast=False)
    page = write_page(RECORD | {"latency_ms": 1.5}, [slow], choose([slow]))
    assert (
        "**No network was found within 1.00 points and 1.5 ms**; the dense network stays." in page
    )
    assert "takes 2.000 ms, more than 1.5 ms" in page
    assert "What to do with it" not in page
