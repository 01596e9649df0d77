# SPDX-License-Identifier: MIT
"""ImageNet as tar shards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from regrow.app.data.base import Split
from regrow.app.data.imagenet import IMAGES, SIZES, Photographs, Transforms
from regrow.app.data.loading.resumable import ResumableLoader
from regrow.app.data.loading.stream_loader import StreamLoader
from regrow.app.data.loading.tar_reader import TarImages, scan_shards
from regrow.utils.errors import ConfigError, DataError, check_count

_BRACES = re.compile(r"\{([^{}]*)\}")


_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand(pattern: str) -> list[str]:
    """What a pattern with braces stands for, as in a shell.

    Args:
        pattern: May hold ranges, whose numbers are as wide as the first, and lists.

    Raises:
        ConfigError: For braces that are neither.

    Example:
        >>> expand("{a,b}-{08..10}.tar")
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    found = _BRACES.search(pattern)
    if found is None:
        if "{" in pattern or "}" in pattern:
            raise ConfigError(f"a brace is missing in {pattern!r}: write {{000000..000146}}")
        return [pattern]
    inner = found.group(1)
    numbers = _RANGE.fullmatch(inner)
    if numbers is not None:
        first, last = numbers.groups()
        words = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    else:
        words = inner.split(",")
    if len(words) < 2 and not (numbers and words):
        raise ConfigError(
            f"{{{inner}}} in {pattern!r} is no range and no list: write {{000000..000146}} or "
            "{a,b}"
        )
    head, tail = pattern[: found.start()], expand(pattern[found.end() :])
    return [head + word + rest for word in words for rest in tail]


def shard_files(what: str, given: str | Sequence[str]) -> tuple[Path, ...]:
    """The shards that are meant, all of which are there.

    Args:
        what: The setting's name, for the message.
        given: A folder of .tar files, a file, a pattern, or a list of these.

    Raises:
        ConfigError: For addresses, which are not read.
        DataError: When one is missing, or a folder holds none.
    """
    files: list[Path] = []
    for pattern in [given] if isinstance(given, str) else given:
        if "://" in pattern or pattern.startswith("pipe:"):
            raise ConfigError(
                f"{what} must be files or folders, got {pattern!r}: fetch or mount the shards first"
            )
        for name in expand(pattern):
            path = Path(name).expanduser().absolute()
            files += sorted(path.glob("*.tar")) if path.is_dir() else [path]
    missing = [str(path) for path in files if not path.is_file()]
    if missing or not files:
        which = f"{len(missing)} of {len(files)} shards are missing: {', '.join(missing[:3])}"
        raise DataError(
            f"{what}={given!r}: {which if missing else 'no .tar file lies there'}"
            f"{' ...' if len(missing) > 3 else ''}"
        )
    if len({*files}) < len(files):
        raise ConfigError(f"{what}={given!r} names a shard twice")
    return tuple(files)


class ImageNetShards(Photographs):
    """Photographs in tar files of NAME.jpg and NAME.cls, read from beginning to end.

    What ImageNet calls its validation set is the TEST set, as in `ImageNet`. Checkpoints are chosen
    on whole training shards that are held out, which is fair where shards were written in random
    order, as WebDataset asks for. `StreamLoader` says what an epoch is, and what a resume needs.
    Evaluation visits every image once, whatever the workers are.

    Args:
        train: Training shards: a pattern such as "/data/imagenet-train-{000000..000146}.tar", a
            folder, or a list of these.
        test: Likewise, of ImageNet's validation set.
        num_classes: How many labels there are.
        val_shards: The last training shards that are held out for validation.
        epoch_samples: Images an epoch; the default is all of ImageNet's, so that an epoch has as
            many steps as a published one.
        shuffle_buffer: Images that wait in each worker to be drawn from, about 110 kB each.
        size: As in `Photographs`, like the rest.
        resize: Likewise.
        batch_size: Likewise.
        seed: Likewise.
        transforms: Likewise.
        mean: Likewise.
        std: Likewise.
        num_workers: Likewise.
        channels_last: Likewise.

    Raises:
        DataError: In `prepare_data` and `setup`, when shards are missing or hold something else.

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
        self.given = {"train": train, "test": test}
        self.val_shards = check_count("val_shards", val_shards)
        self.epoch_samples = check_count("epoch_samples", epoch_samples)
        self.shuffle_buffer = check_count("shuffle_buffer", shuffle_buffer)
        self._train: tuple[Path, ...] = ()
        self._evaluated: dict[str, TarImages] = {}

    def prepare_data(self) -> None:
        """Sees that all shards are there; Lightning calls this in one process a machine."""
        self._shards("train")
        self._shards("test")

    def load(self) -> None:
        """Finds the training shards, and lists the images of the others, once."""
        if self._train:
            return
        train, test = self._shards("train"), self._shards("test")
        if self.val_shards >= len(train):
            raise ConfigError(
                f"val_shards must leave some of the {len(train)} training shards, got "
                f"{self.val_shards}: write at most {len(train) - 1}"
            )
        val = scan_shards(train[-self.val_shards :], self.num_classes)
        _check_shuffled(val, self.num_classes)
        self._evaluated = {"val": val, "test": scan_shards(test, self.num_classes)}
        self._train = train[: -self.val_shards]

    def loader(self, split: Split) -> ResumableLoader:
        """A new loader of one split."""
        if split != "train":
            images = self._evaluated[split]
            return self.loader_of(images, torch.arange(len(images.labels)), split)
        return StreamLoader(
            self._train,
            samples=self.epoch_samples,
            classes=self.num_classes,
            pixels=self.pixels("train"),
            finish=self.finish(),
            batch_size=self.batch_size,
            seed=self.seed,
            buffer=self.shuffle_buffer,
            workers=self.num_workers,
            pin=self.device.type == "cuda",
        )

    def _shards(self, part: str) -> tuple[Path, ...]:
        given = self.given[part]
        if given is None:
            raise DataError(
                f"no data.{part} was given: put {SIZES} where there is room, as tar files of "
                f"NAME.jpg and NAME.cls, and write data.{part}=DIR, or in a shell "
                f"'data.{part}=\"DIR/{part}-{{000000..000146}}.tar\"'"
            )
        return shard_files(f"data.{part}", given)


def _check_shuffled(val: TarImages, classes: int) -> None:
    """Refuses held-out shards of few classes: the others were not written in random order."""
    found, images = len(torch.unique(val.labels)), len(val.labels)
    if images >= 4 * classes and found <= classes // 2:
        raise DataError(
            f"the held-out shards {', '.join(shard.name for shard in val.shards)} hold {images} "
            f"images of only {found} of {classes} classes: the shards are sorted by class, and "
            "must be written again in random order"
        )
