# SPDX-License-Identifier: MIT
"""Samples of a tar shard."""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np
import torch

from regrow.utils.errors import DataError

IMAGES = ("jpg", "jpeg", "png")


class Member(NamedTuple):
    """One image in a shard.

    Attributes:
        key: Its name without the ending.
        start: Where its bytes begin in the shard.
        size: How many they are.
        label: Its class.
    """

    key: str
    start: int
    size: int
    label: int


def members(shard: Path, classes: int) -> Iterator[tuple[Member, IO[bytes]]]:
    """The images of a shard, in order, with the open file; what is not read is passed over.

    Args:
        shard: A tar file that is not packed.
        classes: Labels must be below.

    Raises:
        DataError: When the shard is cut short or is no plain tar file, or when a sample lacks its
            image or its class.
    """
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            entries = (entry for entry in tar if entry.isfile())
            for key, group in groupby(entries, key=lambda entry: _split(entry.name)[0]):
                parts = {_split(entry.name)[1]: entry for entry in group}
                image = next((parts[kind] for kind in IMAGES if kind in parts), None)
                if image is None or "cls" not in parts:
                    raise DataError(
                        f"{shard}: sample {key!r} has {', '.join(sorted(parts))}, it needs an "
                        f"image ({', '.join(IMAGES)}) and cls, one after the other; if it is the "
                        "last one, the shard was cut short: fetch it again"
                    )
                label = _label(file, parts["cls"], shard, classes)
                yield Member(key, image.offset_data, image.size, label), file
            file.seek(tar.offset)
            if file.read(512) != bytes(512):  # tarfile takes half a header for the end
                raise tarfile.ReadError("it ends without the empty blocks of a tar file")
    except tarfile.TarError as error:
        raise DataError(
            f"{shard} is no whole tar file ({error}): fetch it again; packed ones (.tar.gz) must "
            "be unpacked"
        ) from error


def _split(name: str) -> tuple[str, str]:
    """A file's key, up to the first dot of its last part, and its kind, in small letters."""
    path = PurePosixPath(name)
    stem, _, kind = path.name.partition(".")
    return str(path.parent / stem), kind.lower()


def _label(file: IO[bytes], entry: tarfile.TarInfo, shard: Path, classes: int) -> int:
    file.seek(entry.offset_data)
    text = file.read(min(entry.size, 20))
    if not text.strip().isdigit() or int(text) >= classes:
        raise DataError(
            f"{shard}: {entry.name} holds {text!r}, no class below data.num_classes={classes}"
        )
    return int(text)


class TarImages:
    """The images of a few shards, to be read in any order: for evaluation.

    Attributes:
        shards: The tar files.
        places: (shard, start, size) of each image, int64.
        labels: int64, shape (images,).
    """

    def __init__(self, shards: tuple[Path, ...], classes: int) -> None:
        self.shards = shards
        found = [(n, m) for n, shard in enumerate(shards) for m, _ in members(shard, classes)]
        self.places = np.array([(n, m.start, m.size) for n, m in found]).reshape(-1, 3)
        self.labels = torch.tensor([m.label for _, m in found])
        if not found:
            raise DataError(f"{', '.join(map(str, shards))}: no images in these shards")

    def read(self, index: int) -> bytes:
        """The bytes of one image file."""
        number, start, size = self.places[index].tolist()
        with self.shards[number].open("rb") as file:
            file.seek(start)
            return bytes(file.read(size))

    def name(self, index: int) -> str:
        """Its shard and where it begins."""
        number, start, _ = self.places[index].tolist()
        return f"{self.shards[number]}, the image at byte {start},"


@functools.cache
def scan_shards(shards: tuple[Path, ...], classes: int) -> TarImages:
    """The images of shards, listed once a process by one pass over their headers."""
    return TarImages(shards, classes)
