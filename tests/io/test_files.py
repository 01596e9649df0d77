# SPDX-License-Identifier: MIT
import os

import pytest

from regrow.io.files import check_folder, read_json, write_atomic, write_json
from regrow.utils.errors import ConfigError, StateError


def test_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def cut(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, cut)
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_symbolic_link_stays_and_its_target_is_written(tmp_path):
    path, target = tmp_path / "link.json", tmp_path / "there" / "a.json"
    path.symlink_to(target)
    for value in (1, 2):
        write_json(path, value)
        assert path.readlink() == target
        assert read_json(target) == value
    assert [*target.parent.iterdir()] == [target]


def test_a_link_to_itself_is_replaced(tmp_path):
    path = tmp_path / "a.json"
    path.symlink_to(path)
    write_json(path, 1)
    assert read_json(path) == 1


def test_pipes_and_folders_stay_what_they_are(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    kinds = {"pipe": "device or pipe", "folder": "folder", "link": "folder"}
    for name, kind in kinds.items():
        with pytest.raises(ConfigError, match=f"is a {kind}: write the name of a file"):
            write_atomic(tmp_path / name, lambda file: file.write(b"x"))
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.rglob("*")} == {*kinds}


def test_values_that_json_lacks_raise_before_writing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(StateError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_written_files_have_the_permissions_of_the_umask(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == mode


def test_the_umask_of_the_process_is_not_touched(tmp_path, monkeypatch):
    """It belongs to all threads: two writers at once could leave it changed."""
    monkeypatch.setattr(os, "umask", None)  # a call would fail
    write_atomic(tmp_path / "a", lambda file: file.write(b"x"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_can_be_made_is_not_made(tmp_path):
    check_folder("--out", tmp_path / "a" / "b")
    assert not [*tmp_path.iterdir()]
    (tmp_path / "a").mkdir()
    check_folder("--out", tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=r"--out=.*file.* cannot be a folder \(.+\): write"):
            check_folder("--out", path)
    assert (tmp_path / "file").is_file()
