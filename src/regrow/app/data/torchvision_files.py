# SPDX-License-Identifier: MIT
"""Files of torchvision's data sets: download, checksums and reading into memory."""

from __future__ import annotations

import functools
import gzip
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from regrow.utils.errors import DataError
from regrow.utils.imports import import_optional
from regrow.utils.logging import info

# RuntimeError: torchvision's, for missing and for changed files; the others: damaged files.
_ERRORS = (RuntimeError, OSError, EOFError, ValueError, AssertionError, zlib.error)

Samples = tuple[Tensor, Tensor]
"""Images, uint8 (N, C, H, W), and labels, int64 (N,)."""


@dataclass(frozen=True)
class TorchvisionFiles:
    """A data set of torchvision and where its files are.

    torchvision verifies MD5 sums: of each archive that it unpacks, and for CIFAR of each unpacked
    file whenever it is read, before it is unpickled.

    Attributes:
        name: Class in `torchvision.datasets`.
        size: Size of the download, shown to users.
        folders: Where to look without `data.root`, in this order; downloads go to the last one.
    """

    name: str
    size: str
    folders: tuple[str, ...]

    def prepare(self, root: str | None, download: bool) -> None:
        """Download what is missing, in one process at a time."""
        with self._found(root) as (kind, folder):
            try:
                _open(kind, folder, train=False)
            except _ERRORS:
                if not download:
                    raise
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / f"{self.name}.lock"):
                    info(f"downloading {self.name} ({self.size}) into {folder}, unless it is there")
                    _open(kind, folder, train=False, download=True)

    def read(self, root: str | None) -> tuple[Samples, Samples]:
        """Return the training and the test set, read once per process."""
        with self._found(root) as (kind, folder):
            return _read(kind, folder)

    @contextmanager
    def _found(self, root: str | None) -> Iterator[tuple[Any, Path]]:
        """Yield torchvision's class and the folder that `data.root` names; explain errors."""
        names = ("torchvision", "torchvision.datasets")
        kind = getattr(import_optional(f"data {self.name}", "vision", *names), self.name)
        places = self.folders if root is None else (root,)
        paths = [Path(place).expanduser().absolute() for place in places]
        folder = next((path for path in paths if path.is_dir()), paths[-1])
        try:
            yield kind, folder
        except _ERRORS as error:
            raise DataError(
                f"{self.name} ({self.size}) could not be read from {folder}: {error} Write "
                f"data.root=DIR for the root folder of torchvision.datasets.{self.name}, into "
                "which its archive was put or unpacked, and data.download=true to unpack or fetch "
                "it"
            ) from error


@functools.cache
def _read(kind: Any, root: Path) -> tuple[Samples, Samples]:
    train, test = (_to_tensors(_open(kind, root, train=part)) for part in (True, False))
    return train, test


def _open(kind: Any, root: Path, *, train: bool, download: bool = False) -> Any:
    """Return the data set; a folder of MNIST's .gz files, as Debian has it, is unpacked first."""
    packed = sorted(root.glob("*-ubyte.gz"))
    if not packed:
        return kind(root, train=train, download=download)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / kind.__name__ / "raw"
        raw.mkdir(parents=True)
        for path in packed:
            with gzip.open(path) as source, (raw / path.stem).open("wb") as target:
                shutil.copyfileobj(source, target)
        return kind(folder, train=train)


def _to_tensors(dataset: Any) -> Samples:
    """Return images (N, H, W) or (N, H, W, C) as (N, C, H, W), and labels."""
    images, labels = torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets)
    if images.dim() == 3:
        images = images.unsqueeze(-1)
    return images.permute(0, 3, 1, 2).contiguous(), labels
