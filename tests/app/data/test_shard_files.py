# SPDX-License-Identifier: MIT
"""Selection of shards, and the required contents of a tar file."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from small_images import jpeg

from regrow.app.data.image_transforms import decode
from regrow.app.data.tar_shards import ShardImages, read_members
from regrow.app.data.webdataset import find_shards
from regrow.utils.errors import DataError


def test_folders_patterns_and_lists_name_the_same_shards(tmp_path: Path) -> None:
    wanted = tuple(tmp_path / f"train-{number:02d}.tar" for number in range(7))
    for path in wanted:
        path.touch()
    both = [f"{tmp_path}/train-0[0-3].tar", *(str(path) for path in wanted[4:])]
    assert find_shards("data.train", f"{tmp_path}/train-*.tar") == wanted
    assert find_shards("data.train", both) == wanted
    assert find_shards("data.train", str(tmp_path)) == wanted


def test_missing_shards_raise(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    for given in (f"{tmp_path}/b-*.tar", "pipe:touch x", "https://example.org/0.tar", None):
        with pytest.raises(DataError, match=r"data\.train: no \.tar files in"):
            find_shards("data.train", given)
    with pytest.raises(DataError, match="names a shard twice"):
        find_shards("data.train", [str(tmp_path), f"{tmp_path}/a.tar"])
    assert not Path("x").exists()


def write(path: Path, *files: tuple[str, bytes], kind: str = "w") -> None:
    with tarfile.open(path, kind) as tar:  # type: ignore[call-overload]
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def read(path: Path, classes: int = 10) -> list[tuple[str, bytes, int]]:
    found = []
    for (key, start, size, label), file in read_members(path, classes):
        file.seek(start)
        found.append((key, file.read(size), label))
    return found


def test_samples_are_consecutive_files_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write(
        path, ("d/x.jpg", b"1"), ("d/x.cls", b"3"), ("e/x.cls", b" 4\n"), ("e/x.seg.png", b"no"),
        ("e/x.PNG", b"2" * 2000), ("e/x.json", b"{}"), ("y.v2.txt", b""), ("y.jpeg", b"3"),
        ("y.cls", b"0"),
    )  # fmt: skip
    assert read(path) == [("d/x", b"1", 3), ("e/x", b"2" * 2000, 4), ("y", b"3", 0)]


@pytest.mark.vision
def test_images_are_read_in_any_order(shards: Path) -> None:
    images = ShardImages((shards / "val-0.tar", shards / "val-1.tar"), 3)
    numbers = range(1000, 1010)
    assert images.labels.tolist() == [number % 3 for number in numbers]
    for index in reversed(range(10)):
        image, label = images[index]
        assert label == numbers[index] % 3
        wanted = decode(io.BytesIO(jpeg(label, numbers[index])))
        assert image.tobytes() == wanted.tobytes()


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
def test_incomplete_samples_raise(
    files: list[tuple[str, bytes]], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "a.tar", *files)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.tar")


def test_truncation_at_any_byte_raises(tmp_path: Path) -> None:
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
        with pytest.raises(DataError, match="no complete, uncompressed shard"):
            read(path)
    path.write_bytes(whole[: end + 512])
    assert read(path) == data


def test_compressed_and_empty_shards_raise(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", ("x.jpg", b"1"), ("x.cls", b"1"), kind="w:gz")
    with pytest.raises(DataError, match="no complete, uncompressed shard"):
        read(tmp_path / "a.tar")
    write(tmp_path / "b.tar")
    with pytest.raises(DataError, match="it has no images"):
        ShardImages((tmp_path / "b.tar",), 3)


def test_all_tar_formats_are_read(tmp_path: Path) -> None:
    name = "folder/" * 20 + "ä"  # needs an extra header in each of them
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=kind) as tar:
            parts: list[tuple[str, Any]] = [("jpg", b"1"), ("cls", b"1")]
            for ending, data in parts:
                entry = tarfile.TarInfo(f"{name}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        assert read(tmp_path / "a.tar") == [(name, b"1", 1)]
