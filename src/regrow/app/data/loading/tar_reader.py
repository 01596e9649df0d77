# SPDX-License-Identifier: MIT
"""Read the samples of tar shards in WebDataset format."""

import io
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
from torch.utils.data import Dataset

from regrow.app.data.loading.image_transforms import decode
from regrow.utils.errors import DataError

IMAGES = ("jpg", "jpeg", "png")


Member = tuple[str, int, int, int]
"""One image in a shard: name without extension, offset and size in bytes, class."""


def read_members(shard: Path, classes: int) -> Iterator[tuple[Member, IO[bytes]]]:
    """Yield the images of an uncompressed tar file in order, with the open file.

    Raises:
        DataError: If the file is truncated, empty or no plain tar file, if a sample lacks its image
            or label, or if a label is not below `classes`.
    """
    member = None
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            entries = (entry for entry in tar if entry.isfile())
            for key, group in groupby(entries, key=lambda entry: _split(entry.name)[0]):
                parts = {_split(entry.name)[1]: entry for entry in group}
                member = _find_image(key, parts, file, classes)
                yield member, file
            file.seek(tar.offset)
            if file.read(512) != bytes(512):  # tarfile accepts half a header as the end
                raise tarfile.ReadError("it ends without the empty blocks of a tar file")
            if member is None:
                raise tarfile.ReadError("it has no images")
    except (tarfile.TarError, ValueError) as error:
        raise DataError(f"{shard} is no complete, uncompressed shard: {error}") from error


def _split(name: str) -> tuple[str, str]:
    """Return the key, up to the first dot of the file name, and the extension in lower case."""
    path = PurePosixPath(name)
    stem, _, kind = path.name.partition(".")
    return str(path.parent / stem), kind.lower()


def _find_image(
    key: str, parts: dict[str, tarfile.TarInfo], file: IO[bytes], classes: int
) -> Member:
    image = next((parts[kind] for kind in IMAGES if kind in parts), None)
    if image is None or "cls" not in parts:
        raise ValueError(
            f"sample {key!r} has {', '.join(sorted(parts))}, it needs an image "
            f"({', '.join(IMAGES)}) and cls next to each other"
        )
    file.seek(parts["cls"].offset_data)
    text = file.read(min(parts["cls"].size, 20))
    if not text.strip().isdigit() or int(text) >= classes:
        name = parts["cls"].name
        raise ValueError(f"{name} has {text!r}, not a class below data.num_classes={classes}")
    return key, image.offset_data, image.size, int(text)


class ShardImages(Dataset[tuple[Any, int]]):
    """The decoded images of some shards and their labels, with random access for evaluation."""

    def __init__(self, shards: tuple[Path, ...], classes: int) -> None:
        self.members = [(s, member) for s in shards for member, _ in read_members(s, classes)]
        self.labels = torch.tensor([label for _, (*_, label) in self.members])

    def __getitem__(self, index: int) -> tuple[Any, int]:
        shard, (key, start, size, label) = self.members[index]
        with shard.open("rb") as file:
            file.seek(start)
            return decode(io.BytesIO(file.read(size)), f"{shard}: {key}"), label
