# SPDX-License-Identifier: MIT
"""Small data in the real formats: pickled batches, JPEG folders, tar shards; and a local server."""

from __future__ import annotations

import http.server
import io
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def python2_pickle(batch: dict[bytes, object]) -> bytes:
    """A dict of lists, strings and one array, as Python 2 with NumPy 1 wrote it: protocol 2."""

    def string(data: bytes) -> bytes:
        return b"U" + bytes([len(data)]) + data if len(data) < 256 else long(data)

    def long(data: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(data)) + data

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def array(values: np.ndarray) -> bytes:
        module = b"cnumpy.core.multiarray\n_reconstruct\n"
        empty = module + b"cnumpy\nndarray\n" + number(0) + b"\x85" + string(b"b") + b"\x87R"
        dtype = b"cnumpy\ndtype\n" + string(b"u1") + number(0) + number(1) + b"\x87R"
        dtype += b"(" + number(3) + string(b"|") + b"NNN" + number(-1) * 2 + number(0) + b"tb"
        shape = b"(" + b"".join(number(size) for size in values.shape) + b"t"
        return empty + b"(" + number(1) + shape + dtype + b"\x89" + string(values.tobytes()) + b"tb"

    def item(value: object) -> bytes:
        if isinstance(value, np.ndarray):
            return array(value)
        if isinstance(value, list):
            return b"](" + b"".join(map(item, value)) + b"e"
        return number(value) if isinstance(value, int) else string(value)  # type: ignore[arg-type]

    pairs = b"".join(string(key) + item(value) for key, value in batch.items())
    return b"\x80\x02}(" + pairs + b"u."


def images(count: int, seed: int = 0) -> np.ndarray:
    """Rows of 3072: red, green, blue planes of 32 x 32."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


@pytest.fixture
def cifar() -> Callable[..., tuple[np.ndarray, list[int]]]:
    """Writes a small CIFAR below a folder; gives its training rows and labels."""

    def write(folder: Path, classes: int, each: int = 12) -> tuple[np.ndarray, list[int]]:
        ten = classes == 10
        inner = folder / ("cifar-10-batches-py" if ten else "cifar-100-python")
        inner.mkdir(parents=True)
        train = [f"data_batch_{n}" for n in range(1, 6)] if ten else ["train"]
        meta = "batches.meta" if ten else "meta"
        names = b"label_names" if ten else b"fine_label_names"
        rows, labels = [], []
        for seed, name in enumerate([*train, "test_batch" if ten else "test"]):
            data, numbers = images(each, seed), [(7 * i + seed) % classes for i in range(each)]
            batch: dict[bytes, object] = {b"batch_label": b"batch", b"data": data}
            batch[b"labels" if ten else b"fine_labels"] = numbers
            if not ten:
                batch[b"coarse_labels"] = [number // 5 for number in numbers]
            batch[b"filenames"] = [b"%d.png" % i for i in range(each)]
            (inner / name).write_bytes(python2_pickle(batch))
            if name in train:
                rows.append(data)
                labels += numbers
        (inner / meta).write_bytes(python2_pickle({names: [b"name"] * classes}))
        return np.concatenate(rows), labels

    return write


def jpeg(label: int, number: int) -> bytes:
    """A photograph of its class's colour, of another size each time."""
    random = np.random.default_rng((label, number))
    height, width = random.integers(40, 70, 2)
    pixels = random.integers(0, 120, (height, width, 3)) + np.eye(3, dtype=int)[label % 3] * 130
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ of 3 classes with 8 images each, val/ with 3 each."""
    root = tmp_path_factory.mktemp("photographs")
    for part, each in (("train", 8), ("val", 3)):
        for label in range(3):
            folder = root / part / f"n0{label}"
            folder.mkdir(parents=True)
            for number in range(each):
                data = jpeg(label, number + (100 if part == "val" else 0))
                (folder / f"n0{label}_{number}.JPEG").write_bytes(data)
    return root


def shard(path: Path, numbers: range) -> None:
    """Samples NAME.jpg, NAME.json, NAME.cls of 3 classes."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            label = number % 3
            parts = {"jpg": jpeg(label, number), "json": b"{}", "cls": b"%d" % label}
            for kind, data in parts.items():
                entry = tarfile.TarInfo(f"sample{number:05d}.{kind}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


@pytest.fixture
def write_shard() -> Callable[[Path, range], None]:
    """Writes a shard of some samples, whose class is their number's remainder by 3."""
    return shard


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train-{00..06}.tar with 6 images each, and val-{0..1}.tar with 5 each."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(7):
        shard(folder / f"train-{number:02d}.tar", range(6 * number, 6 * number + 6))
    for number in range(2):
        shard(folder / f"val-{number}.tar", range(1000 + 5 * number, 1005 + 5 * number))
    return folder


@pytest.fixture
def public(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the local address that serves it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    folder = tmp_path / "public"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Quiet(*args, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()
