# SPDX-License-Identifier: MIT
"""ImageNet as tar shards in WebDataset format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from regrow.app.data.base import Split
from regrow.app.data.imagenet import IMAGES, SIZES, ImageFileDataModule, Transforms
from regrow.app.data.loading.resumable import ResumableLoader
from regrow.app.data.loading.stream_loader import StreamLoader
from regrow.app.data.loading.tar_reader import ShardImages, list_shard_images
from regrow.utils.errors import ConfigError, DataError, check_count

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> list[str]:
    """Expand ranges and lists in braces, as a shell does.

    Raises:
        ConfigError: For braces that contain neither.

    Example:
        >>> expand_braces("{a,b}-{08..10}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    match = _BRACES.search(pattern)
    if match is None:
        if "{" in pattern or "}" in pattern:
            raise ConfigError(f"a brace is missing in {pattern!r}: write {{000000..000146}}")
        return [pattern]
    inner = match.group(1)
    numbers = _RANGE.fullmatch(inner)
    if numbers is not None:
        first, last = numbers.groups()
        parts = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    else:
        parts = inner.split(",")
    if len(parts) < 2 and not (numbers and parts):
        raise ConfigError(
            f"{{{inner}}} in {pattern!r} is neither a range nor a list: write "
            "{000000..000146} or {a,b}"
        )
    head, tail = pattern[: match.start()], expand_braces(pattern[match.end() :])
    return [head + part + rest for part in parts for rest in tail]


def find_shards(what: str, given: str | Sequence[str]) -> tuple[Path, ...]:
    """Return the existing tar files of a folder, a file, a pattern, or a list of these.

    Raises:
        ConfigError: For URLs, which are not supported, and for repeated files.
        DataError: If a file is missing, or a folder has no tar file.
    """
    files: list[Path] = []
    for pattern in [given] if isinstance(given, str) else given:
        if "://" in pattern or pattern.startswith("pipe:"):
            raise ConfigError(
                f"{what} must be files or folders, got {pattern!r}: fetch or mount the shards first"
            )
        for name in expand_braces(pattern):
            path = Path(name).expanduser().absolute()
            files += sorted(path.glob("*.tar")) if path.is_dir() else [path]
    missing = [str(path) for path in files if not path.is_file()]
    if missing or not files:
        which = f"{len(missing)} of {len(files)} shards are missing: {', '.join(missing[:3])}"
        raise DataError(
            f"{what}={given!r}: {which if missing else 'there is no .tar file'}"
            f"{' ...' if len(missing) > 3 else ''}"
        )
    if len({*files}) < len(files):
        raise ConfigError(f"{what}={given!r} names a shard twice")
    return tuple(files)


class ImageNetShards(ImageFileDataModule):
    """ImageNet as tar files of NAME.jpg and NAME.cls, read sequentially.

    ImageNet's validation set is the TEST set, as in `ImageNet`. The last training shards are used
    for validation, so shards must be written in random order, as WebDataset requires.
    `StreamLoader` documents what an epoch is and how it resumes. Evaluation visits every image once
    for any number of workers.

    Args:
        train: Training shards: a pattern such as "/data/imagenet-train-{000000..000146}.tar", a
            folder, or a list of these.
        test: Shards of ImageNet's validation set, likewise.
        num_classes: Number of labels.
        val_shards: Number of training shards used for validation.
        epoch_samples: Images per epoch; the default is the size of ImageNet.
        shuffle_buffer: Images in the shuffle buffer of each worker, about 110 kB each.
        size: As in `ImageFileDataModule`, like all other arguments.

    Raises:
        DataError: In `prepare_data` and `setup`, if shards are missing or invalid.

    Example:
        >>> data = ImageNetShards("/data/train-{000000..000146}.tar", "/data/val-{00..06}.tar")
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
        size: int = 224,
        resize: int = 256,
        batch_size: int = 128,
        seed: int = 0,
        transforms: Transforms = "pillow",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        num_workers: int = 4,
        channels_last: bool = True,
    ) -> None:
        super().__init__(
            num_classes, size, resize, batch_size, seed, transforms, mean, std, num_workers,
            channels_last,
        )  # fmt: skip
        self.patterns = {"train": train, "test": test}
        self.val_shards = check_count("val_shards", val_shards)
        self.epoch_samples = check_count("epoch_samples", epoch_samples)
        self.shuffle_buffer = check_count("shuffle_buffer", shuffle_buffer)
        self._train: tuple[Path, ...] = ()
        self._evaluated: dict[str, ShardImages] = {}

    def prepare_data(self) -> None:
        """Check that all shards exist; Lightning calls this in one process per node."""
        self._shards("train")
        self._shards("test")

    def load(self) -> None:
        """Find the training shards and list the images of the others, once."""
        if self._train:
            return
        train, test = self._shards("train"), self._shards("test")
        if self.val_shards >= len(train):
            raise ConfigError(
                f"val_shards must leave some of the {len(train)} training shards, got "
                f"{self.val_shards}: write at most {len(train) - 1}"
            )
        val = list_shard_images(train[-self.val_shards :], self.num_classes)
        _check_shuffled(val, self.num_classes)
        self._evaluated = {"val": val, "test": list_shard_images(test, self.num_classes)}
        self._train = train[: -self.val_shards]

    def loader(self, split: Split) -> ResumableLoader:
        """Return a new loader of one split."""
        if split != "train":
            images = self._evaluated[split]
            return self.loader_of(images, torch.arange(len(images.labels)), split)
        return StreamLoader(
            self._train,
            self.worker_config("train"),
            samples=self.epoch_samples,
            classes=self.num_classes,
            batch_size=self.batch_size,
            seed=self.seed,
            buffer=self.shuffle_buffer,
        )

    def _shards(self, part: str) -> tuple[Path, ...]:
        pattern = self.patterns[part]
        if pattern is None:
            raise DataError(
                f"no data.{part} was given: put {SIZES} on a disk with enough space, as tar files "
                f"of NAME.jpg and NAME.cls, and write data.{part}=DIR, or in a shell "
                f"'data.{part}=\"DIR/{part}-{{000000..000146}}.tar\"'"
            )
        return find_shards(f"data.{part}", pattern)


def _check_shuffled(val: ShardImages, classes: int) -> None:
    """Raise if the validation shards have few classes: the shards are not in random order."""
    present, images = len(torch.unique(val.labels)), len(val.labels)
    if images >= 4 * classes and present <= classes // 2:
        raise DataError(
            f"the validation shards {', '.join(shard.name for shard in val.shards)} have {images} "
            f"images of only {present} of {classes} classes: the shards are sorted by class, and "
            "must be written again in random order"
        )
