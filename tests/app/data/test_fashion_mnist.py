# SPDX-License-Identifier: MIT
from __future__ import annotations

import gzip
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_images import write_fashion_mnist

from regrow.app.data.fashion_mnist import DEBIAN, FashionMNIST
from regrow.utils.errors import ConfigError, DataError

pytestmark = pytest.mark.vision
# sha256 of the published files, unpacked
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def test_compressed_files_are_read_and_left_unchanged(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "mine", train=30, test=6)
    before = sorted((tmp_path / "mine").iterdir())
    data = FashionMNIST(root=str(tmp_path / "mine"), val_size=3, download=False)
    data.prepare_data()
    data.setup()
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 27
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 3
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (6, 1, 28, 28)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5]
    wanted = np.random.default_rng(6).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    assert np.array_equal(data.read()[1][0][:, 0].numpy(), wanted)
    assert sorted((tmp_path / "mine").iterdir()) == before


def test_torchvisions_own_folder_is_read(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "packed", train=30, test=6)
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (tmp_path / "packed").iterdir():
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    data = FashionMNIST(root=str(tmp_path / "root"), download=False)
    data.prepare_data()
    assert data.read()[0][0].shape == (30, 1, 28, 28)


SHORT = gzip.compress(b"short", mtime=0)  # the same in each process that collects tests


@pytest.mark.parametrize("damage", [b"", b"<html>", SHORT, b"\x1f\x8bxxxx"])
def test_damaged_files_raise(damage: bytes, tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path / "mine", train=30, test=6)
    (tmp_path / "mine" / "t10k-labels-idx1-ubyte.gz").write_bytes(damage)
    data = FashionMNIST(root=str(tmp_path / "mine"))
    for call in (data.prepare_data, data.setup):
        with pytest.raises(DataError, match="could not be read from"):
            call()


def test_wrong_download_raises(
    public: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers with other files; torchvision compares their MD5 sums."""
    from torchvision import datasets

    folder, address = public
    write_fashion_mnist(folder)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address])
    data = FashionMNIST(root=str(tmp_path / "mine"))
    with pytest.raises(DataError, match="Error downloading train-images"):
        data.prepare_data()


def test_missing_files_are_downloaded_once(
    public: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    folder, address = public
    write_fashion_mnist(folder, train=30, test=6)
    sums = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in folder.iterdir()]
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address])
    monkeypatch.setattr(datasets.FashionMNIST, "resources", sums)
    data = FashionMNIST(root=str(tmp_path / "mine"), val_size=3)
    data.prepare_data()
    shutil.rmtree(folder)
    data.prepare_data()
    assert data.read()[0][0].shape == (30, 1, 28, 28)


def test_missing_files_raise_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        FashionMNIST(root=str(tmp_path / "nowhere"), download=False).prepare_data()
    for words in ("FashionMNIST (31 MB)", "nowhere", "data.root=DIR", "data.download=true"):
        assert words in str(error.value)
    assert not (tmp_path / "nowhere").exists()


def test_validation_must_leave_something_to_train_on() -> None:
    with pytest.raises(ConfigError, match="from 1 to 59999, got 60000"):
        FashionMNIST(val_size=60000)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_real_files_have_their_known_content() -> None:
    data = FashionMNIST(download=False)
    data.prepare_data()
    (images, labels), (test_images, test_labels) = data.read()
    assert images.shape == (60000, 1, 28, 28)
    assert test_images.shape == (10000, 1, 28, 28)
    assert np.bincount(labels).tolist() == [6000] * 10
    assert np.bincount(test_labels).tolist() == [1000] * 10
    assert data.read()[0][0] is images  # decoded once
    counts, values = np.bincount(images.flatten(), minlength=256), np.arange(256) / 255
    mean = np.average(values, weights=counts)
    assert data.mean[0] == pytest.approx(mean, abs=1e-4)
    assert data.std[0] == pytest.approx(
        np.average((values - mean) ** 2, weights=counts) ** 0.5, abs=1e-4
    )
    for name, sha256 in FILES.items():
        with gzip.open(DEBIAN / f"{name}.gz") as stream:
            assert hashlib.sha256(stream.read()).hexdigest() == sha256
