# SPDX-License-Identifier: MIT
"""Requeueing, cores per job, and the summary of a sweep."""

import signal

import lightning.pytorch as pl
import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from regrow.app.launch.hydra_app import threads_of
from regrow.app.launch.sweep import Sweep, is_sweep, summarize_failures, sweep_jobs
from regrow.app.training.fit import cluster_callbacks, cluster_plugins
from regrow.utils.errors import ConfigError

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "regrow",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
SUBMITIT = {"SUBMITIT_EXECUTOR": "slurm"}


def environment(plugins):
    """What a Trainer takes for its cluster environment."""
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, plugins=plugins, logger=False, enable_checkpointing=False
    )
    return trainer._accelerator_connector.cluster_environment


@pytest.mark.parametrize(
    ("env", "ranks", "slurm"),
    [
        ({}, 1, False),
        ({}, 8, False),
        (SLURM, 1, True),
        (SLURM, 8, False),
        (SLURM | SUBMITIT, 1, False),
        (SLURM | SUBMITIT, 8, False),
        (SLURM | {"SUBMITIT_EXECUTOR": "local"}, 1, False),
        ({"SUBMITIT_EXECUTOR": "local"}, 1, False),
    ],
)
def test_lightning_requeues_only_under_plain_slurm(monkeypatch, env, ranks, slurm):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = environment(cluster_plugins(env, ranks))
    requeues = isinstance(found, SLURMEnvironment) and found.auto_requeue
    assert requeues == slurm
    if not slurm:
        assert isinstance(found, LightningEnvironment)
        assert not found.creates_processes_externally


def test_no_plugin_is_added_without_a_cluster():
    assert cluster_plugins({"HOME": "/root", "LOCAL_RANK": "1"}, 2) == []
    assert cluster_callbacks(SLURM) == []


def test_fit_under_submitit_ignores_sigterm(tmp_path):
    [callback] = cluster_callbacks(SUBMITIT)
    seen = []

    class Kill(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                signal.raise_signal(signal.SIGTERM)
            seen.append(batch_idx)

    before = signal.getsignal(signal.SIGTERM)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=4,
        limit_val_batches=0,
        callbacks=[callback, Kill()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    from lightning.pytorch.demos.boring_classes import BoringModel

    trainer.fit(BoringModel())
    assert seen == [0, 1, 2, 3]
    assert signal.getsignal(signal.SIGTERM) == before


BASIC = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
JOBLIB = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"}
LOCAL = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"}
QUEUE = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"}


@pytest.mark.parametrize(
    ("given", "launcher", "sweeper", "threads"),
    [
        (1, BASIC, {}, 1),
        (3, JOBLIB | {"n_jobs": 2}, {}, 3),
        (None, JOBLIB | {"n_jobs": 2}, {}, None),
        ("auto", BASIC, {}, 8),
        ("auto", JOBLIB | {"n_jobs": 2}, {}, 4),
        ("auto", JOBLIB | {"n_jobs": 3}, {}, 2),
        ("auto", JOBLIB | {"n_jobs": 100}, {}, 1),
        ("auto", JOBLIB | {"n_jobs": -1}, {}, 1),
        ("auto", JOBLIB | {"n_jobs": -7}, {}, 4),  # joblib: all cores but six
        ("auto", JOBLIB | {"n_jobs": 8}, {"n_jobs": 2}, 4),  # Optuna asks for two at once
        ("auto", LOCAL | {"cpus_per_task": 2}, {}, 2),
        ("auto", QUEUE | {"cpus_per_task": None}, {}, 8),
        ("auto", QUEUE | {"cpus_per_task": 4}, {}, 4),
    ],
)
def test_threads_auto_divides_the_cores_among_jobs(given, launcher, sweeper, threads):
    assert threads_of(given, launcher, sweeper, 8) == threads


def test_threads_auto_with_unknown_cores_raises():
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.cpus_per_task=1"):
        threads_of("auto", LOCAL | {"cpus_per_task": None}, {}, 8)


def test_restarted_sweep_finds_its_jobs(tmp_path):
    folder, jobs = tmp_path / "sweeps" / "s", [tmp_path / "a" / "x=1", tmp_path / "b" / "x=1"]
    for job in jobs:
        job.mkdir(parents=True)
    assert not is_sweep(folder)
    Sweep(folder).note(jobs[0], "failed", "why")
    later = Sweep(folder)
    later.note(jobs[1], "started")
    later.note(jobs[1], "done")
    assert is_sweep(folder)
    assert sweep_jobs(folder) == jobs
    assert [note["state"] for note in later.notes()] == ["done"], "the first was another start"
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("sweeps", "a"):
        (tmp_path / name).rename(moved / name)
    assert sweep_jobs(moved / "sweeps" / "s") == [moved / "a" / "x=1"], "what is gone is left out"


def test_sweep_without_failures_prints_no_summary():
    assert summarize_failures([{"job": "a", "state": "done", "message": ""}]) == []
