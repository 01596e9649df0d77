# SPDX-License-Identifier: MIT
"""Loader of tar shards that are read sequentially."""

import io
import math
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from regrow.app.data.loading.image_transforms import decode
from regrow.app.data.loading.tar_reader import read_members
from regrow.app.data.loading.worker_loader import WorkerConfig
from regrow.data.epoch_order import epoch_order, generator, samples_per_rank
from regrow.data.resumable import Batch, ResumableLoader, rank_and_world
from regrow.utils.errors import ConfigError, check_count

Raw = tuple[Path, str, bytes, int]
"""An image that is not decoded yet: its shard, name, bytes and class."""


class StreamLoader(ResumableLoader):
    """Iterate over batches that are read sequentially from tar shards.

    Each epoch assigns the shards anew to all workers of all ranks. A worker shuffles the images of
    its shards through a buffer and starts over when they end. An epoch is a fixed number of images,
    equal on every rank. Two limits follow:

    * If the workers do not divide the shards, an epoch omits some images and repeats others,
      different ones in each epoch.
    * The order depends on the number of ranks and workers, so a mid-epoch resume needs the same
      ones. It reads the earlier images of that epoch again, without decoding them.

    Args: `size` is (images per batch and rank, images per epoch of all ranks), `buffer` the images
    in the shuffle buffer of each worker. There must be a shard for each worker of each rank.
    """

    def __init__(
        self,
        shards: tuple[Path, ...],
        config: WorkerConfig,
        size: tuple[int, int],
        classes: int,
        seed: int,
        buffer: int,
    ) -> None:
        super().__init__(size[0], seed)
        self.shards, self.config, self.classes = shards, config, classes
        self.buffer = check_count("shuffle_buffer", buffer)
        self.workers, (self.rank, self.world) = max(1, config.workers), rank_and_world()
        self.samples = samples_per_rank(size[1], self.world)
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
        random = generator(self.loader.seed, "image", self.epoch, shard.name, key)
        return self.loader.config.transform_with(image, random), label
