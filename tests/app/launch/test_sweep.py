# SPDX-License-Identifier: MIT
"""Sweeps with Hydra's own launcher: failures, resume, the report, one data set per process."""

import sys
from pathlib import Path

import pytest
from filelock import FileLock

from regrow.app.config.run_dirs import job_folder, sweep_folder
from regrow.app.data import digits
from regrow.app.launch.hydra_app import launch
from regrow.utils.errors import StateError

GMP = "recipe=digits/gmp"


def test_failed_job_does_not_stop_the_others(sweep, found, reports, capfd, tmp_path):
    digits._read.cache_clear()
    assert sweep(GMP, "pruning.sparsity=0.5,90,0.75", "hydra.sweeper.max_batch_size=1") == 1
    results, failures = found("result.json"), found("failed.json")
    assert sorted(result["sparsity"] for result in results.values()) == [0.5, 0.75]
    [(folder, failed)] = failures.items()
    assert folder not in results
    assert failed.pop("when").startswith("20")
    overrides = failed.pop("overrides")
    assert overrides[:2] != ["pruning.sparsity=90"]
    assert "pruning.sparsity=90" in overrides
    message = "sparsity must be in [0, 1), got 90: write 0.9 for 90 % (in pruning)"
    assert failed == {
        "recipe": "digits/gmp",
        "seed": 0,
        "error": "ConfigError",
        "message": message,
    }
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert err.splitlines()[-3:] == [
        "1 of 3 jobs failed:",
        f"  outputs/digits/{folder}: {message}",
        "the same command resumes this sweep",
    ]
    [name] = {folder for folder, _ in reports}
    assert name.parent == tmp_path / "outputs" / "sweeps"
    assert out.splitlines()[-1] == f"report: {name.relative_to(tmp_path)}/report.html"
    # after each job and at the end, with all the jobs there are
    assert [len(jobs) for _, jobs in reports] == [1, 2, 3, 3]
    jobs = {job.relative_to(tmp_path / "outputs" / "digits").as_posix() for job in reports[-1][1]}
    assert jobs == {*results, folder}
    assert digits._read.cache_info().misses == 1, "the data are read once a process"


def test_options_that_a_glob_matches_are_swept(sweep, found, capfd):
    assert sweep(GMP, "pruning=glob([one_shot,gm*])", "pruning.sparsity=0.5") == 0
    assert len(found("result.json")) == 2
    assert "2 of 2 jobs ended" in capfd.readouterr().out


@pytest.mark.guard
@pytest.mark.slow
def test_stopped_sweep_continues(sweep, found, reports, monkeypatch, capfd):
    """Finished jobs are skipped, the one that was cut resumes, the failed one runs again."""
    from regrow.app.experiment import evaluate

    words = (GMP, "pruning.sparsity=0.5,0.6,0.7,0.8")
    calls = []
    real = evaluate.time_networks

    def trouble(*args):
        calls.append(args)
        if len(calls) == 2:
            raise ValueError("the disk\nis full")
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "time_networks", trouble)
        assert sweep(*words) == 130
    assert len(found("result.json")) == 1
    [(failed, content)] = found("failed.json").items()
    assert (content["error"], content["message"]) == ("ValueError", "the disk\nis full")
    assert len(found("run.json")) == 3, "the fourth did not begin"
    out, err = capfd.readouterr()
    assert "ValueError: the disk" in out, "an error that is none of ours is shown in full"
    assert "1 of 3 jobs failed:" in err
    assert "1 of 3 jobs did not end:" in err
    assert err.count("the same command resumes") >= 1
    [before] = found("result.json").values()
    written = trained()

    assert sweep(*words) == 0
    results = found("result.json")
    assert sorted(result["sparsity"] for result in results.values()) == pytest.approx(
        [0.5, 0.6, 0.7, 0.8], abs=1e-3
    )
    assert before in results.values(), "the finished one was run again"
    assert failed in results
    assert not found("failed.json")
    out, err = capfd.readouterr()
    assert "1 of 4 jobs had finished before (force=true repeats them)" in out
    assert "sweep [##########----------] 2 of 4 jobs ended (1 skipped), " in out
    assert "jobs failed" not in err
    assert len({folder for folder, _ in reports}) == 1, "it has the folder it had"
    assert len(reports[-1][1]) == 4
    after = trained()
    assert all(after[path] == when for path, when in written.items()), "nothing is trained twice"


def trained():
    """When each checkpoint of a job was written."""
    return {path: path.stat().st_mtime_ns for path in Path.cwd().glob("outputs/digits/**/*.ckpt")}


@pytest.mark.slow
def test_unequal_budgets_of_epochs_are_said_at_the_end(sweep, capfd):
    assert sweep(GMP, "trainer.max_epochs=1,2") == 0
    out, _ = capfd.readouterr()
    assert "warning: Different total epochs: Total epochs, dense training included: 1 (" in out
    assert "; 2 (" in out
    assert sweep(GMP, "pruning.sparsity=0.5,0.6", "trainer.max_epochs=1") == 0
    assert "Different total epochs" not in capfd.readouterr().out


def test_failing_report_fails_no_job(sweep, found, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "regrow.report.write", None)
    assert sweep(GMP) == 0
    assert len(found("result.json")) == 1
    out, _ = capfd.readouterr()
    lines = [line for line in out.splitlines() if "was not built: ModuleNotFoundError" in line]
    assert len(lines) == 2, "after the job and at the end"


def test_single_run_shares_the_folder_of_a_sweep_job(sweep, found, reports, capfd, tiny):
    assert sweep(GMP, "optimizer.lr=1e-2") == 0
    launch("train", [*tiny, GMP, "optimizer.lr=0.01"])
    assert len(found("result.json")) == 1
    assert "already finished; use force=true" in capfd.readouterr().out
    assert len(reports) == 2, "a single run belongs to no sweep"


def test_failed_single_run_writes_failed_json(sweep, found, capfd, monkeypatch):
    def train(cfg):
        raise StateError("the disk is full")

    monkeypatch.setattr("regrow.app.experiment.run.train", train)
    with pytest.raises(SystemExit):
        launch("train", [GMP])
    assert "error: the disk is full" in capfd.readouterr().err
    [failed] = found("failed.json").values()
    assert failed["error"] == "StateError"


def test_same_sweep_started_twice_raises(sweep, found, capfd, tmp_path, tiny):
    folder = tmp_path / "outputs" / "sweeps" / sweep_folder([*tiny, "seed=0,1"])
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        assert sweep("seed=0,1") == 1
    assert "error: another process is running this sweep" in capfd.readouterr().err
    assert not found("run.json")


def test_folder_locked_by_another_process_is_not_marked_failed(sweep, found, reports, capfd, tiny):
    """Its own process says whether it failed."""
    folder = Path("outputs/digits/gmp", job_folder(tiny), "seed=0").absolute()
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        assert sweep(GMP, "seed=0") == 1
    assert not found("failed.json")
    assert "another process is running this job" in capfd.readouterr().err
