# SPDX-License-Identifier: MIT
"""Shards read front to back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from regrow.app.data.loading.epoch_order import epoch_order, generator, share
from regrow.app.data.loading.resumable import Batch, ResumableLoader, rank_and_world
from regrow.app.data.loading.tar_reader import members
from regrow.app.data.loading.worker_loader import Finish
from regrow.app.data.transforms.decode import Pixels, decode
from regrow.utils.errors import ConfigError, DataError, check_count


class Raw(NamedTuple):
    """An image as it lies in its shard.

    Attributes:
        shard: The shard's number.
        key: The image's name in it.
        data: Its file.
        label: Its class.
    """

    shard: int
    key: str
    data: bytes
    label: int


class Reader(NamedTuple):
    """Who reads which shards in one epoch: reader `number` of `readers`, all ranks together.

    Attributes:
        shards: All shards.
        classes: Labels are below.
        buffer: Images that wait to be drawn from.
        seed: The run's seed.
        epoch: Counted from 0.
        number: In [0, readers).
        readers: Workers of all ranks.
    """

    shards: tuple[Path, ...]
    classes: int
    buffer: int
    seed: int
    epoch: int
    number: int
    readers: int

    def images(self) -> Iterator[Raw]:
        """Its images without end: every pass hands out each image of its shards once."""
        order = epoch_order(len(self.shards), shuffle=True, seed=self.seed, epoch=self.epoch)
        mine = order[self.number :: self.readers]
        for turn in count():
            drawn = generator(self.seed, "buffer", self.epoch, turn, self.number)
            turned = mine[torch.randperm(len(mine), generator=drawn)]
            found = False
            for image in self._drawn(turned, drawn):
                found = True
                yield image
            if not found:  # or this would go on for ever
                names = ", ".join(str(self.shards[number]) for number in mine.tolist())
                raise DataError(f"{names}: no images in these shards")

    def _drawn(self, shards: Tensor, drawn: torch.Generator) -> Iterator[Raw]:
        """The images of some shards, each taken at random from those that wait."""
        waiting: list[Raw] = []
        for image in self._read(shards):
            if len(waiting) < self.buffer:
                waiting.append(image)
                continue
            place = int(torch.randint(self.buffer, (), generator=drawn))
            yield waiting[place]
            waiting[place] = image
        for place in torch.randperm(len(waiting), generator=drawn).tolist():
            yield waiting[place]

    def _read(self, shards: Tensor) -> Iterator[Raw]:
        for number in shards.tolist():
            for member, file in members(self.shards[number], self.classes):
                file.seek(member.start)
                yield Raw(number, member.key, file.read(member.size), member.label)


class _Batches(IterableDataset[Batch]):
    """One rank's batches of one epoch from `start` on: what each worker process gets."""

    def __init__(
        self, reader: Reader, rank: int, workers: int, samples: int, size: int, start: int,
        pixels: Pixels,
    ) -> None:  # fmt: skip
        self.reader, self.rank, self.workers, self.pixels = reader, rank, workers, pixels
        self.samples, self.size, self.start = samples, size, start

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        # The DataLoader asks its workers in turn, from the first one on: that one makes batch
        # `start`, whoever made it in the run that was cut.
        worker = ((0 if info is None else info.id) + self.start) % self.workers
        reader = self.reader._replace(number=self.rank * self.workers + worker)
        images = reader.images()
        for batch in range(worker, math.ceil(self.samples / self.size), self.workers):
            raw = list(islice(images, min(self.size, self.samples - batch * self.size)))
            if batch >= self.start:  # those before are read, not decoded
                decoded = [self._decoded(one) for one in raw]
                yield torch.stack(decoded), torch.tensor([one.label for one in raw])

    def _decoded(self, raw: Raw) -> Tensor:
        reader = self.reader
        image = decode(raw.data, f"{reader.shards[raw.shard]}: {raw.key}")
        return self.pixels(image, generator(reader.seed, "image", reader.epoch, raw.shard, raw.key))


class StreamLoader(ResumableLoader):
    """Iterates over batches that are read from shards in one go, for storage that hates seeking.

    In every epoch the shards are dealt anew to all workers of all ranks. Each worker draws from a
    buffer of images that it fills from its shards; where they end, it takes them again. An epoch is
    a number of images, the same for every rank. Two limits follow:

    * Where shards and workers do not divide, an epoch leaves some images out and takes others
      twice; which ones changes from epoch to epoch.
    * The order depends on the number of ranks and workers. A run that is resumed in the middle of
      an epoch must have the same ones, or it is refused; it reads that epoch's images once more
      without decoding them, and then goes on exactly where it was cut.

    Args:
        shards: Tar files; at least one for each worker of each rank.
        samples: Images an epoch, all ranks together.
        classes: Labels are below.
        pixels: From a decoded image to its pixels.
        finish: Applied to each batch, in the training process.
        batch_size: Images a batch and rank; the last batch may be smaller.
        seed: The run's seed.
        buffer: Images that wait in each worker.
        workers: Processes a rank that read ahead; 0 reads in the training process.
        pin: Whether batches are put where an accelerator can fetch them by itself.

    Raises:
        ConfigError: When there are fewer shards than workers.
    """

    def __init__(
        self,
        shards: tuple[Path, ...],
        *,
        samples: int,
        classes: int,
        pixels: Pixels,
        finish: Finish,
        batch_size: int,
        seed: int,
        buffer: int,
        workers: int = 0,
        pin: bool = False,
    ) -> None:
        super().__init__(batch_size, seed)
        self.shards = shards
        self.samples = samples
        self.classes = classes
        self.pixels = pixels
        self.finish = finish
        self.buffer = check_count("shuffle_buffer", buffer)
        self.workers = check_count("num_workers", workers, least=0)
        self.pin = pin
        _, world = rank_and_world()
        if len(shards) < world * max(1, workers):
            raise ConfigError(
                f"{len(shards)} training shards are too few for {workers} workers on each of "
                f"{world} ranks: write data.num_workers={len(shards) // world}, or make more shards"
            )

    def __len__(self) -> int:
        return math.ceil(share(self.samples, rank_and_world()[1]) / self.batch_size)

    def identity(self) -> dict[str, int]:
        return super().identity() | {
            "ranks": rank_and_world()[1],
            "workers": max(1, self.workers),
            "batch size": self.batch_size,
            "shards": len(self.shards),
            "buffer": self.buffer,
        }

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        rank, world = rank_and_world()
        workers = max(1, self.workers)
        reader = Reader(
            self.shards, self.classes, self.buffer, self.seed, epoch, 0, world * workers
        )
        samples = share(self.samples, world)
        loader = DataLoader(
            _Batches(reader, rank, workers, samples, self.batch_size, start, self.pixels),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.pin,
            generator=torch.Generator(),  # it draws its workers' seeds, from no one else's numbers
        )
        for images, labels in loader:
            yield self.finish(images, labels)
