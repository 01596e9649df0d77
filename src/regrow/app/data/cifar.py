# SPDX-License-Identifier: MIT
"""CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from regrow.app.data.base import ImageDataModule, Samples
from regrow.app.data.formats import compute_sha256, download, read_pickle, unpack
from regrow.app.data.transforms.augment import Augment
from regrow.utils.errors import DataError
from regrow.utils.logging import info

ADDRESS = "https://www.cs.toronto.edu/~kriz/"
CACHE = Path("~/.cache/regrow/cifar")


class Release(NamedTuple):
    """Published files of a dataset.

    Attributes:
        name: Name shown to users.
        archive: File name below `ADDRESS`.
        sha256: Checksum of the archive; Keras publishes the same one.
        size: Size of the archive, shown to users.
        folder: Folder inside the archive.
        train: File names of the pickled training batches.
        test: File names of the pickled test batches.
        labels: Key of the labels in a batch.
    """

    name: str
    archive: str
    sha256: str
    size: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: bytes


class CifarFiles:
    """The pickled batches of CIFAR-10 or CIFAR-100 on disk, downloaded if allowed.

    Args:
        release: Published files.
        root: Folder of the batches, or the folder that contains it or the archive.
        download: Whether `prepare` may download the archive into `root`.
    """

    def __init__(self, release: Release, root: str | None, download: bool) -> None:
        self.release = release
        self.root = (CACHE if root is None else Path(root)).expanduser().absolute()
        self.download = download

    def prepare(self) -> None:
        """Download, verify and unpack the archive if the batches are missing.

        Raises:
            DataError: If the batches are missing and cannot be downloaded.
        """
        if self._find_folder() is not None:
            return
        release, archive = self.release, self.root / self.release.archive
        fetch = not archive.is_file()
        if fetch:
            if not self.download:
                raise DataError(self._missing("or let data.download=true fetch it"))
            info(f"downloading {release.name} ({release.size}) into {self.root}")
            try:
                download(ADDRESS + release.archive, archive, release.sha256, packed=True)
            except OSError as error:
                hint = f"or fetch it by other means: the download failed ({error})"
                raise DataError(self._missing(hint)) from error
        elif (digest := compute_sha256(archive)) != release.sha256:
            raise DataError(
                f"{archive} is not the published archive (sha256 {digest}, not {release.sha256}): "
                "delete it and fetch it again"
            )
        unpack(archive, release.folder, self.root)
        if fetch:
            archive.unlink(missing_ok=True)

    def read(self, num_classes: int) -> tuple[Samples, Samples]:
        """Return the training and the test set, decoded once per process.

        Raises:
            DataError: If files are missing or have other contents.
        """
        folder = self._find_folder()
        if folder is None:
            raise DataError(self._missing("or call prepare_data() first"))
        key = self.release.labels
        train, test = self.release.train, self.release.test
        return _read(folder, train, key, num_classes), _read(folder, test, key, num_classes)

    def _find_folder(self) -> Path | None:
        for folder in (self.root / self.release.folder, self.root):
            if all((folder / name).is_file() for name in (*self.release.train, *self.release.test)):
                return folder
        return None

    def _missing(self, otherwise: str) -> str:
        name, archive, _, size, folder, train, test, _ = self.release
        return (
            f"{name} needs {folder}/ with {', '.join((*train, *test))}, not all found in "
            f"{self.root}: put {ADDRESS}{archive} ({size}) or its unpacked folder there, "
            f"or write data.root=DIR, {otherwise}"
        )


class CIFAR10(ImageDataModule):
    """50,000 training and 10,000 test photos of 32 x 32 pixels in 10 classes.

    Args:
        root: Folder of pickled batches ("Python version"), or the folder that contains it or its
            archive; None: ~/.cache/regrow/cifar.
        download: Whether `prepare_data` may download the archive; it is verified.
        batch_size: As in `ImageDataModule`, like `val_size`, `seed` and `augment`.
        mean: Per channel, for pixels in [0, 1]; None: that of the training set.
        std: Per channel, likewise.
        channels_last: Whether batches use the channels-last memory format.

    Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".

    Example:
        >>> data = CIFAR10(augment=["crop_flip", {"cutout": 16}], val_size=5000)
        >>> data.num_classes, data.input_shape
        (10, (3, 32, 32))
    """

    num_classes = 10
    input_shape = (3, 32, 32)
    samples = 50000
    scale = 255.0
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
        super().__init__(
            batch_size, val_size, seed, augment, mean=mean, std=std, channels_last=channels_last
        )
        self.files = CifarFiles(self.release, root, download)

    def prepare_data(self) -> None:
        """Download what is missing; Lightning calls this in one process per node."""
        self.files.prepare()

    def read(self) -> tuple[Samples, Samples]:
        """Return the training and the test set."""
        return self.files.read(self.num_classes)


class CIFAR100(ImageDataModule):
    """50,000 training and 10,000 test photos in 100 classes (the fine labels).

    Args: as `CIFAR10`.

    Example:
        >>> data = CIFAR100(augment={"crop_flip": None, "rand_augment": {"magnitude": 5}})
        >>> data.num_classes
        100
    """

    num_classes = 100
    input_shape = (3, 32, 32)
    samples = 50000
    scale = 255.0
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
        super().__init__(
            batch_size, val_size, seed, augment, mean=mean, std=std, channels_last=channels_last
        )
        self.files = CifarFiles(self.release, root, download)

    def prepare_data(self) -> None:
        """Download what is missing; Lightning calls this in one process per node."""
        self.files.prepare()

    def read(self) -> tuple[Samples, Samples]:
        """Return the training and the test set."""
        return self.files.read(self.num_classes)


@functools.cache
def _read(folder: Path, names: tuple[str, ...], key: bytes, classes: int) -> Samples:
    """Return images (N, 3, 32, 32) and labels (N,) of pickled batches."""
    parts = [_read_batch(folder / name, key, classes) for name in names]
    images = np.concatenate([images for images, _ in parts]).reshape(-1, 3, 32, 32)
    return torch.from_numpy(images), torch.from_numpy(np.concatenate([one for _, one in parts]))


def _read_batch(path: Path, key: bytes, classes: int) -> tuple[np.ndarray, np.ndarray]:
    batch = read_pickle(path)
    data = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(key) if isinstance(batch, dict) else None
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise DataError(f"{path} has no uint8 array 'data' with rows of 3072: fetch it again")
    if (
        not isinstance(labels, list)
        or len(labels) != len(data)
        or not all(isinstance(label, int) and 0 <= label < classes for label in labels)
    ):
        raise DataError(
            f"{path} has no list {key.decode()!r} of {len(data)} numbers below {classes}: "
            "fetch it again"
        )
    return data, np.array(labels, dtype=np.int64)
