# SPDX-License-Identifier: MIT
"""Small data in the real formats: pickled batches, IDX files, JPEG folders and tar shards."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest


def write_cifar(
    folder: Path, classes: int, patch: pytest.MonkeyPatch, each: int = 12
) -> tuple[np.ndarray, list[int]]:
    """A small CIFAR whose MD5 sums torchvision takes for the published ones; its training rows."""
    from torchvision import datasets

    kind = datasets.CIFAR10 if classes == 10 else datasets.CIFAR100
    inner = folder / kind.base_folder
    inner.mkdir(parents=True)
    rows, labels, sums = [], [], {}
    for seed, (name, _) in enumerate([*kind.train_list, *kind.test_list]):
        data = np.random.default_rng(seed).integers(0, 256, (each, 3072), dtype=np.uint8)
        numbers = [(7 * i + seed) % classes for i in range(each)]
        key = "labels" if classes == 10 else "fine_labels"
        sums[name] = write_pickle(inner / name, {"data": data, key: numbers})
        if "test" not in name:
            rows.append(data)
            labels += numbers
    meta = {kind.meta["key"]: [str(number) for number in range(classes)]}
    md5 = write_pickle(inner / kind.meta["filename"], meta)
    for part in ("train_list", "test_list"):
        patch.setattr(kind, part, [[name, sums[name]] for name, _ in getattr(kind, part)])
    patch.setattr(kind, "meta", kind.meta | {"md5": md5})
    return np.concatenate(rows), labels


def write_pickle(path: Path, content: object) -> str:
    """Writes a pickle; its MD5 sum."""
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_fashion_mnist(folder: Path, train: int = 60, test: int = 60) -> None:
    """Fashion-MNIST's four .gz files with few images, of classes 0, 1, ..., 9, 0, 1, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, values in ((f"{part}-images-idx3", images), (f"{part}-labels-idx1", labels)):
            sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
            content = bytes((0, 0, 8, values.ndim)) + sizes + values.tobytes()
            (folder / f"{kind}-ubyte.gz").write_bytes(gzip.compress(content))


def jpeg(label: int, number: int) -> bytes:
    """A photograph of its class's colour, of another size each time."""
    from PIL import Image  # installed with torchvision

    random = np.random.default_rng((label, number))
    height, width = random.integers(40, 70, 2)
    pixels = random.integers(0, 120, (height, width, 3)) + np.eye(3, dtype=int)[label % 3] * 130
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_photographs(root: Path) -> None:
    """train/ of 3 classes with 8 images each, val/ with 3 each."""
    for part, each in (("train", 8), ("val", 3)):
        for label in range(3):
            folder = root / part / f"n0{label}"
            folder.mkdir(parents=True)
            for number in range(each):
                data = jpeg(label, number + (100 if part == "val" else 0))
                (folder / f"n0{label}_{number}.JPEG").write_bytes(data)


def write_shard(path: Path, numbers: range) -> None:
    """Samples NAME.jpg, NAME.json, NAME.cls of 3 classes."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            label = number % 3
            parts = {"jpg": jpeg(label, number), "json": b"{}", "cls": b"%d" % label}
            for kind, data in parts.items():
                entry = tarfile.TarInfo(f"sample{number:05d}.{kind}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
