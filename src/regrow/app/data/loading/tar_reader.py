# SPDX-License-Identifier: MIT
"""Read the samples of tar shards in WebDataset format."""

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
        key: Name without the extension.
        start: Offset in the shard, in bytes.
        size: Size in bytes.
        label: Class.
    """

    key: str
    start: int
    size: int
    label: int


def read_members(shard: Path, classes: int) -> Iterator[tuple[Member, IO[bytes]]]:
    """Yield the images of an uncompressed tar file in order, with the open file.

    Raises:
        DataError: If the file is truncated or no plain tar file, if a sample lacks its image or
            label, or if a label is not below `classes`.
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
                        f"image ({', '.join(IMAGES)}) and cls next to each other; if it is the "
                        "last one, the shard is truncated: fetch it again"
                    )
                label = _label(file, parts["cls"], shard, classes)
                yield Member(key, image.offset_data, image.size, label), file
            file.seek(tar.offset)
            if file.read(512) != bytes(512):  # tarfile accepts half a header as the end
                raise tarfile.ReadError("it ends without the empty blocks of a tar file")
    except tarfile.TarError as error:
        raise DataError(
            f"{shard} is not a complete tar file ({error}): fetch it again; decompress .tar.gz "
            "files"
        ) from error


def _split(name: str) -> tuple[str, str]:
    """Return the key, up to the first dot of the file name, and the extension in lower case."""
    path = PurePosixPath(name)
    stem, _, kind = path.name.partition(".")
    return str(path.parent / stem), kind.lower()


def _label(file: IO[bytes], entry: tarfile.TarInfo, shard: Path, classes: int) -> int:
    file.seek(entry.offset_data)
    text = file.read(min(entry.size, 20))
    if not text.strip().isdigit() or int(text) >= classes:
        raise DataError(
            f"{shard}: {entry.name} has {text!r}, not a class below data.num_classes={classes}"
        )
    return int(text)


class ShardImages:
    """The images of some shards, with random access for evaluation.

    Attributes:
        shards: The tar files.
        places: (shard, start, size) of each image, int64.
        labels: int64, shape (images,).
    """

    def __init__(self, shards: tuple[Path, ...], classes: int) -> None:
        self.shards = shards
        images = [(n, m) for n, shard in enumerate(shards) for m, _ in read_members(shard, classes)]
        self.places = np.array([(n, m.start, m.size) for n, m in images]).reshape(-1, 3)
        self.labels = torch.tensor([m.label for _, m in images])
        if not images:
            raise DataError(f"{', '.join(map(str, shards))}: no images in these shards")

    def read(self, index: int) -> bytes:
        """Return the bytes of one image file."""
        number, start, size = self.places[index].tolist()
        with self.shards[number].open("rb") as file:
            file.seek(start)
            return bytes(file.read(size))

    def name(self, index: int) -> str:
        """Return the shard and the offset of one image."""
        number, start, _ = self.places[index].tolist()
        return f"{self.shards[number]}, the image at byte {start},"


@functools.cache
def list_shard_images(shards: tuple[Path, ...], classes: int) -> ShardImages:
    """List the images of shards, once per process, by one pass over their headers."""
    return ShardImages(shards, classes)
