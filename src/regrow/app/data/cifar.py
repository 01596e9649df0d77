# SPDX-License-Identifier: MIT
"""CIFAR-10/100."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from regrow.app.data.base import ImageDataModule, Samples, check_channels
from regrow.app.data.formats import download, read_pickle, sha256_of, unpack
from regrow.app.data.transforms.augment import Augment
from regrow.utils.errors import DataError
from regrow.utils.logging import info

ADDRESS = "https://www.cs.toronto.edu/~kriz/"


CACHE = Path("~/.cache/regrow/cifar")


class Release(NamedTuple):
    """How one of the two sets is published.

    Attributes:
        name: For people.
        archive: Its file at `ADDRESS`.
        sha256: Of that file; Keras states the same.
        size: Of that file, for people.
        folder: What the archive holds.
        train: Files of pickled batches.
        test: Likewise.
        labels: The key of the labels in them.
    """

    name: str
    archive: str
    sha256: str
    size: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: bytes


class CIFAR(ImageDataModule):
    """What CIFAR-10 and CIFAR-100 share: 50,000 + 10,000 photographs of 32 x 32 pixels.

    Args:
        root: The folder of pickled batches ("Python version"), or the one that holds it or its
            archive. None: ~/.cache/regrow/cifar.
        download: Whether `prepare_data` may fetch the archive into `root` or that cache. It is
            verified before it is unpacked.
        batch_size: As in `ImageDataModule`.
        val_size: Likewise.
        seed: Likewise.
        augment: Likewise.
        mean: Of each channel, for pixels in [0, 1]; None: of the training set.
        std: Likewise.
        channels_last: Whether batches lie in memory with the channels last.

    Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """

    release: Release
    input_shape = (3, 32, 32)
    samples = 50000
    scale = 255.0

    def __init__(
        self,
        root: str | None = None,
        download: bool = True,
        batch_size: int = 128,
        val_size: float | int = 0.1,
        seed: int = 0,
        augment: Augment = "crop_flip",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels_last: bool = False,
    ) -> None:
        self.mean = check_channels("mean", mean, type(self).mean)
        self.std = check_channels("std", std, type(self).std, positive=True)
        super().__init__(batch_size, val_size, seed, augment)
        self.root = (CACHE if root is None else Path(root)).expanduser().absolute()
        self.download = download
        self.channels_last = channels_last

    def prepare_data(self) -> None:
        """Unpacks or fetches what is missing; Lightning calls this in one process a machine.

        Raises:
            DataError: When the batches are missing and may not, or cannot, be fetched whole.
        """
        if self._folder() is not None:
            return
        release, archive = self.release, self.root / self.release.archive
        fetch = not archive.is_file()
        if fetch:
            if not self.download:
                raise DataError(self._missing("or let data.download=true fetch it"))
            info(f"fetching {release.name} ({release.size}) into {self.root}")
            try:
                download(ADDRESS + release.archive, archive, release.sha256, packed=True)
            except OSError as error:
                hint = f"or fetch it by other means: the download failed ({error})"
                raise DataError(self._missing(hint)) from error
        elif (found := sha256_of(archive)) != release.sha256:
            raise DataError(
                f"{archive} is not the published archive (sha256 {found}, not {release.sha256}): "
                "delete it and fetch it again"
            )
        unpack(archive, release.folder, self.root)
        if fetch:
            archive.unlink(missing_ok=True)

    def read(self) -> tuple[Samples, Samples]:
        """Training and test set, decoded once a process.

        Raises:
            DataError: When `prepare_data` did not run and the files are missing, or when they hold
                something else.
        """
        folder = self._folder()
        if folder is None:
            raise DataError(self._missing("or call prepare_data() first"))
        key = self.release.labels
        return (
            _read(folder, self.release.train, key, self.num_classes),
            _read(folder, self.release.test, key, self.num_classes),
        )

    def _folder(self) -> Path | None:
        """The folder that holds all batches."""
        for folder in (self.root / self.release.folder, self.root):
            if all((folder / name).is_file() for name in (*self.release.train, *self.release.test)):
                return folder
        return None

    def _missing(self, otherwise: str) -> str:
        name, archive, _, size, folder, train, test, _ = self.release
        return (
            f"{name} needs {folder}/ with {', '.join((*train, *test))}, not all found in "
            f"{self.root}: put {ADDRESS}{archive} ({size}) or the folder that it holds there, "
            f"or write data.root=DIR, {otherwise}"
        )


class CIFAR10(CIFAR):
    """50,000 + 10,000 photographs of 10 kinds of animals and vehicles.

    Args: as `CIFAR`.

    Example:
        >>> data = CIFAR10(augment=["crop_flip", {"cutout": 16}], val_size=5000)
        >>> data.num_classes, data.input_shape
        (10, (3, 32, 32))
    """

    num_classes = 10
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    release = Release(
        "CIFAR-10",
        "cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        "170 MB",
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        ("test_batch",),
        b"labels",
    )


class CIFAR100(CIFAR):
    """50,000 + 10,000 photographs of 100 kinds of things: the fine labels.

    Args: as `CIFAR`.

    Example:
        >>> data = CIFAR100(augment={"crop_flip": None, "rand_augment": {"magnitude": 5}})
        >>> data.num_classes
        100
    """

    num_classes = 100
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    release = Release(
        "CIFAR-100",
        "cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        "169 MB",
        "cifar-100-python",
        ("train",),
        ("test",),
        b"fine_labels",
    )


@functools.cache
def _read(folder: Path, names: tuple[str, ...], key: bytes, classes: int) -> Samples:
    """Images (N, 3, 32, 32) and labels (N,) of a few files of pickled batches."""
    parts = [_batch(folder / name, key, classes) for name in names]
    images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, 32, 32)
    return torch.from_numpy(images), torch.from_numpy(np.concatenate([one for _, one in parts]))


def _batch(path: Path, key: bytes, classes: int) -> tuple[np.ndarray, np.ndarray]:
    batch = read_pickle(path)
    data = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(key) if isinstance(batch, dict) else None
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise DataError(f"{path} holds no uint8 array 'data' of 3072 a row: fetch it again")
    if (
        not isinstance(labels, list)
        or len(labels) != len(data)
        or not all(isinstance(label, int) and 0 <= label < classes for label in labels)
    ):
        raise DataError(
            f"{path} holds no list {key.decode()!r} of {len(data)} numbers below {classes}: "
            "fetch it again"
        )
    return data, np.array(labels, dtype=np.int64)
