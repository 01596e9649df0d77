# SPDX-License-Identifier: MIT
"""Which shards are meant, and what a tar file must hold."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from regrow.app.data.loading.tar_reader import ShardImages, read_members
from regrow.app.data.webdataset import expand_braces, find_shards
from regrow.utils.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("x-{000..002}.tar", ["x-000.tar", "x-001.tar", "x-002.tar"]),
        ("x-{8..11}", ["x-8", "x-9", "x-10", "x-11"]),
        ("x-{008..011}", ["x-008", "x-009", "x-010", "x-011"]),
        ("x-{5..5}", ["x-5"]),
        ("{a,b,}-{0..1}", ["a-0", "a-1", "b-0", "b-1", "-0", "-1"]),
    ],
)
def test_patterns_are_a_shells(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["x-{000.002}", "x-{}", "x-{3..1}", "x-{000..002", "x-}"])
def test_other_braces_are_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"write \{000000\.\.000146\}"):
        expand_braces(pattern)


def test_folders_patterns_and_lists_name_the_same_shards(shards: Path) -> None:
    wanted = tuple(shards / f"train-{number:02d}.tar" for number in range(7))
    both = [f"{shards}/train-{{00..03}}.tar", str(shards / "train-{04,05,06}.tar")]
    assert find_shards("data.train", f"{shards}/train-{{00..06}}.tar") == wanted
    assert find_shards("data.train", both) == wanted
    assert find_shards("data.train", str(shards))[:7] == wanted  # and those of val


def test_what_is_not_there_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3 of 10 shards are missing: .*train-07\.tar"):
        find_shards("data.train", f"{shards}/train-{{00..09}}.tar")
    with pytest.raises(DataError, match=r"there is no \.tar file"):
        find_shards("data.train", str(tmp_path))
    with pytest.raises(ConfigError, match="names a shard twice"):
        find_shards("data.train", [str(shards), f"{shards}/val-0.tar"])
    for address in ("pipe:touch x", "https://example.org/{0..1}.tar"):
        with pytest.raises(ConfigError, match="must be files or folders"):
            find_shards("data.train", address)


def write(path: Path, *files: tuple[str, bytes], kind: str = "w") -> None:
    with tarfile.open(path, kind) as tar:  # type: ignore[call-overload]
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def read(path: Path, classes: int = 10) -> list[tuple[str, bytes, int]]:
    found = []
    for member, file in read_members(path, classes):
        file.seek(member.start)
        found.append((member.key, file.read(member.size), member.label))
    return found


def test_samples_are_files_of_one_name_that_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write(
        path, ("d/x.jpg", b"1"), ("d/x.cls", b"3"), ("e/x.cls", b" 4\n"), ("e/x.seg.png", b"no"),
        ("e/x.PNG", b"2" * 2000), ("e/x.json", b"{}"), ("y.v2.txt", b""), ("y.jpeg", b"3"),
        ("y.cls", b"0"),
    )  # fmt: skip
    assert read(path) == [("d/x", b"1", 3), ("e/x", b"2" * 2000, 4), ("y", b"3", 0)]


def test_images_are_read_in_any_order(shards: Path) -> None:
    paths = (shards / "val-0.tar", shards / "val-1.tar")
    images = ShardImages(paths, 3)
    one_by_one = [data for path in paths for _, data, _ in read(path, 3)]
    assert [images.read(index) for index in reversed(range(10))] == one_by_one[::-1]
    assert images.labels.tolist() == [number % 3 for number in range(1000, 1010)]
    assert "val-1.tar" in images.name(5)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("x.jpg", b"1"), ("y.cls", b"1")], "sample 'x' has jpg, it needs an image"),
        ([("x.cls", b"1"), ("x.txt", b"1")], "sample 'x' has cls, txt"),
        ([("x.jpg", b"1"), ("x.cls", b"10")], r"x\.cls has b'10', not a class below .*=10"),
        ([("x.jpg", b"1"), ("x.cls", b"-1")], "has b'-1'"),
        ([("x.jpg", b"1"), ("x.cls", b"cat")], "has b'cat'"),
        ([("x.jpg", b"1"), ("x.cls", b"")], "has b''"),
    ],
)
def test_samples_must_be_whole(
    files: list[tuple[str, bytes]], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "a.tar", *files)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.tar")


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    """Python's tarfile takes half a header, or none, for the end of the file."""
    path = tmp_path / "a.tar"
    files = [(f"{n}.{kind}", b"7" * size) for n in range(3) for kind, size in
             (("jpg", 700), ("cls", 1))]  # fmt: skip
    write(path, *files)
    whole, data = path.read_bytes(), read(path)
    assert len(data) == 3
    end = 3 * (512 + 1024 + 512 + 512)
    for length in range(0, end + 512, 128):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="fetch it again"):
            read(path)
    path.write_bytes(whole[: end + 512])
    assert read(path) == data


def test_packed_and_empty_shards_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", ("x.jpg", b"1"), ("x.cls", b"1"), kind="w:gz")
    with pytest.raises(DataError, match="decompress"):
        read(tmp_path / "a.tar")
    write(tmp_path / "b.tar")
    with pytest.raises(DataError, match="no images in these shards"):
        ShardImages((tmp_path / "b.tar",), 3)


def test_formats_of_tar_do_not_matter(tmp_path: Path) -> None:
    name = "folder/" * 20 + "ä"  # needs an extra header in each of them
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=kind) as tar:
            parts: list[tuple[str, Any]] = [("jpg", b"1"), ("cls", b"1")]
            for ending, data in parts:
                entry = tarfile.TarInfo(f"{name}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        assert read(tmp_path / "a.tar") == [(name, b"1", 1)]
