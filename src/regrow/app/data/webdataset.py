# SPDX-License-Identifier: MIT
"""ImageNet as tar shards in WebDataset format."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from regrow.app.data.base import Split
from regrow.app.data.imagenet import IMAGES, SIZES, ImageFileDataModule, import_datasets
from regrow.app.data.tar_shards import ShardImages, StreamLoader
from regrow.data.resumable import ResumableLoader
from regrow.utils.errors import ConfigError, DataError, check_count


def find_shards(what: str, given: str | Sequence[str] | None) -> tuple[Path, ...]:
    """Return the tar files of a folder, a file, a pattern such as "x-*.tar", or a list of these."""
    files: list[Path] = []
    for item in [given] if isinstance(given, str) else given or ["none given"]:
        path = Path(item).expanduser().absolute()
        found = sorted(glob.glob(str(path / "*.tar" if path.is_dir() else path)))
        if not found:
            raise DataError(
                f"{what}: no .tar files in {item}: put {SIZES} on a disk with enough space, as tar "
                f"files of NAME.jpg and NAME.cls, and write {what}=DIR or {what}='DIR/x-*.tar'"
            )
        files += map(Path, found)
    if len({*files}) < len(files):
        raise DataError(f"{what}={given!r} names a shard twice")
    return tuple(files)


class ImageNetShards(ImageFileDataModule):
    """ImageNet as tar files of NAME.jpg and NAME.cls, read sequentially.

    ImageNet's validation set is the TEST set, as in `ImageNet`. The last training shards are used
    for validation, so shards must be written in random order, as WebDataset requires.
    `StreamLoader` documents what an epoch is and how it resumes.

    Args:
        train: Training shards: a folder, a pattern such as "/data/train-*.tar", or a list of these.
        test: Shards of ImageNet's validation set, likewise.
        num_classes: Number of labels.
        val_shards: Number of training shards used for validation.
        epoch_samples: Images per epoch; the default is the size of ImageNet.
        shuffle_buffer: Images in the shuffle buffer of each worker, about 110 kB each.
        **images: Arguments of `ImageFileDataModule`.

    Example:
        >>> data = ImageNetShards("/data/train-*.tar", "/data/val-*.tar")
        >>> data.num_classes, data.input_shape
        (1000, (3, 224, 224))
    """

    def __init__(
        self,
        train: str | Sequence[str] | None = None,
        test: str | Sequence[str] | None = None,
        num_classes: int = 1000,
        val_shards: int = 2,
        epoch_samples: int = IMAGES,
        shuffle_buffer: int = 2000,
        **images: Any,
    ) -> None:
        super().__init__(num_classes, **images)
        self.train, self.test = train, test
        self.val_shards = check_count("val_shards", val_shards)
        self.epoch_samples = check_count("epoch_samples", epoch_samples)
        self.shuffle_buffer = check_count("shuffle_buffer", shuffle_buffer)
        self._splits: dict[str, Any] = {}

    def prepare_data(self) -> None:
        """Check that all shards exist; Lightning calls this in one process per node."""
        import_datasets()
        find_shards("data.train", self.train)
        find_shards("data.test", self.test)

    def load(self) -> None:
        """Find the training shards and list the images of the others, once."""
        if self._splits:
            return
        train, test = find_shards("data.train", self.train), find_shards("data.test", self.test)
        if self.val_shards >= len(train):
            raise ConfigError(
                f"val_shards must leave some of the {len(train)} training shards, got "
                f"{self.val_shards}: write at most {len(train) - 1}"
            )
        val = ShardImages(train[-self.val_shards :], self.num_classes)
        present, count = len(torch.unique(val.labels)), len(val.labels)
        if count >= 4 * self.num_classes and present <= self.num_classes // 2:
            raise DataError(
                f"the last {self.val_shards} training shards have {count} images of {present} of "
                f"{self.num_classes} classes only: write sorted shards again in random order"
            )
        shards, images = train[: -self.val_shards], ShardImages(test, self.num_classes)
        self._splits = {"train": shards, "val": val, "test": images}

    def loader(self, split: Split) -> ResumableLoader:
        """Return a new loader of one split."""
        if split != "train":
            images = self._splits[split]
            return self.loader_of(images, torch.arange(len(images.labels)), split)
        return StreamLoader(
            self._splits["train"],
            self.num_classes,
            self.worker_config("train"),
            batch_size=self.batch_size,
            epoch_samples=self.epoch_samples,
            shuffle_buffer=self.shuffle_buffer,
            seed=self.seed,
        )
