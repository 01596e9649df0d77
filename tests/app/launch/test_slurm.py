# SPDX-License-Identifier: MIT
"""submitit with SLURM, with small replacements for SLURM's programs."""

import json
import os
import signal
import sys
import time

import pytest

# `run INDEX` is what SLURM does with one task of an array, first or again.
PROGRAMS = {
    "run": """
        index = sys.argv[1]
        env = os.environ | {
            "SLURM_JOB_ID": f"10{index}", "SLURM_ARRAY_JOB_ID": "100", "SLURM_NTASKS": "1",
            "SLURM_ARRAY_TASK_ID": index, "SLURM_JOB_NAME": "regrow", "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1",
        }
        subprocess.Popen(["bash", here / "batch.sh"], env=env, **quiet)
    """,
    "sbatch": """
        text = Path(sys.argv[-1]).read_text()
        (here / "batch.sh").write_text(text)
        for index in range(int(re.search(r"--array=0-(\\d+)", text)[1]) + 1):
            subprocess.Popen([here / "run", str(index)], **quiet)
        print("Submitted batch job 100")
    """,
    "srun": """
        words = sys.argv[1:]
        while words[0].startswith("-"):
            stream = {"--output": 1, "--error": 2}.get(words.pop(0))
            if stream:
                place = words.pop(0).replace("%A", "100").replace("%t", "0")
                place = place.replace("%a", os.environ["SLURM_ARRAY_TASK_ID"])
                os.dup2(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
        (here / f"task{os.environ['SLURM_ARRAY_TASK_ID']}").write_text(str(os.getpid()))
        os.execvp(words[0], words)
    """,
    "scontrol": """
        with (here / "requeued").open("a") as file:
            print(*sys.argv[1:], file=file)
        subprocess.Popen([here / "run", sys.argv[2].rpartition("_")[2]], **quiet)
    """,
    "sacct": 'print("JobID|State|NodeList")',
}
HEAD = """#!{python}
import os, re, subprocess, sys
from pathlib import Path
from textwrap import dedent
here = Path(__file__).parent
nothing = subprocess.DEVNULL
quiet = dict(stdin=nothing, stdout=nothing, stderr=nothing)
exec(dedent({body!r}))
"""


@pytest.mark.slow
def test_preempted_slurm_job_is_requeued_once(begin, found, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in PROGRAMS.items():
        (programs / name).write_text(HEAD.format(python=sys.executable, body=body))
        (programs / name).chmod(0o755)
    command = begin(
        "recipe=digits/gmp",
        "seed=0,1",
        "trainer.max_epochs=30",
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.cpus_per_task=1",
        "hydra.launcher.max_num_timeout=5",
        "threads=auto",
        PATH=f"{programs}{os.pathsep}{os.environ['PATH']}",
    )
    end = time.monotonic() + 200
    while not [*tmp_path.glob("outputs/digits/**/seed=1/**/last.ckpt")]:
        assert time.monotonic() < end, command.poll()
        time.sleep(0.05)
    task = int((programs / "task1").read_text())
    os.kill(task, signal.SIGTERM)
    os.kill(task, signal.SIGUSR2)
    output, _ = command.communicate(timeout=300)
    assert command.returncode == 0, output
    assert (programs / "requeued").read_text() == "requeue 100_1\n"
    assert "#SBATCH --signal=USR2" in (programs / "batch.sh").read_text()
    results = found("result.json")
    assert sorted(result["seed"] for result in results.values()) == [0, 1]
    assert {result["threads"] for result in results.values()} == {1}
    assert not found("failed.json")
    [sweep] = (tmp_path / "outputs/sweeps").iterdir()
    notes = [json.loads(path.read_text()) for path in (sweep / "jobs").glob("*.json")]
    assert [note["state"] for note in notes] == ["done", "done"]
