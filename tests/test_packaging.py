# SPDX-License-Identifier: MIT
"""The built wheel in an empty environment, and a checkout."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

# A Hydra app of somebody else: one group of its own, no word about regrow.
APP = """\
import hydra
from omegaconf import DictConfig, OmegaConf

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    print(OmegaConf.to_yaml(cfg))

if __name__ == "__main__":
    main()
"""


def call(*words: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    # PYTHONPATH of the caller must not lend the checkout to the stranger
    outer = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(word) for word in words]
    done = subprocess.run(
        command, cwd=cwd, env=outer | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that was built from it."""
    checkout = Path(__file__).resolve().parents[1]
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python whose only regrow is the wheel; everything else is borrowed from this one."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (wheel,) = dist.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q")
    call(*pip, "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # A folder named in a .pth comes last, and its own .pth files (an editable regrow) stay unread.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(params=["wheel", "checkout"])
def python(request: pytest.FixtureRequest, checkout: Path) -> tuple[Path, dict[str, str], str]:
    """Interpreter, environment, and where its regrow must lie: in a wheel or in src."""
    if request.param == "checkout":
        return Path(sys.executable), {"PYTHONPATH": str(checkout / "src")}, str(checkout / "src")
    installed = request.getfixturevalue("installed")
    return installed, {}, str(installed.parents[1])


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "config.yaml").write_text("lr: 0.1\n")
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("depth: 3\n")
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def test_imported_package_is_the_one_under_test(python, app):
    interpreter, env, home = python
    done = call(interpreter, "-c", "import regrow; print(regrow.__file__)", cwd=app, **env)
    assert done.stdout.startswith(home)


def test_other_hydra_apps_get_the_pruning_group(python, app):
    interpreter, env, _ = python
    out = call(interpreter, "app.py", "+pruning=gmp", "pruning.sparsity=0.5", cwd=app, **env).stdout
    assert "_target_: regrow.MagnitudePruning" in out
    assert "sparsity: 0.5" in out


def test_pruning_group_can_be_placed_among_callbacks(python, app):
    interpreter, env, _ = python
    out = call(interpreter, "app.py", "+pruning@callbacks.x=gmp", cwd=app, **env).stdout
    assert "callbacks:\n  x:\n    _target_: regrow.MagnitudePruning" in out


def test_other_hydra_apps_get_no_other_group(python, app):
    interpreter, env, _ = python
    out = call(interpreter, "app.py", "--help", cwd=app, **env).stdout
    listed = out.partition("command line)")[0].partition("== Config ==")[0]
    names = {line.split(":")[0] for line in listed.splitlines() if ": " in line}
    assert names == {"model", "pruning"}
    assert "model: mine\n" in listed


def test_pruning_group_of_the_app_has_precedence(python, app):
    own = app / "conf" / "pruning"
    own.mkdir()
    (own / "gmp.yaml").write_text("mine: 1\n")
    interpreter, env, _ = python
    out = call(interpreter, "app.py", "+pruning=gmp", cwd=app, **env).stdout
    assert "pruning:\n  mine: 1\n" in out
    assert "_target_" not in out


def test_command_is_installed(installed, app):
    command = installed.parent / "regrow"
    assert "fashion_mnist/lenet300_gmp" in call(command, "recipes", cwd=app).stdout
    out = call(command, "train", "recipe=digits/gmp", "--cfg", "job", cwd=app).stdout
    assert "_target_: regrow.MagnitudePruning" in out


def test_wheel_contains_configuration_and_type_marker(dist, checkout):
    (wheel,) = dist.glob("*.whl")
    names = {*zipfile.ZipFile(wheel).namelist()}
    for folder in ("conf", "recipes"):
        for path in (checkout / folder).rglob("*.yaml"):
            if "local" not in path.parts:
                assert f"regrow/{path.relative_to(checkout).as_posix()}" in names
    for path in (checkout / "src" / "regrow" / "report" / "assets").iterdir():
        assert f"regrow/report/assets/{path.name}" in names
    assert {"regrow/py.typed", "hydra_plugins/regrow_searchpath.py"} <= names
    assert "hydra_plugins/__init__.py" not in names
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"regrow", "hydra_plugins"}


def test_sdist_contains_the_project_and_no_build_outputs(dist):
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tops = {name.split("/")[1] for name in tar.getnames() if "/" in name}
    assert {"src", "conf", "recipes", "tests", "Makefile", "LICENSE", "constraints.txt"} <= tops
    assert not {".venv", "outputs", "dist"} & tops
