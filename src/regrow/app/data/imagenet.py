# SPDX-License-Identifier: MIT
"""ImageNet, or any other photographs, as one folder of image files a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from regrow.app.data.folders import FolderImages, class_folders, scan
from regrow.app.data.image_loader import ImageLoader
from regrow.app.data.module import Split
from regrow.app.data.photographs import IMAGES, SIZES, Photographs, Transforms
from regrow.app.data.split import check_held_out, stratified
from regrow.errors import DataError


class ImageNet(Photographs):
    """Photographs in `root/train/CLASS/*.JPEG` and `root/val/CLASS/*.JPEG`.

    What ImageNet calls its validation set is the TEST set here, since its own test labels are not
    public: it is measured once, at the end. Checkpoints are chosen on images that are held out from
    the training folder. Reported accuracies are therefore comparable with published ones, which
    are on those 50,000 images, and training sees 1 % fewer images.

    Args:
        root: The folder of `train` and `val`; there is no download.
        num_classes: Class folders in each; None counts them.
        val_size: What is held out from `train` for validation, stratified: a fraction in (0, 1), or
            a number of images.
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
        DataError: In `prepare_data` and `setup`, when the folders are missing or hold something
            else.

    Source: Russakovsky et al. 2015, arXiv 1409.0575.

    Example:
        >>> data = ImageNet(root="/data/imagenet", batch_size=256)
        >>> data.num_classes, data.input_shape
        (1000, (3, 224, 224))
    """

    def __init__(
        self,
        root: str | None = None,
        num_classes: int | None = 1000,
        val_size: float | int = 0.01,
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
        self.root = None if root is None else Path(root).expanduser().absolute()
        if num_classes is None:
            num_classes = len(class_folders(self._part("train")))
        super().__init__(
            num_classes, size, resize, batch_size, seed, transforms, mean, std, num_workers,
            channels_last,
        )  # fmt: skip
        check_held_out("val_size", val_size, IMAGES)
        self.val_size = val_size
        self._splits: dict[str, tuple[FolderImages, Tensor]] = {}

    def prepare_data(self) -> None:
        """Sees that the folders are there; Lightning calls this in one process a machine."""
        for part in ("train", "val"):
            self._part(part)

    def load(self) -> None:
        """Lists and splits the images, once."""
        if self._splits:
            return
        train, test = scan(self._part("train")), scan(self._part("val"))
        _refuse_other_classes(train, test, self.num_classes)
        held_out = check_held_out("val_size", self.val_size, len(train.labels))
        stay, held = stratified(train.labels, held_out, self.seed)
        every = torch.arange(len(test.labels))
        self._splits = {"train": (train, stay), "val": (train, held), "test": (test, every)}

    def loader(self, split: Split) -> ImageLoader:
        """A new loader of one split."""
        return self.loader_of(*self._splits[split], split)

    def _part(self, name: str) -> Path:
        """The folder `root/train` or `root/val`."""
        if self.root is None or not (self.root / name).is_dir():
            found = "no data.root was given" if self.root is None else f"{self.root} has no {name}/"
            raise DataError(
                f"{found}: put {SIZES} where there is room, as train/CLASS/*.JPEG and "
                "val/CLASS/*.JPEG, and write data.root=DIR for the folder of both"
            )
        return self.root / name


def _refuse_other_classes(train: FolderImages, test: FolderImages, expected: int) -> None:
    different = sorted({*train.classes} ^ {*test.classes})
    if different:
        raise DataError(
            f"{train.folder} and {test.folder} must have the same class folders, only one of them "
            f"has {', '.join(different[:5])}{' ...' if len(different) > 5 else ''}: labels are "
            "counted by these names"
        )
    if len(train.classes) != expected:
        raise DataError(
            f"{train.folder} has {len(train.classes)} class folders instead of {expected}: write "
            f"data.num_classes={len(train.classes)}, and the same for the model"
        )
