# SPDX-License-Identifier: MIT
"""Sweeps whose jobs run in other processes have the same errors and files."""

import importlib.util
import json

import pytest

from regrow.app.config.command_line import check_plugins
from regrow.app.launch.hydra_app import cores
from regrow.utils.errors import ConfigError

WORDS = ("recipe=digits/gmp", "pruning.sparsity=90,0.5")
PROBE = """
import json, os
from pathlib import Path
from hydra.experimental.callback import Callback

class Probe(Callback):
    def on_job_end(self, config, job_return, **kwargs):
        from regrow.app.data.digits import _read
        reads = {"process": os.getpid(), "reads": _read.cache_info().misses}
        Path(config.hydra.runtime.output_dir, "probe.json").write_text(json.dumps(reads))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(
            ("joblib", "hydra.launcher.n_jobs=2", "threads=auto"), marks=pytest.mark.guard
        ),
        ("submitit_local", "hydra.launcher.timeout_min=5"),
    ],
    ids=lambda words: words[0],
)
def test_launcher_override_runs_jobs_in_other_processes(begin, found, tmp_path, launcher):
    name, *settings = launcher
    (tmp_path / "probe.py").write_text(PROBE)
    probe = "+hydra.callbacks.probe._target_=probe.Probe"
    command = begin(*WORDS, f"hydra/launcher={name}", *settings, probe)
    output, _ = command.communicate(timeout=300)
    assert command.returncode == 1, output
    results, failures = found("result.json"), found("failed.json")
    assert [result["sparsity"] for result in results.values()] == [0.5], output
    [(folder, failed)] = failures.items()
    message = "sparsity must be in [0, 1), got 90: write 0.9 for 90 % (in pruning)"
    assert (failed["error"], failed["message"]) == ("ConfigError", message)
    assert "1 of 2 jobs failed:" in output
    assert f"  outputs/digits/{folder}: {message}" in output
    assert "Traceback" not in output
    [sweep] = (tmp_path / "outputs/sweeps").iterdir()
    assert f"report: {sweep.relative_to(tmp_path)}/report.html" in output
    notes = [json.loads(path.read_text()) for path in (sweep / "jobs").glob("*.json")]
    jobs = {(sweep / note["job"]).resolve() for note in notes}
    assert jobs == {tmp_path / "outputs/digits" / job for job in {*results, folder}}
    [(job, result)] = results.items()
    assert result["threads"] == (max(1, cores() // 2) if name == "joblib" else 1)
    probes = found("probe.json")
    assert {*probes} == {job, folder}
    assert probes[job]["reads"] == 1
    assert command.pid not in {one["process"] for one in probes.values()}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("hydra/launcher=joblib", r"needs hydra-joblib-launcher: pip install \"regrow\[sweep\]\""),
        ("hydra/launcher=submitit_local", r"pip install \"regrow\[slurm\]\""),
        ("hydra/launcher=submitit_slurm", r"pip install \"regrow\[slurm\]\""),
        ("hydra/sweeper=optuna", r"pip install \"regrow\[optuna\]\""),
        ("sweep=optuna", r"sweep=optuna needs .*pip install \"regrow\[optuna\]\""),
        ("sweep=[seeds,optuna]", r"pip install \"regrow\[optuna\]\""),
    ],
)
def test_missing_launcher_raises_with_the_install_command(monkeypatch, word, message):
    real = importlib.util.find_spec
    hidden = ("hydra_plugins.hydra_",)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name.startswith(hidden) else real(name, *rest),
    )
    with pytest.raises(ConfigError, match=message):
        check_plugins(["-m", "seed=0,1", word])
    check_plugins(["-m", "hydra/launcher=basic", "sweep=ladder", "sweep=[seeds,ladder]"])


def test_an_installed_launcher_is_accepted():
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    check_plugins(["hydra/launcher=joblib"])
