# SPDX-License-Identifier: MIT
"""Loader of tar shards that are read sequentially."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from regrow.app.data.loading.epoch_order import epoch_order, generator, samples_per_rank
from regrow.app.data.loading.resumable import Batch, ResumableLoader, rank_and_world
from regrow.app.data.loading.tar_reader import read_members
from regrow.app.data.loading.worker_loader import WorkerConfig
from regrow.app.data.transforms.decode import decode
from regrow.utils.errors import ConfigError, DataError, check_count


class Raw(NamedTuple):
    """An undecoded image.

    Attributes:
        shard: Index of its shard.
        key: Name in the shard.
        data: Bytes of the image file.
        label: Class.
    """

    shard: int
    key: str
    data: bytes
    label: int


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the shards of one worker in one epoch.

    Attributes:
        shards: All shards.
        classes: Number of labels.
        buffer: Images in the shuffle buffer.
        seed: Seed of the run.
        epoch: Counted from 0.
        number: Index of this worker among those of all ranks, in [0, readers).
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
        """Yield images endlessly; every pass yields each image of its shards once."""
        order = epoch_order(len(self.shards), shuffle=True, seed=self.seed, epoch=self.epoch)
        mine = order[self.number :: self.readers]
        for turn in count():
            random = generator(self.seed, "buffer", self.epoch, turn, self.number)
            shuffled = mine[torch.randperm(len(mine), generator=random)]
            empty = True
            for image in self._shuffle_in_buffer(shuffled, random):
                empty = False
                yield image
            if empty:  # would loop for ever
                names = ", ".join(str(self.shards[number]) for number in mine.tolist())
                raise DataError(f"{names}: no images in these shards")

    def _shuffle_in_buffer(self, shards: Tensor, random: torch.Generator) -> Iterator[Raw]:
        """Yield the images of some shards through a shuffle buffer."""
        waiting: list[Raw] = []
        for image in self._read(shards):
            if len(waiting) < self.buffer:
                waiting.append(image)
                continue
            place = int(torch.randint(self.buffer, (), generator=random))
            yield waiting[place]
            waiting[place] = image
        for place in torch.randperm(len(waiting), generator=random).tolist():
            yield waiting[place]

    def _read(self, shards: Tensor) -> Iterator[Raw]:
        for number in shards.tolist():
            for member, file in read_members(self.shards[number], self.classes):
                file.seek(member.start)
                yield Raw(number, member.key, file.read(member.size), member.label)


class _Batches(IterableDataset[Batch]):
    """The batches of one rank in one epoch, from number `start`."""

    def __init__(
        self, loader: StreamLoader, reader: Reader, rank: int, samples: int, start: int
    ) -> None:
        self.reader, self.rank, self.samples, self.start = reader, rank, samples, start
        self.size, self.pixels = loader.batch_size, loader.config.pixels
        self.workers = max(1, loader.config.workers)

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        # The DataLoader reads from its workers in turn, starting with the first, so that one yields
        # batch `start` whichever worker did so in the interrupted run.
        worker = ((0 if info is None else info.id) + self.start) % self.workers
        number = self.rank * self.workers + worker
        images = dataclasses.replace(self.reader, number=number).images()
        for batch in range(worker, math.ceil(self.samples / self.size), self.workers):
            raw = list(islice(images, min(self.size, self.samples - batch * self.size)))
            if batch >= self.start:  # earlier ones are read but not decoded
                decoded = [self._decode(one) for one in raw]
                yield torch.stack(decoded), torch.tensor([one.label for one in raw])

    def _decode(self, raw: Raw) -> Tensor:
        reader = self.reader
        image = decode(raw.data, f"{reader.shards[raw.shard]}: {raw.key}")
        return self.pixels(image, generator(reader.seed, "image", reader.epoch, raw.shard, raw.key))


class StreamLoader(ResumableLoader):
    """Iterate over batches that are read sequentially from tar shards.

    Each epoch assigns the shards anew to all workers of all ranks. A worker shuffles the images of
    its shards through a buffer and starts over when they end. An epoch is a fixed number of images,
    equal on every rank. Two limits follow:

    * If the workers do not divide the shards, an epoch omits some images and repeats others,
      different ones in each epoch.
    * The order depends on the number of ranks and workers, so a mid-epoch resume needs the same
      ones. It reads the earlier images of that epoch again, without decoding them.

    Args:
        shards: Tar files; at least one for each worker of each rank.
        config: Decoding by worker processes.
        samples: Images per epoch, all ranks together.
        classes: Number of labels.
        batch_size: Images per batch and rank; the last batch may be smaller.
        seed: Seed of the run.
        buffer: Images in the shuffle buffer of each worker.

    Raises:
        ConfigError: If there are fewer shards than workers.
    """

    def __init__(
        self,
        shards: tuple[Path, ...],
        config: WorkerConfig,
        *,
        samples: int,
        classes: int,
        batch_size: int,
        seed: int,
        buffer: int,
    ) -> None:
        super().__init__(batch_size, seed)
        self.shards = shards
        self.config = config
        self.samples = samples
        self.classes = classes
        self.buffer = check_count("shuffle_buffer", buffer)
        _, world = rank_and_world()
        workers = config.workers
        if len(shards) < world * max(1, workers):
            raise ConfigError(
                f"{len(shards)} training shards are too few for {workers} workers on each of "
                f"{world} ranks: write data.num_workers={len(shards) // world}, or make more shards"
            )

    def __len__(self) -> int:
        return math.ceil(samples_per_rank(self.samples, rank_and_world()[1]) / self.batch_size)

    def identity(self) -> dict[str, int]:
        return super().identity() | {
            "ranks": rank_and_world()[1],
            "workers": max(1, self.config.workers),
            "batch size": self.batch_size,
            "shards": len(self.shards),
            "buffer": self.buffer,
        }

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        rank, world = rank_and_world()
        readers = world * max(1, self.config.workers)
        reader = Reader(self.shards, self.classes, self.buffer, self.seed, epoch, 0, readers)
        dataset = _Batches(self, reader, rank, samples_per_rank(self.samples, world), start)
        yield from self.config.load(dataset, batch_size=None)
