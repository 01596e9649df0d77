# SPDX-License-Identifier: MIT
"""CIFAR as torchvision reads it: pixels, checksums, and errors for missing files."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regrow.app.data.cifar import CIFAR10, CIFAR100
from regrow.utils.errors import ConfigError, DataError

KINDS = pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
Write = Callable[..., tuple[np.ndarray, list[int]]]


@KINDS
@pytest.mark.vision
def test_batches_are_read_as_they_were_written(
    kind: type[CIFAR10 | CIFAR100], cifar: Write, tmp_path: Path
) -> None:
    rows, labels = cifar(tmp_path, kind.num_classes)
    data = kind(root=str(tmp_path), download=False, val_size=3)
    data.prepare_data()
    (images, targets), (test_images, test_targets) = data.read()
    planes = np.stack([rows[:, 1024 * c : 1024 * (c + 1)].reshape(-1, 32, 32) for c in range(3)], 1)
    assert np.array_equal(images.numpy(), planes)
    assert targets.tolist() == labels
    assert test_images.shape == (12, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert targets.dtype == test_targets.dtype == torch.int64
    assert kind(root=str(tmp_path)).read()[0][0] is images  # read once a process


@pytest.mark.vision
def test_existing_archive_is_verified_unpacked_and_kept(
    cifar: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    cifar(tmp_path / "made", 10)
    folder = tmp_path / "mine"
    folder.mkdir()
    archive = folder / datasets.CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / datasets.CIFAR10.base_folder, datasets.CIFAR10.base_folder)
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:1/nowhere")
    data = CIFAR10(root=str(folder), val_size=3)
    # it is not the published archive, so that torchvision fetches that
    with pytest.raises(DataError, match="Connection refused"):
        data.prepare_data()
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5)
    data.prepare_data()
    assert archive.is_file()
    images, _ = next(iter(data.val_dataloader()))
    assert images.shape == (3, 3, 32, 32)


@KINDS
@pytest.mark.vision
def test_changed_file_is_not_unpickled(
    kind: type[CIFAR10 | CIFAR100], cifar: Write, tmp_path: Path
) -> None:
    cifar(tmp_path, kind.num_classes)
    trace = tmp_path / "trace"
    name = "data_batch_3" if kind is CIFAR10 else "train"
    [path] = tmp_path.rglob(name)
    path.write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % str(trace).encode())
    data = kind(root=str(tmp_path), download=False)
    for call in (data.prepare_data, data.setup):
        with pytest.raises(DataError, match="not found or corrupted"):
            call()
    assert not trace.exists()


@pytest.mark.vision
def test_missing_files_raise_with_what_to_do(tmp_path: Path) -> None:
    data = CIFAR10(root=str(tmp_path), download=False)
    for call in (data.prepare_data, data.setup):
        with pytest.raises(DataError) as error:
            call()
        for words in ("CIFAR10 (170 MB)", str(tmp_path), "data.root=DIR", "data.download=true"):
            assert words in str(error.value)


@KINDS
def test_missing_library_raises_with_its_name(
    kind: type[CIFAR10 | CIFAR100], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    data = kind(root=str(tmp_path))
    message = rf'data {kind.__name__} needs torchvision: pip install "regrow\[vision\]"'
    for call in (data.prepare_data, data.setup):
        with pytest.raises(ConfigError, match=message):
            call()


@pytest.mark.vision
def test_normalization_can_be_set(cifar: Write, tmp_path: Path) -> None:
    cifar(tmp_path, 10)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data = CIFAR10(root=str(tmp_path), mean=mean, std=std, val_size=5)
    images, _ = next(iter(data.test_dataloader()))
    raw = data.read()[1][0].numpy() / 255
    wanted = (raw - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(images.numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert CIFAR10.mean == (0.4914, 0.4822, 0.4465)  # the class is as it was


@pytest.mark.vision
def test_channels_last_changes_no_value(cifar: Write, tmp_path: Path) -> None:
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
def test_wrong_arguments_raise_at_construction(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CIFAR10(**wrong)
