# SPDX-License-Identifier: MIT
"""One folder per class."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import torch

from regrow.utils.errors import DataError

SUFFIXES = (".jpeg", ".jpg", ".png")


class FolderImages:
    """The images of `folder/CLASS/NAME.JPEG`; labels count the classes by name.

    Attributes:
        folder: Where they lie.
        classes: The names of the class folders, sorted.
        names: CLASS/NAME of each image, sorted; one array, since forked workers would soon hold a
            copy each of a million strings.
        labels: int64, shape (images,).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.classes = class_folders(folder)
        names, labels = [], []
        for label, name in enumerate(self.classes):
            images = _images(folder / name)
            if not images:
                raise DataError(
                    f"{folder / name} holds no {', '.join(SUFFIXES)} file: remove the folder, or "
                    "fill it"
                )
            names += [os.fsencode(f"{name}/{image}") for image in images]
            labels += [label] * len(images)
        self.names = np.array(names)
        self.labels = torch.tensor(labels)

    def read(self, index: int) -> bytes:
        """The bytes of one image file."""
        return Path(self.name(index)).read_bytes()

    def name(self, index: int) -> str:
        """Its path."""
        return str(self.folder / os.fsdecode(bytes(self.names[index])))


@functools.cache
def scan(folder: Path) -> FolderImages:
    """The images of a folder, listed once a process.

    Raises:
        DataError: When it has no class folders, or an empty one.
    """
    return FolderImages(folder)


def class_folders(folder: Path) -> list[str]:
    """The names of the class folders, sorted.

    Raises:
        DataError: When there are none, naming what lies there instead.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    if not names:
        loose = len(_images(folder))
        raise DataError(
            f"{folder} holds no folder a class ({loose} images lie in it directly): write "
            f"{folder}/CLASS/NAME.JPEG, with the same class names in train and val"
        )
    return names


def _images(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name.lower().endswith(SUFFIXES))
