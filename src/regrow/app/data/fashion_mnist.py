# SPDX-License-Identifier: MIT
"""Fashion-MNIST."""

from __future__ import annotations

import functools
from pathlib import Path

from torch import Tensor

from regrow.app.data.base import ImageDataModule, Samples
from regrow.app.data.formats import download, read_idx
from regrow.utils.errors import DataError

ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CACHE = Path("~/.cache/regrow/fashion-mnist")
# sha256 of the unpacked files
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


class FashionMNIST(ImageDataModule):
    """60,000 training and 10,000 test gray images of clothes, 28 x 28 pixels, 10 classes.

    Args:
        root: Folder of the four IDX files, plain or .gz; None: Debian's package
            dataset-fashion-mnist, then ~/.cache/regrow/fashion-mnist.
        download: Whether `prepare_data` may download missing files; they are verified.
        batch_size: As in `ImageDataModule`, like `val_size`, `seed` and `augment`.

    Source: Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747.

    Example:
        >>> data = FashionMNIST(batch_size=256, val_size=10000)
        >>> data.num_classes, data.input_shape
        (10, (1, 28, 28))
    """

    num_classes = 10
    input_shape = (1, 28, 28)
    samples = 60000
    scale = 255.0
    mean = (0.2860,)
    std = (0.3530,)

    def __init__(
        self,
        root: str | None = None,
        download: bool = True,
        batch_size: int = 128,
        val_size: float | int = 0.1,
        seed: int = 0,
        augment: str | None = None,
    ) -> None:
        super().__init__(batch_size, val_size, seed, augment)
        self.root = None if root is None else Path(root).expanduser().absolute()
        self.download = download

    def prepare_data(self) -> None:
        """Download what is missing; Lightning calls this in one process per node.

        Raises:
            DataError: If files are missing and cannot be downloaded.
        """
        if self._folder() is not None:
            return
        if not self.download:
            raise DataError(self._missing("or let data.download=true fetch them"))
        folder = self.root or CACHE.expanduser()
        for name, sha256 in FILES.items():
            if _find(folder, name) is None:
                try:
                    download(f"{ADDRESS}{name}.gz", folder / f"{name}.gz", sha256)
                except OSError as error:
                    hint = f"or fetch them by other means: the download failed ({error})"
                    raise DataError(self._missing(hint)) from error

    def read(self) -> tuple[Samples, Samples]:
        """Return the training and the test set, decoded once per process.

        Raises:
            DataError: If files are missing.
        """
        folder = self._folder()
        if folder is None:
            raise DataError(self._missing("or call prepare_data() first"))
        return _read(folder, "train"), _read(folder, "t10k")

    def _folder(self) -> Path | None:
        complete = (f for f in self._folders() if all(_find(f, name) for name in FILES))
        return next(complete, None)

    def _folders(self) -> list[Path]:
        return [DEBIAN, CACHE.expanduser()] if self.root is None else [self.root]

    def _missing(self, otherwise: str) -> str:
        places = " or ".join(str(folder) for folder in self._folders())
        return (
            f"Fashion-MNIST needs {', '.join(FILES)} (plain or .gz), not all found in {places}: "
            "install Debian's package dataset-fashion-mnist, or write data.root=DIR, " + otherwise
        )


def _find(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


@functools.cache
def _read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    paths = (_find(folder, name) for name in FILES if name.startswith(part))
    images, labels = (read_idx(path) for path in paths if path is not None)
    return images.unsqueeze(1), labels.long()
