# SPDX-License-Identifier: MIT
"""Small data in the real formats."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from small_images import write_cifar, write_photographs, write_shard


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[np.ndarray, list[int]]]:
    """Writes a small CIFAR below a folder; gives its training rows and labels."""

    def write(folder: Path, classes: int, each: int = 12) -> tuple[np.ndarray, list[int]]:
        return write_cifar(folder, classes, monkeypatch, each)

    return write


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ of 3 classes with 8 images each, val/ with 3 each."""
    root = tmp_path_factory.mktemp("photographs")
    write_photographs(root)
    return root


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train-{00..06}.tar with 6 images each, and val-{0..1}.tar with 5 each."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(7):
        write_shard(folder / f"train-{number:02d}.tar", range(6 * number, 6 * number + 6))
    for number in range(2):
        write_shard(folder / f"val-{number}.tar", range(1000 + 5 * number, 1005 + 5 * number))
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
