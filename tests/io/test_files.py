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
