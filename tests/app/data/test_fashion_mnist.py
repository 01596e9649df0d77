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

from regrow.app.data import fashion_mnist
from regrow.app.data.fashion_mnist import DEBIAN, FILES, FashionMNIST
from regrow.utils.errors import DataError

SIZES = {"train": 30, "t10k": 6}


def small_files() -> dict[str, bytes]:
    random = np.random.default_rng(0)
    files = {}
    for name in FILES:
        count = SIZES[name.split("-")[0]]
        shape = (count, 28, 28) if "images" in name else (count,)
        values = (
            random.integers(0, 256, shape) if "images" in name else np.arange(count) % 3
        ).astype(np.uint8)
        head = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
        files[name] = head + values.tobytes()
    return files


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that stands for the public address, with small files; nothing else exists."""
    folder = tmp_path / "public"
    folder.mkdir()
    files = small_files()
    for name, data in files.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Quiet(*args, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(fashion_mnist, "ADDRESS", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "CACHE", tmp_path / "cache")
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    monkeypatch.setattr(fashion_mnist, "FILES", sums)
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("given", [True, False])
def test_missing_files_are_fetched_once(given: bool, public: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("mine" if given else "cache")
    data = FashionMNIST(root=str(folder) if given else None, val_size=3)
    data.prepare_data()
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.gz" for name in FILES)
    for path in public.iterdir():
        path.unlink()
    data.prepare_data()
    data.setup()
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 27
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 3
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (6, 1, 28, 28)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_corrupt_file_is_refused(public: Path, tmp_path: Path) -> None:
    name = "t10k-labels-idx1-ubyte.gz"
    (public / name).write_bytes(gzip.compress(b"corrupt"))
    data = FashionMNIST(root=str(tmp_path / "mine"))
    with pytest.raises(DataError, match=f"{name} returned another file"):
        data.prepare_data()
    assert not (tmp_path / "mine" / name).exists()
    with pytest.raises(DataError, match="call prepare_data"):
        data.setup()


def test_files_may_be_plain_or_packed(public: Path, tmp_path: Path) -> None:
    folder = tmp_path / "debian"
    folder.mkdir()
    for i, (name, data) in enumerate(small_files().items()):
        if i % 2:
            (folder / name).write_bytes(data)
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    found = FashionMNIST(download=False)
    found.prepare_data()
    (images, labels), _ = found.read()
    assert images.shape == (30, 1, 28, 28)
    assert len(labels) == 30


def test_what_is_missing_is_named_with_what_to_do(public: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        FashionMNIST(download=False).prepare_data()
    for words in (
        "train-images-idx3-ubyte",
        str(tmp_path / "debian"),
        str(tmp_path / "cache"),
        "dataset-fashion-mnist",
        "data.root=DIR",
        "data.download=true",
    ):
        assert words in str(error.value)
    with pytest.raises(DataError, match="nowhere"):
        FashionMNIST(root=str(tmp_path / "nowhere"), download=False).prepare_data()


def test_validation_must_leave_something_to_train_on() -> None:
    with pytest.raises(ValueError, match="from 1 to 59999, got 60000"):
        FashionMNIST(val_size=60000)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_real_files() -> None:
    data = FashionMNIST(download=False)
    data.prepare_data()
    (images, labels), (test_images, test_labels) = data.read()
    assert images.shape == (60000, 1, 28, 28)
    assert test_images.shape == (10000, 1, 28, 28)
    assert np.bincount(labels).tolist() == [6000] * 10
    assert np.bincount(test_labels).tolist() == [1000] * 10
    assert data.read()[0][0] is images  # decoded once
    counts, values = np.bincount(images.flatten(), minlength=256), np.arange(256) / 255
    mean = np.average(values, weights=counts)
    assert data.mean[0] == pytest.approx(mean, abs=1e-4)
    assert data.std[0] == pytest.approx(
        np.average((values - mean) ** 2, weights=counts) ** 0.5, abs=1e-4
    )
    for name, sha256 in FILES.items():
        with gzip.open(DEBIAN / f"{name}.gz") as stream:
            assert hashlib.sha256(stream.read()).hexdigest() == sha256
