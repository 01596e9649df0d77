# SPDX-License-Identifier: MIT
"""The command line: fast help, and clear errors."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regrow import __version__
from regrow.app.cli.main import COMMANDS
from regrow.app.config.command_line import quote_value
from regrow.app.config.instantiate import root_cause
from regrow.app.config.recipes import recipe_files
from regrow.app.config.run_dirs import LONGEST, folder_name
from regrow.app.launch.hydra_app import plain_errors
from regrow.utils.errors import ConfigError

HEAVY = ("torch", "lightning")
HELP = """
import json
from regrow.app.cli.main import main
try:
    sys.exit(main())
finally:
    heavy = {'torch', 'lightning', 'hydra', 'omegaconf', 'rich'} & {*sys.modules}
    print(json.dumps(sorted(heavy)), file=sys.stderr)
"""


def modules_after(python, *words):
    """The modules that `regrow WORDS...` has imported when it ends."""
    program = (
        "import json, sys\n"
        f"sys.argv = ['regrow', *{list(words)!r}]\n"
        "from regrow.app.cli.main import main\n"
        "try:\n"
        "    sys.exit(main())\n"
        "finally:\n"
        "    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stderr.splitlines()[-1])
    return modules, done.stdout


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_help_imports_no_heavy_library(python, words):
    modules, out = modules_after(python, *words)
    assert "regrow train recipe=digits/gmp" in out
    assert not {*HEAVY, "hydra", "omegaconf", "rich"} & {*modules}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_imports_no_heavy_library(python, name):
    program = f"import sys; sys.argv = ['regrow', {name!r}, '--help']\n" + HELP
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: regrow {name} [-h]")
    assert COMMANDS[name][1] in done.stdout
    assert json.loads(done.stderr.splitlines()[-1]) == []


def test_version_is_printed(regrow, python):
    assert regrow("--version").stdout == f"regrow {__version__}\n"
    assert python("-m", "regrow", "-V").stdout == f"regrow {__version__}\n"


COMPLETE = """
eval "$(regrow train -sc install=bash)"
complete_line() {
    COMP_LINE="$1"; COMP_POINT=${#1}; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    hydra_bash_completion; echo "${COMPREPLY[@]}"
}
complete_line "regrow tr"
complete_line "regrow train recipe=digits/gm"
complete_line "regrow train optimizer=ada"
complete_line "regrow train pruning=gmp pruning.spar"
"""


def test_shell_completion_offers_commands_recipes_groups_and_settings(checkout, tmp_path):
    """The line of `regrow --help`, in a real bash; `regrow` is a script on the PATH."""
    script = tmp_path / "regrow"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m regrow "$@"\n')
    script.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(checkout / "src")}
    done = subprocess.run(
        ["bash", "-c", COMPLETE], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    command, recipe, group, setting = done.stdout.splitlines()
    assert command == "train"
    assert recipe == "recipe=digits/gmp"
    assert {*group.split()} == {"optimizer=adam", "optimizer=adamw"}
    assert "pruning.sparsity=" in setting


def test_help_is_quick(regrow):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert regrow().returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


# a process each: one recipe a folder, the rest in `make slow`
OFTEN = {name.partition("/")[0]: name for name in recipe_files()}.values()
EACH = [
    name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in recipe_files()
]


@pytest.mark.parametrize("name", EACH)
def test_configuration_of_a_recipe_needs_no_torch(python, name):
    modules, out = modules_after(python, "train", f"recipe={name}", "--cfg", "job")
    assert "sparsity_monitor" in out
    assert not {*HEAVY} & {*modules}


def test_groups_are_listed_without_torch(python):
    modules, out = modules_after(python, "train", "--help")
    assert re.search(r"recipe/digits: .*\bdense, gmp\b", out)
    assert "pruning: acdc, channel, cs" in out
    assert "model: digits_cnn" in out
    assert "regrow train -m recipe=digits/gmp" in out
    assert not {*HEAVY} & {*modules}


def test_recipes_are_shown_without_torch(python):
    modules, out = modules_after(python, "recipes")
    assert all(name in out for name in recipe_files())
    assert "Zhu and Gupta 2017" in out
    assert not {*HEAVY} & {*modules}


def test_recipes_can_be_searched(regrow):
    out = regrow("recipes", "lenet-5", "gradual").stdout
    assert "fashion_mnist/lenet5_gmp" in out
    assert "lenet300" not in out
    assert "lenet5_dense" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trian",), "no command 'trian': did you mean 'train'?"),
        (("recipe=digits/gmp",), "write `regrow train recipe=digits/gmp`"),
        (("train", "recipe=digits/gpm"), "No recipe 'digits/gpm': did you mean 'digits/gmp'"),
        (("plan", "recipe=digits/gpm"), "No recipe 'digits/gpm': did you mean 'digits/gmp'"),
        (("train", "-m", "recipe=digits/gmp,digits/dens"), "did you mean 'digits/dense'"),
        (("train", "-m", "recipe=glob(*)"), "write their names, recipe=digits/gmp,"),
        (("train", "-m", "pruning=glob(zzz*)"), "pruning=glob(zzz*) finds nothing: write names"),
        (("train", "recipe=customm"), "did you mean 'custom'?"),
        (
            ("train", "pruning=obs", "trainer.max_epochs=0"),
            "start=null nothing trains the dense network: write start=null dense_epochs=20",
        ),
        (("plan", "-m", "seed=1,2"), "leave out -m"),
        (("recipes", "digits/gpm"), "did you mean 'digits/gmp'"),
        (("inspect",), "required: checkpoint (see `regrow inspect --help`)"),
        (("inspect", "nowhere.ckpt"), "no file 'nowhere.ckpt'"),
        (("doctor", "nowhere.ckpt"), "no file 'nowhere.ckpt'"),
        (("docter", "a.ckpt"), "did you mean 'doctor'?"),
    ],
)
def test_user_error_is_one_line(regrow, words, message):
    done = regrow(*words)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("recipe=digits/gmp", "pruning.sparsty=0.5"), "write pruning.sparsity=0.5 (+"),
        (("recipe=digits/gmp", "trainer.max_epoch=3"), "write trainer.max_epochs=3 (+"),
        (("recipe=digits/gmp", "data.batchsize=3"), "write data.batch_size=3 (+"),
        (("recipe=digits/gmp", "prunning.sparsity=0.3"), "write pruning.sparsity=0.3\n"),
        (("recipe=digits/gmp", "~pruning.sparsty"), "write ~pruning.sparsity\n"),
        (("recipe=digits/gmp", "modle=lenet5"), "write model=lenet5\n"),
        (("recipe=digits/gmp", "seed=abc"), "seed=abc: Value 'abc' of type 'str'"),
        (("recipe=digits/gmp", "about.x=[1"), "about.x=[1 cannot be read: close each bracket"),
        (("pruning.sparsity=0.9",), "pruning is empty: choose an option"),
        (("pruning=gpm",), "pruning has no option 'gpm': write pruning=gmp\n"),
        (("digits/gmp",), "write `regrow train recipe=digits/gmp`"),
        (("pruning.sparsity",), "write KEY=VALUE"),
        (("-m", "recipe=digits/gmp,digits/imp", "pruning.sparsty=0.8,0.9"), "pruning.sparsity=0.8"),
        (("-m", "recipe=digits/gmp", "pruning=gmp,gpm"), "write pruning=gmp\n"),
        (("recipe=digits/dense", "callbacks=int8"), "callbacks=int8 trains a pruned"),
        (("recipe=digits/int8", "trainer.max_epochs=0"), "callbacks=int8 trains a pruned"),
        (("pruning=obs", "start=scratch", "trainer.max_epochs=0"), "with start=scratch"),
    ],
)
def test_wrong_word_names_the_line_to_write(command, tmp_path, words, message):
    status, [line] = command("train", *words)
    assert status == 1
    assert line.startswith("error: ")
    assert message in f"{line}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optimizer.lr=abc", "optimizer.lr must be a number, got 'abc': write optimizer.lr=0.001"),
        ("pruning.sparsity=1.5", "sparsity must be in [0, 1), got 1.5"),
        ("trainer.max_epochs=two", "trainer.max_epochs must be a whole number"),
    ],
)
def test_refused_value_leaves_no_folder(command, tmp_path, word, message):
    status, [line] = command("train", "recipe=digits/gmp", word)
    assert status == 1
    assert line.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())


def test_recipes_of_a_config_dir_are_found_by_hydra(regrow, tmp_path):
    own = tmp_path / "mine" / "recipe" / "small.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nthreads: 7\n")
    done = regrow("train", f"--config-dir={tmp_path}/mine", "recipe=small", "--cfg", "job")
    assert "threads: 7" in done.stdout


def test_runs_and_sweep_jobs_share_folders(regrow):
    run = ("recipe=digits/gmp", "pruning.sparsity=0.5", "seed=3", "force=true")
    out = regrow("train", *run, "--cfg", "all", "--resolve", HYDRA_FULL_ERROR="1").stdout
    where = "digits/gmp/pruning.sparsity=0.5/seed=3"
    assert f"dir: outputs/{where}" in out
    assert f"subdir: {where}" in out


# The job itself, without Hydra.


def test_own_errors_are_unwrapped():
    inner = ConfigError("sparsity must be in [0, 1), got 90: write 0.9 for 90 %")
    outer = RuntimeError("Hydra's own words")
    outer.__cause__ = inner
    assert root_cause(outer) == (inner, str(inner))
    bug = TypeError("a bug")
    assert root_cause(bug) == (bug, "a bug")


def test_error_inside_instantiate_names_the_key(monkeypatch, capsys):
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    cfg = OmegaConf.create(
        {"schedule": {"_target_": "regrow.schedules.registry.make_schedule", "schedule": "x"}}
    )
    job = plain_errors(instantiate)
    with pytest.raises(SystemExit):
        job(cfg)
    assert re.match(r"error: schedule must be .*\(in schedule\)\n$", capsys.readouterr().err)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="Error in call to target"):
        job(cfg)


def test_other_errors_are_unchanged():
    def job(cfg):
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        plain_errors(job)(None)


def test_job_sees_the_original_command_line(python, checkout, tmp_path):
    """Lightning starts other ranks with sys.argv, so the word `train` must still be there."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from regrow.app.launch import hydra_app\n"
        "JOB = lambda cfg: print(sys.argv[1:], cfg.seed)\n"
        "hydra_app.JOBS['train'] = hydra_app.plain_errors(JOB)\n"
        "from regrow.app.cli.main import main\n"
        "main()\n"
    )
    done = python(str(program), "train", "-m", "seed=1,2")
    assert done.stdout.count("['train', '-m', 'seed=1,2'] 1") == 1, done.stderr
    assert done.stdout.count("['train', '-m', 'seed=1,2'] 2") == 1
    assert Path(tmp_path, "outputs/custom/seed=2/.hydra/config.yaml").is_file()


def test_folder_names_are_short_and_unique():
    long = ",".join(f"some.setting.{k}={k}" for k in range(40))
    assert folder_name("a=1") == "a=1"
    assert len(folder_name(long)) < 255
    assert folder_name(long) != folder_name(long + "0")
    assert folder_name(long).startswith(long[:LONGEST])


def test_start_of_a_run_folder_is_quoted_for_hydra():
    assert quote_value("start=outputs/digits/gmp/seed=0") == "start='outputs/digits/gmp/seed=0'"
    assert quote_value("start='a=b'") == "start='a=b'"
    assert quote_value("start=null") == "start=null"
    assert quote_value("seed=0,1") == "seed=0,1"
