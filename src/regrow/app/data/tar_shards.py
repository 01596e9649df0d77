# SPDX-License-Identifier: MIT
"""Tar shards in WebDataset format: their images by index, and a loader that reads sequentially."""

import io
import math
import tarfile
from collections.abc import Iterator
from itertools import count, groupby, islice
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info

from regrow.app.data.image_transforms import decode
from regrow.app.data.worker_loader import WorkerConfig
from regrow.data.resumable import (
    Batch,
    ResumableLoader,
    epoch_order,
    generator,
    rank_and_world,
    samples_per_rank,
)
from regrow.utils.errors import ConfigError, DataError

IMAGES = ("jpg", "jpeg", "png")

Member = tuple[str, int, int, int]
"""One image in a shard: name without extension, offset and size in bytes, class."""

Raw = tuple[Path, str, bytes, int]
"""An image that is not decoded yet: its shard, name, bytes and class."""


def read_members(shard: Path, classes: int) -> Iterator[tuple[Member, IO[bytes]]]:
    """Yield the images of an uncompressed tar file in order, with the open file."""
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


class StreamLoader(ResumableLoader):
    """Iterate over batches that are read sequentially from tar shards.

    Each epoch assigns the shards anew to all workers of all ranks. A worker shuffles the images of
    its shards through a buffer and starts over when they end. An epoch is a fixed number of images,
    equal on every rank. Two limits follow:

    * If the workers do not divide the shards, an epoch omits some images and repeats others,
      different ones in each epoch.
    * The order depends on the number of ranks and workers, so a mid-epoch resume needs the same
      ones. It reads the earlier images of that epoch again, without decoding them.
    """

    def __init__(
        self,
        shards: tuple[Path, ...],
        classes: int,
        config: WorkerConfig,
        *,
        batch_size: int,
        epoch_samples: int,
        shuffle_buffer: int,
        seed: int,
    ) -> None:
        super().__init__(batch_size, seed)
        self.shards, self.classes, self.config = shards, classes, config
        self.buffer = shuffle_buffer
        self.workers, (self.rank, self.world) = max(1, config.workers), rank_and_world()
        self.samples = samples_per_rank(epoch_samples, self.world)
        if len(shards) < self.world * self.workers:
            raise ConfigError(
                f"{len(shards)} training shards are too few for {self.workers} workers on each of "
                f"{self.world} ranks: write data.num_workers={len(shards) // self.world}"
            )

    def __len__(self) -> int:
        return math.ceil(self.samples / self.batch_size)

    def identity(self) -> dict[str, int]:
        mine = {"ranks": self.world, "workers": self.workers, "batch size": self.batch_size}
        mine |= {"shards": len(self.shards), "buffer": self.buffer}
        return super().identity() | mine

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        yield from self.config.load(_Batches(self, epoch, start), batch_size=None)

    def read_images(self, epoch: int, worker: int) -> Iterator[Raw]:
        """Yield the images of one worker endlessly; a pass yields each of them once."""
        order = epoch_order(len(self.shards), shuffle=True, seed=self.seed, epoch=epoch)
        number = self.rank * self.workers + worker
        mine = order[number :: self.world * self.workers]
        for turn in count():
            random = generator(self.seed, "buffer", epoch, turn, number)
            shuffled = mine[torch.randperm(len(mine), generator=random)].tolist()
            waiting: list[Raw] = []
            for shard in [self.shards[one] for one in shuffled]:
                for (key, start, size, label), file in read_members(shard, self.classes):
                    file.seek(start)
                    waiting.append((shard, key, file.read(size), label))
                    if len(waiting) > self.buffer:
                        place = int(torch.randint(self.buffer, (), generator=random))
                        waiting[place], waiting[-1] = waiting[-1], waiting[place]
                        yield waiting.pop()
            for place in torch.randperm(len(waiting), generator=random).tolist():
                yield waiting[place]


class _Batches(IterableDataset[Batch]):
    """The batches of one rank in one epoch, from number `start`."""

    def __init__(self, loader: StreamLoader, epoch: int, start: int) -> None:
        self.loader, self.epoch, self.start = loader, epoch, start

    def __iter__(self) -> Iterator[Batch]:
        loader, info = self.loader, get_worker_info()
        # The DataLoader reads from its workers in turn, starting with the first, so that one yields
        # batch `start` whichever worker did so in the interrupted run.
        worker = ((0 if info is None else info.id) + self.start) % loader.workers
        images, size = loader.read_images(self.epoch, worker), loader.batch_size
        for batch in range(worker, len(loader), loader.workers):
            raw = list(islice(images, min(size, loader.samples - batch * size)))
            if batch >= self.start:  # earlier ones are read but not decoded
                yield default_collate([self._decode(*one) for one in raw])

    def _decode(self, shard: Path, key: str, data: bytes, label: int) -> tuple[Tensor, int]:
        image = decode(io.BytesIO(data), f"{shard}: {key}")
        seed = (self.loader.seed, "image", self.epoch, shard.name, key)
        return self.loader.config.transform_with(image, *seed), label
