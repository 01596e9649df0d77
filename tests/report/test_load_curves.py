# SPDX-License-Identifier: MIT
"""Training curves: parts in order, what is no number left out."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from regrow.report.load import find_metric_files, read_curves
from regrow.report.page import spaced_indices

HEAD = "epoch,step,val/accuracy,train/loss,pruning/sparsity\n"


def put(folder, **parts):
    folder.mkdir(parents=True)
    for name, text in parts.items():
        (folder / f"{name.replace('_', '.')}.csv").write_text(HEAD + text)


def curves(files):
    """The steps and values of each curve."""
    table = read_curves(files)
    return {name: table[name].dropna().to_dict() for name in table}


def test_parts_of_an_interrupted_run_come_in_order(tmp_path):
    names = [f"metrics_{i}" for i in (10, 2, 0)]
    put(tmp_path / "logs", metrics="", **dict.fromkeys(names, ""))
    found = [file.name for file in find_metric_files(tmp_path)]
    assert found == ["metrics.0.csv", "metrics.2.csv", "metrics.10.csv", "metrics.csv"]


def test_later_part_overrides_an_earlier_one(tmp_path):
    put(
        tmp_path / "logs",
        metrics_0="0,10,0.5,,\n0,12,,0.9,\n1,20,0.6,,\n",
        metrics="1,20,0.7,,0.3\n2,30,0.8,,\n",
    )
    assert curves(find_metric_files(tmp_path)) == {
        "train/loss": {12: 0.9},
        "val/accuracy": {10: 0.5, 20: 0.7, 30: 0.8},
    }


def test_values_that_are_no_numbers_are_skipped(tmp_path):
    put(tmp_path / "logs", metrics="0,10,nan,inf,\n0,,0.5,,\n0,x,0.5,,\n1,20,0.6,oops,\n1,30")
    assert curves(find_metric_files(tmp_path)) == {"val/accuracy": {20: 0.6}}


def test_files_without_steps_are_skipped(tmp_path):
    put(tmp_path / "logs", metrics="0,10,0.5,,\n")
    (tmp_path / "logs" / "metrics.0.csv").write_text("val/accuracy\n0.1\n")
    (tmp_path / "logs" / "metrics.1.csv").write_text("")
    files = find_metric_files(tmp_path)
    assert curves(files) == {"val/accuracy": {10: 0.5}}
    assert curves(files[:2]) == {}


def test_numbered_logger_folders_are_found(tmp_path):
    put(tmp_path / "logs" / "version_0", metrics="0,10,0.5,,\n")
    assert len(find_metric_files(tmp_path)) == 1
    assert find_metric_files(tmp_path / "nothing") == []


@given(st.integers(0, 500), st.integers(2, 50))
def test_thinning_keeps_the_ends_and_the_order(count, most):
    found = [*spaced_indices(count, most)]
    assert len(found) == min(count, most)
    assert found == sorted({*found})
    assert [*found[:1], *found[-1:]] == [*range(count)][:1] + [*range(count)][-1:]
    assert max(np.diff(found), default=1) - min(np.diff(found), default=1) <= 1


def test_files_that_cannot_be_read_are_left_out(tmp_path):
    put(tmp_path / "logs", metrics="0,10,0.5,,\n")
    (tmp_path / "logs" / "metrics.0.csv").write_text("\n")
    (tmp_path / "logs" / "metrics.1.csv").write_bytes(b"\xff\xfe\x00step,\x93")
    assert curves(find_metric_files(tmp_path)) == {"val/accuracy": {10: 0.5}}
