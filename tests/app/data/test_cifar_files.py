# SPDX-License-Identifier: MIT
"""Files that were not written by whom we think: pickles that call, archives that reach out."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regrow.app.data.cifar import CIFAR10, CIFAR100
from regrow.app.data.formats import read_pickle, unpack
from regrow.utils.errors import DataError


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", range(5))
def test_arrays_and_plain_values_are_read(protocol: int, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 5), dtype=np.uint8)
    value = {b"data": array, b"labels": [1, 2], b"x": (b"y", None, True, 1.5)}
    (tmp_path / "a").write_bytes(pickle.dumps(value, protocol))
    found = read_pickle(tmp_path / "a")
    assert np.array_equal(found.pop(b"data"), array)
    assert found == {name: value[name] for name in (b"labels", b"x")}


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_something_is_refused(protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for call in (
        Calls(os.system, f"touch {trace}"),
        Calls(eval, f"open({str(trace)!r}, 'w')"),
        Calls(Path, str(trace)),
        Calls(getattr, np.ndarray, "tofile"),
    ):
        (tmp_path / "a").write_bytes(pickle.dumps({b"data": call}, protocol))
        with pytest.raises(DataError, match=r"not a complete pickle of arrays .*it requests"):
            read_pickle(tmp_path / "a")
    assert not trace.exists()


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x80\x02c_codecs\nencode\nU\x01aU\x03zip\x86R.")
    with pytest.raises(DataError, match="not a complete pickle"):
        read_pickle(tmp_path / "a")


def test_every_cut_is_noticed(cifar: Any, tmp_path: Path) -> None:
    cifar(tmp_path, 10, each=1)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    whole = path.read_bytes()
    for length in (*range(0, 80, 3), len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="delete it and fetch it again"):
            read_pickle(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": np.zeros((12, 3072), np.float32)}, "no uint8 array"),
        ({b"data": np.zeros((12, 1024), np.uint8)}, "rows of 3072"),
        ({b"data": None}, "no uint8 array"),
        ({b"fine_labels": [0] * 11}, "no list 'fine_labels' of 12 numbers below 100"),
        ({b"fine_labels": [100] * 12}, "numbers below 100"),
        ({b"fine_labels": [-1] * 12}, "numbers below 100"),
        ({b"fine_labels": [0.5] * 12}, "numbers below 100"),
    ],
)
def test_batches_of_another_kind_are_refused(
    change: dict[bytes, Any], message: str, cifar: Any, tmp_path: Path
) -> None:
    cifar(tmp_path, 100)
    path = tmp_path / "cifar-100-python" / "test"
    path.write_bytes(pickle.dumps(read_pickle(path) | change))
    with pytest.raises(DataError, match=message):
        CIFAR100(root=str(tmp_path), val_size=3).setup()


def test_a_batch_must_be_a_mapping(cifar: Any, tmp_path: Path) -> None:
    cifar(tmp_path, 10)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DataError, match="data_batch_3 has no uint8 array"):
        CIFAR10(root=str(tmp_path), val_size=3).setup()


def archive(path: Path, *entries: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for entry in entries:
            entry.size = 1 if entry.isfile() else 0
            tar.addfile(entry, io.BytesIO(b"x"))


def link(name: str, target: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    return entry


@pytest.mark.parametrize(
    "entries",
    [
        [tarfile.TarInfo("set/a"), tarfile.TarInfo("../outside")],
        [tarfile.TarInfo("set/../../../outside")],
        [link("set", "/tmp"), tarfile.TarInfo("set/outside")],
        [link("set/up", "../../.."), tarfile.TarInfo("set/up/outside")],
    ],
)
def test_archives_that_reach_outside_are_refused(
    entries: list[tarfile.TarInfo], tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "data"
    folder.mkdir(parents=True)
    archive(folder / "a.tar.gz", *entries)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(folder / "a.tar.gz", "set", folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["deep", "data", "a.tar.gz"]


def test_damaged_and_other_archives_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    archive(path, tarfile.TarInfo("other/a"))
    with pytest.raises(DataError, match="has no folder set"):
        unpack(path, "set", tmp_path)
    whole = path.read_bytes()
    half = len(whole) // 2
    damaged = whole[:half] + bytes(byte ^ 255 for byte in whole[half:])
    for data in (b"", b"<html>", whole[:half], damaged, whole[:-1]):
        path.write_bytes(data)
        with pytest.raises(DataError, match="fetch it again"):
            unpack(path, "set", tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_where_another_process_was_faster_its_folder_stays(tmp_path: Path) -> None:
    archive(tmp_path / "a.tar.gz", tarfile.TarInfo("set/a"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "theirs").touch()
    unpack(tmp_path / "a.tar.gz", "set", tmp_path)
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["theirs"]
