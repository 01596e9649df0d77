# SPDX-License-Identifier: MIT
"""Recipe files outside the package are found and named by content; ambiguous ones raise."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.app.config.command_line import prepare
from regrow.app.config.recipes import (
    read_recipe,
    register,
    replace_recipe_files,
    split_recipes,
)
from regrow.utils.errors import ConfigError

TEXT = """\
defaults:
  - override /model: resnet8
  - override /pruning: gmp
start: scratch
pruning: {sparsity: 0.6}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str = TEXT) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def test_path_becomes_a_name_of_stem_and_hash(tmp_path):
    path, name = write("sub/mine.yaml"), f"mine-{short(TEXT)}"
    for word in (f"recipe={path}", f"recipe={tmp_path / path}", f"recipe='{path}'"):
        words, files = replace_recipe_files(["seed=1", word, "-m"])
        assert words == ["seed=1", f"recipe={name}", "-m"]
        assert [file.read_text() for file in files.values()] == [TEXT]
        assert [*files] == [name]
    edited = TEXT.replace("0.6", "0.7")
    write("sub/mine.yaml", edited)
    assert replace_recipe_files([f"recipe={path}"])[0] == [f"recipe=mine-{short(edited)}"]


def test_tilde_in_a_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("mine.yaml")
    assert replace_recipe_files(["recipe=~/mine.yaml"])[0] == [f"recipe=mine-{short(TEXT)}"]


def test_paths_and_names_mix_in_a_sweep():
    """A run's folder has commas and equals signs in its name."""
    inside = "outputs/digits/gmp/pruning.sparsity=0.5,threads=2/seed=0/recipe.yaml"
    for name in ("a.yml", inside):
        write(name)
    words, files = replace_recipe_files([f"recipe=digits/gmp,{inside},a.yml,digits/imp"])
    key = short(TEXT)
    assert words == [f"recipe=digits/gmp,recipe-{key},a-{key},digits/imp"]
    assert {*files} == {f"recipe-{key}", f"a-{key}"}
    register(files)
    assert prepare("train", words) == words


@given(st.lists(st.text("ab/._-=", min_size=1), min_size=1))
def test_names_without_files_are_split_at_commas(parts):
    assert split_recipes(",".join(parts)) == parts


def test_recipe_names_are_valid_folder_names():
    write("my own, second try (b).yaml")
    (name,) = replace_recipe_files(["recipe=my own, second try (b).yaml"])[1]
    assert name == f"my_own_second_try_b-{short(TEXT)}"
    write("....yaml")
    assert [*replace_recipe_files(["recipe=....yaml"])[1]] == [f"recipe-{short(TEXT)}"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("recipe=nowhere.yaml", r"no file 'nowhere\.yaml' \(No such file"),
        ("recipe=digits/gmp.yaml", "or a name without .yaml that `regrow recipes` lists"),
        ("recipe=digits/gmp,nowhere.yaml", r"no file 'nowhere\.yaml'"),
    ],
)
def test_a_missing_file_is_named(word, message):
    with pytest.raises(ConfigError, match=message):
        replace_recipe_files([word])


def test_recipes_in_a_config_dir_are_left_to_hydra():
    words = ["--config-dir=mine", "recipe=small.yaml"]
    assert replace_recipe_files(words) == (words, {})


def test_a_file_without_its_suffix_is_suggested():
    write("sub/mine.yaml")
    with pytest.raises(ConfigError, match=r"did you mean the file sub/mine\.yaml"):
        prepare("train", ["recipe=sub/mine"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prunning: {sparsity: 0.5}", "sets prunning, which nothing reads: did you mean 'pruning'"),
        ("finetune: {lrr: 0.1}", "sets finetune.lrr, which nothing reads: did you mean 'lr'"),
        ("a: [", "cannot be read as YAML"),
        ("seed: 1\nseed: 2", "found duplicate key seed"),
        ("- 1", "is no recipe: write settings"),
        ("just words", "sets just words, which nothing reads"),
        ("seed: often", "'often' of type 'str' could not be converted to Integer full_key: seed"),
        ("finetune: 3", "int is not a subclass of Finetune"),
    ],
)
def test_files_that_are_no_recipes_raise(text, message):
    path = write("bad.yaml", text)
    with pytest.raises(ConfigError, match=message) as refused:
        read_recipe(path)
    assert "bad.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_are_no_text_raise():
    Path("bad.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        read_recipe(Path("bad.yaml"))


def test_empty_recipes_and_custom_keys_are_accepted():
    assert read_recipe(write("empty.yaml", "")) == {}
    own = "about: {who: me, width: 8}\nhydra: {job: {name: mine}}\nmodel: {width: 4}\n"
    assert read_recipe(write("own.yaml", own)).about.width == 8


def test_recipe_file_composes_like_a_packaged_recipe(job):
    words, files = replace_recipe_files([f"recipe={write('mine.yaml')}"])
    register(files)
    cfg = job(*words, "pruning.every=0.2")
    assert (cfg.model.depth, cfg.pruning.sparsity, cfg.pruning.every) == (8, 0.6, 0.2)
    assert (cfg.start, cfg.pruning.schedule, cfg.trainer.max_epochs) == ("scratch", "cubic", 2)


def test_runs_of_a_recipe_file_get_their_own_folder(regrow):
    write("mine.yaml")
    words = ("recipe=mine.yaml", "model.width=8", "seed=3")
    out = regrow("train", *words, "--cfg", "all", "--resolve").stdout
    name = f"mine-{short(TEXT)}/model.width=8/seed=3"
    assert f"dir: outputs/{name}" in out
    assert f"subdir: {name}" in out


@pytest.mark.parametrize("command", ["train", "plan"])
def test_missing_file_gives_a_one_line_error(regrow, command):
    done = regrow(command, "recipe=nowhere.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no file 'nowhere.yaml'")
    assert len(done.stderr.splitlines()) == 1


def test_recipe_files_reach_jobs_in_other_processes(python, tmp_path):
    """What Hydra's launchers do: the state of the parent is taken over, then the job composed."""
    program = tmp_path / "program.py"
    program.write_text(
        "import pickle, subprocess, sys\n"
        "from pathlib import Path\n"
        "from hydra.core.singleton import Singleton\n"
        "from regrow.app.config.recipes import replace_recipe_files\n"
        "from regrow.app.config.recipes import register\n"
        "words, files = replace_recipe_files(['recipe=mine.yaml'])\n"
        "register(files)\n"
        "state = {k: v for k, v in Singleton.get_state().items() if k == 'instances'}\n"
        "Path('state').write_bytes(pickle.dumps(state['instances']))\n"
        "Path('mine.yaml').unlink()\n"
        "child = '''\n"
        "import pickle, sys\n"
        "from hydra import compose, initialize_config_dir\n"
        "from hydra.core.singleton import Singleton\n"
        "from regrow.utils.paths import config_dir\n"
        'Singleton._instances = pickle.load(open("state", "rb"))\n'
        'folder = str(config_dir("conf") / "app")\n'
        'with initialize_config_dir(version_base="1.3", config_dir=folder):\n'
        '    print(compose("train", sys.argv[1:]).pruning.sparsity)\n'
        "'''\n"
        "print(subprocess.check_output([sys.executable, '-c', child, *words], text=True))\n"
    )
    write("mine.yaml")
    done = python(str(program))
    assert done.stdout.strip() == "0.6", done.stderr
