# SPDX-License-Identifier: MIT
"""Which folders are jobs, and how jobs without a result are listed."""

import json
import time

import pytest
from fake_results import result, write

from regrow.report.load import find_jobs, read_jobs

FAILURE = {
    "recipe": "digits/gmp",
    "overrides": ["recipe=digits/gmp", "seed=1"],
    "seed": 1,
    "error": "ConfigError",
    "message": "sparsity must be in [0, 1), got 90",
    "when": "2026-01-02T03:04:05",
}


def put(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


def test_jobs_are_found_without_dense_baselines(tmp_path):
    one = write(tmp_path / "digits" / "gmp" / "seed=0", result())
    failed = put(tmp_path / "digits" / "imp", "failed.json", FAILURE)
    started = put(tmp_path / "digits" / "rigl", "run.json", {"config_hash": "a"})
    put(tmp_path / "controls" / "a", "result.json", {"settings": {}, "block": {}})
    put(one / "checkpoints", "result.json", result())  # what a job holds is no job
    (tmp_path / "empty").mkdir()
    assert find_jobs(tmp_path) == [one, failed, started]
    assert find_jobs(one) == [one]


def test_failed_job_has_its_reason(tmp_path):
    (job,) = read_jobs([put(tmp_path, "failed.json", FAILURE)], tmp_path).without_result
    assert job.state == "failed"
    assert job.reason == "ConfigError: sparsity must be in [0, 1), got 90"
    assert job.overrides == "recipe=digits/gmp seed=1"
    assert job.when == "2026-01-02 03:04:05"


@pytest.mark.parametrize(
    ("when", "told"),
    [("2026-01-02T03:04:05+00:00", "2026-01-02 05:04:05"), ("yesterday", "yesterday")],
)
def test_time_of_failure_is_local(tmp_path, monkeypatch, when, told):
    monkeypatch.setenv("TZ", "UTC-2")  # two hours ahead of Greenwich
    time.tzset()
    put(tmp_path, "failed.json", FAILURE | {"when": when})
    (job,) = read_jobs([tmp_path], tmp_path).without_result
    monkeypatch.undo()
    time.tzset()
    assert job.when == told


def test_a_damaged_failure_is_still_a_failure(tmp_path):
    (tmp_path / "failed.json").write_text("{")
    (job,) = read_jobs([tmp_path], tmp_path).without_result
    assert (job.state, job.reason) == ("failed", "no reason recorded")


def test_a_failure_beside_an_earlier_result_hides_neither(tmp_path):
    write(tmp_path, result())
    jobs = read_jobs([put(tmp_path, "failed.json", FAILURE)], tmp_path)
    assert [run.folder for run in jobs.runs] == [tmp_path]
    assert jobs.without_result[0].reason.endswith(
        "the result shown is an earlier one of this folder"
    )


def test_unfinished_jobs_are_listed(tmp_path):
    started = put(tmp_path / "a", "run.json", {"config_hash": "a"})
    one, other = read_jobs([started, tmp_path / "b"], tmp_path).without_result
    assert (one.state, other.state) == ("unfinished", "unfinished")
    assert "the same command resumes it" in one.reason
    assert other.reason == "not started yet"


def test_unreadable_job_does_not_stop_the_others(tmp_path):
    good = write(tmp_path / "good", result())
    old = write(tmp_path / "old", result(seed=1) | {"format": 0})
    jobs = read_jobs([old, good], tmp_path)
    assert [run.folder for run in jobs.runs] == [good]
    assert [(job.name, job.state) for job in jobs.without_result] == [("old", "unreadable")]
    assert "format 0" in jobs.without_result[0].reason


def test_the_same_run_counts_once(tmp_path):
    folders = [write(tmp_path / name, result()) for name in "ab"]
    jobs = read_jobs(folders, tmp_path)
    assert [run.folder for run in jobs.runs] == folders[:1]
    assert jobs.copies == ["b"]


@pytest.mark.parametrize("overrides", [3, "recipe=digits/gmp", None, {"seed": 1}])
def test_a_failure_with_other_overrides_is_still_a_failure(tmp_path, overrides):
    put(tmp_path, "failed.json", FAILURE | {"overrides": overrides})
    (job,) = read_jobs([tmp_path], tmp_path).without_result
    assert (job.state, job.overrides) == ("failed", "recipe=digits/gmp")


@pytest.mark.parametrize(
    "change",
    [
        {"levels": [{"sparsity": 0.5}]}, {"levels": [3]}, {"levels": 3}, {"levels": None},
        {"dense": 3}, {"dense": None}, {"pruned": 3}, {"history": [3]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_a_result_with_fields_of_another_kind_is_unreadable(tmp_path, metric, change):
    content = result()
    if metric != "accuracy":
        content |= {"metric": metric, "metric_mode": "max"}
    write(tmp_path, content | change)
    (job,) = read_jobs([tmp_path], tmp_path).without_result
    assert job.state == "unreadable"
    assert job.reason
