# SPDX-License-Identifier: MIT
"""Images in one folder per class."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import torch

from regrow.utils.errors import DataError

SUFFIXES = (".jpeg", ".jpg", ".png")


class FolderImages:
    """The images `folder/CLASS/NAME.JPEG`, labelled by the position of the sorted class names.

    Attributes:
        folder: Root folder.
        classes: Sorted names of the class folders.
        names: Sorted CLASS/NAME of each image; one array, which forked workers share (a list of
            strings would be copied to each).
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
                    f"{folder / name} has no {', '.join(SUFFIXES)} file: remove the folder, or "
                    "add images"
                )
            names += [os.fsencode(f"{name}/{image}") for image in images]
            labels += [label] * len(images)
        self.names = np.array(names)
        self.labels = torch.tensor(labels)

    def read(self, index: int) -> bytes:
        """Return the bytes of one image file."""
        return Path(self.name(index)).read_bytes()

    def name(self, index: int) -> str:
        """Return the path of one image file."""
        return str(self.folder / os.fsdecode(bytes(self.names[index])))


@functools.cache
def list_images(folder: Path) -> FolderImages:
    """List the images of a folder, once per process.

    Raises:
        DataError: If there is no class folder, or an empty one.
    """
    return FolderImages(folder)


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the class folders.

    Raises:
        DataError: If there is none.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    if not names:
        loose = len(_images(folder))
        raise DataError(
            f"{folder} has no class folders ({loose} images directly in it): write "
            f"{folder}/CLASS/NAME.JPEG, with the same class names in train and val"
        )
    return names


def _images(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name.lower().endswith(SUFFIXES))
