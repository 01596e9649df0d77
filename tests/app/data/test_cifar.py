# SPDX-License-Identifier: MIT
from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regrow.app.data import cifar as module
from regrow.app.data.cifar import CIFAR10, CIFAR100
from regrow.utils.errors import ConfigError, DataError

KINDS = pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
Write = Callable[..., tuple[np.ndarray, list[int]]]


@pytest.fixture
def published(
    public: tuple[Path, str], cifar: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder that stands for the public address, with both archives; nothing else exists."""
    folder, address = public
    for kind in (CIFAR10, CIFAR100):
        cifar(tmp_path / "made", kind.num_classes)
        release = kind.release
        with tarfile.open(folder / release.archive, "w:gz") as tar:
            tar.add(tmp_path / "made" / release.folder, release.folder)
        sha256 = hashlib.sha256((folder / release.archive).read_bytes()).hexdigest()
        monkeypatch.setattr(kind, "release", release._replace(sha256=sha256))
    monkeypatch.setattr(module, "ADDRESS", address)
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    return folder


@KINDS
def test_batches_are_read_as_they_were_written(
    kind: type[CIFAR10 | CIFAR100], cifar: Write, tmp_path: Path
) -> None:
    rows, labels = cifar(tmp_path, kind.num_classes)
    (images, targets), (test_images, test_targets) = kind(root=str(tmp_path)).read()
    planes = np.stack([rows[:, 1024 * c : 1024 * (c + 1)].reshape(-1, 32, 32) for c in range(3)], 1)
    assert np.array_equal(images.numpy(), planes)
    assert targets.tolist() == labels
    assert test_images.shape == (12, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert targets.dtype == test_targets.dtype == torch.int64
    inner = kind(root=str(tmp_path / kind.release.folder))
    assert inner.read()[0][0] is images  # the folder itself will do; read once a process


@KINDS
@pytest.mark.parametrize("given", [True, False])
def test_the_archive_is_fetched_once(
    kind: type[CIFAR10 | CIFAR100], given: bool, published: Path, tmp_path: Path
) -> None:
    folder = tmp_path / ("mine" if given else "cache")
    data = kind(root=str(folder) if given else None, val_size=3, augment=None)
    data.prepare_data()
    assert [path.name for path in folder.iterdir()] == [kind.release.folder]
    for path in published.iterdir():
        path.unlink()
    data.prepare_data()
    data.setup()
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (3, 3, 32, 32)
    assert max(labels.tolist()) < data.num_classes


def test_an_archive_that_lies_there_is_unpacked_and_kept(published: Path, tmp_path: Path) -> None:
    folder, archive = tmp_path / "mine", CIFAR10.release.archive
    folder.mkdir()
    (published / archive).rename(folder / archive)
    CIFAR10(root=str(folder), download=False).prepare_data()
    assert sorted(path.name for path in folder.iterdir()) == [CIFAR10.release.folder, archive]


def test_another_archive_is_refused(published: Path, tmp_path: Path) -> None:
    archive = published / CIFAR10.release.archive
    archive.write_bytes(archive.read_bytes() + b"\0")
    data = CIFAR10(root=str(tmp_path / "mine"))
    with pytest.raises(DataError, match=r"CIFAR-10 needs .*download failed.*nothing was kept"):
        data.prepare_data()
    assert list((tmp_path / "mine").iterdir()) == []
    archive.rename(tmp_path / "mine" / archive.name)
    with pytest.raises(DataError, match="is not the published archive"):
        data.prepare_data()


@KINDS
def test_what_is_missing_is_named_with_its_place_and_size(
    kind: type[CIFAR10 | CIFAR100], published: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as error:
        kind(download=False).prepare_data()
    words = (*kind.release.train, *kind.release.test, kind.release.archive, kind.release.size)
    for word in (*words, str(tmp_path / "cache"), "data.root=DIR", "data.download=true"):
        assert word in str(error.value)
    with pytest.raises(DataError, match="call prepare_data"):
        kind(root=str(tmp_path / "nowhere")).setup()


def test_sizes_are_those_of_the_published_archives() -> None:
    assert CIFAR10.release.size == "170 MB"
    assert CIFAR100.release.size == "169 MB"
    assert (CIFAR10.samples, CIFAR100.samples) == (50000, 50000)


def test_normalisation_may_be_another(cifar: Write, tmp_path: Path) -> None:
    cifar(tmp_path, 10)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data = CIFAR10(root=str(tmp_path), mean=mean, std=std, val_size=5)
    images, _ = next(iter(data.test_dataloader()))
    raw = data.read()[1][0].numpy() / 255
    wanted = (raw - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(images.numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert CIFAR10.mean == (0.4914, 0.4822, 0.4465)  # the class is as it was


def test_channels_last_is_a_layout_and_changes_no_value(cifar: Write, tmp_path: Path) -> None:
    cifar(tmp_path, 10)
    plain, last = (
        next(iter(CIFAR10(root=str(tmp_path), val_size=5, channels_last=is_).train_dataloader()))[0]
        for is_ in (False, True)
    )
    assert torch.equal(plain, last)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mean": (0.5, 0.5)}, "mean must be 3 numbers, one per channel"),
        ({"std": (0.5, 0.5, 0.0)}, "std must be 3 numbers above 0"),
        ({"mean": "0.5"}, "mean must be 3 numbers"),
        ({"augment": ["crop_flop"]}, "did you mean 'crop_flip'"),
        ({"val_size": 50000}, "from 1 to 49999"),
    ],
)
def test_arguments_are_checked_at_construction(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CIFAR10(**wrong)
