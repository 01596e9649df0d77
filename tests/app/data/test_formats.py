# SPDX-License-Identifier: MIT
from __future__ import annotations

import gzip
import hashlib
import http.server
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from regrow.app.data.formats import download, read_idx


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the local address that serves it."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Quiet(*args, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("shape", [(5,), (3, 4, 2), (0, 28, 28)])
def test_idx_is_read_packed_and_plain(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "a").write_bytes(idx(values))
    (tmp_path / "a.gz").write_bytes(gzip.compress(idx(values)))
    for name in ("a", "a.gz"):
        assert np.array_equal(read_idx(tmp_path / name).numpy(), values)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0\x08", b"<html>", b"\0\0\x0d\1\0\0\0\1\0", idx(np.zeros((2, 3), np.uint8))[:-1],
     idx(np.zeros((2, 3), np.uint8)) + b"\0"],
)  # fmt: skip
def test_what_is_no_whole_idx_file_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match=r"data\.root=DIR"):
        read_idx(tmp_path / "a")


def test_download_keeps_what_it_expected(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    (folder / "a.gz").write_bytes(gzip.compress(b"hello", compresslevel=1, mtime=0))
    target = tmp_path / "new" / "a.gz"
    download(address + "a.gz", target, hashlib.sha256(b"hello").hexdigest())
    assert gzip.decompress(target.read_bytes()) == b"hello"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(b"other", mtime=0),
        gzip.compress(b"hello", mtime=0)[:-9],
        b"hello",
        b"",
        b"\x1f\x8bxxxx",
    ],
)
def test_corrupt_download_is_refused_and_leaves_nothing(
    data: bytes, served: tuple[Path, str], tmp_path: Path
) -> None:
    folder, address = served
    (folder / "a.gz").write_bytes(data)
    target = tmp_path / "new" / "a.gz"
    with pytest.raises(OSError, match=r"another file than expected.*nothing was kept"):
        download(address + "a.gz", target, hashlib.sha256(b"hello").hexdigest())
    assert list(target.parent.iterdir()) == []


def test_corrupt_download_does_not_replace_a_good_file(
    served: tuple[Path, str], tmp_path: Path
) -> None:
    folder, address = served
    (folder / "a").write_bytes(b"other")
    (tmp_path / "a").write_bytes(b"hello")
    with pytest.raises(OSError, match="another file"):
        download(address + "a", tmp_path / "a", hashlib.sha256(b"hello").hexdigest())
    assert (tmp_path / "a").read_bytes() == b"hello"


def test_missing_address_leaves_nothing(served: tuple[Path, str], tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.gz"
    with pytest.raises(OSError, match="404"):
        download(served[1] + "a.gz", target, "0" * 64)
    assert list(target.parent.iterdir()) == []
