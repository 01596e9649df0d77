# SPDX-License-Identifier: MIT
from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regrow.app.data import worker_loader as image_loader
from regrow.app.data.imagenet import ImageNet
from regrow.utils.errors import ConfigError, DataError, StateError


def make(root: Path, **given: Any) -> ImageNet:
    usual = {"num_classes": 3, "val_size": 6, "size": 16, "resize": 20, "batch_size": 4}
    return ImageNet(root=str(root), **usual | {"num_workers": 0} | given)


def evaluated(path: Path) -> np.ndarray:
    """The middle 16 x 16 of an image whose shorter side is scaled to 20, by Pillow alone."""
    from PIL import Image

    image = Image.open(path)
    sides = [int(20 * side / min(image.size)) for side in image.size]
    left, top = (round((side - 16) / 2) for side in sides)
    small = image.resize(sides, Image.Resampling.BILINEAR)
    return np.array(small.crop((left, top, left + 16, top + 16))).transpose(2, 0, 1)


def epoch(data: ImageNet, number: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = data.train_dataloader()
    loader.set_epoch(number)
    return list(loader)


@pytest.mark.vision
def test_splits_are_disjoint_stratified_and_the_val_folder_is_the_test_set(
    photographs: Path,
) -> None:
    data = make(photographs)
    data.prepare_data()
    data.setup()
    found = {
        split: {data._splits[split][0].samples[i][0] for i in data._splits[split][1].tolist()}
        for split in ("train", "val", "test")
    }
    assert found["train"] | found["val"] == {str(p) for p in photographs.glob("train/*/*")}
    assert not found["train"] & found["val"]
    assert found["test"] == {str(path) for path in photographs.glob("val/*/*")}
    for label in range(3):
        assert sum(f"/n0{label}/" in name for name in found["val"]) == 2
    assert [len(list(loader)) for loader in (data.val_dataloader(), data.test_dataloader())] == [
        2,
        3,
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.vision
def test_evaluated_images_are_the_files_in_order(photographs: Path, workers: int) -> None:
    data = make(photographs, num_workers=workers, channels_last=False)
    batches = list(data.test_dataloader())
    paths = sorted(photographs.glob("val/*/*"))
    raw = [evaluated(path) for path in paths]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    wanted = (np.stack(raw) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    images = torch.cat([images for images, _ in batches])
    np.testing.assert_allclose(images.numpy(), wanted, rtol=1e-4, atol=1e-5)
    labels = torch.cat([labels for _, labels in batches])
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert images.dtype == torch.float32


@pytest.mark.vision
def test_pixels_depend_only_on_seed_epoch_and_image(photographs: Path) -> None:
    """Not on workers, nor on batches, nor on global generators, which stay as they were."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    plain = epoch(make(photographs), 1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    worked = epoch(make(photographs, num_workers=2), 1)
    assert torch.equal(torch.get_rng_state(), before)
    for (images, labels), (same, numbers) in zip(plain, worked, strict=True):
        assert torch.equal(images, same)
        assert torch.equal(labels, numbers)
    one = torch.cat([images for images, _ in epoch(make(photographs, batch_size=18), 1)])
    assert torch.equal(torch.cat([images for images, _ in plain]), one)


@pytest.mark.vision
def test_crops_differ_between_epochs_and_seeds(photographs: Path) -> None:
    def drawn(number: int, **given: Any) -> set[bytes]:
        data = make(photographs, channels_last=False, **given)
        return {image.numpy().tobytes() for images, _ in epoch(data, number) for image in images}

    assert len(drawn(1)) == 18
    assert not drawn(1) & drawn(2)
    assert not drawn(1) & drawn(1, seed=1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", [1, 3, 5])
@pytest.mark.vision
def test_loaded_position_continues_with_the_next_batch(
    photographs: Path, workers: int, cut: int
) -> None:
    first, again = make(photographs, num_workers=2), make(photographs, num_workers=workers)
    loader = first.train_dataloader()
    loader.set_epoch(1)
    batches = iter(loader)
    seen = [next(batches) for _ in range(cut)]
    again.load_state_dict(first.state_dict())
    assert all(type(value) is int for value in first.state_dict().values())
    rest = epoch(again, 1)
    for (images, _), (wanted, _) in zip(seen + rest, epoch(make(photographs), 1), strict=True):
        assert torch.equal(images, wanted)


@pytest.mark.vision
def test_position_of_other_batches_raises(photographs: Path) -> None:
    first = make(photographs)
    next(iter(first.train_dataloader()))
    other = make(photographs, batch_size=5)
    other.load_state_dict(first.state_dict())
    with pytest.raises(StateError, match="saved at batch 1 of an epoch of 5 batches with seed 0"):
        other.train_dataloader()


@pytest.mark.vision
def test_ranks_share_one_order(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.cat([images for images, _ in epoch(make(photographs, batch_size=18))])
    parts = []
    for rank in range(4):
        monkeypatch.setattr(image_loader, "rank_and_world", lambda rank=rank: (rank, 4))
        batches = epoch(make(photographs, batch_size=2))
        assert len(batches) == len(make(photographs, batch_size=2).train_dataloader()) == 3
        parts.append(torch.cat([images for images, _ in batches]))
    dealt = torch.stack(parts, dim=1).flatten(0, 1)
    assert torch.equal(dealt, torch.cat([whole, whole[:2]]))  # 18 images, 5 for each rank


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.vision
def test_batches_may_be_channels_last(photographs: Path, last: bool) -> None:
    images, _ = next(iter(make(photographs, channels_last=last).train_dataloader()))
    layout = torch.channels_last if last else torch.contiguous_format
    assert images.is_contiguous(memory_format=layout)
    assert images.shape == (4, 3, 16, 16)


@pytest.mark.vision
def test_number_of_classes_is_checked_if_given(photographs: Path) -> None:
    assert make(photographs, num_classes=None).num_classes == 3
    with pytest.raises(DataError, match=r"3 class folders instead of 1000.*num_classes=3"):
        make(photographs, num_classes=1000).setup()


@pytest.mark.vision
def test_missing_data_raises_with_its_place_and_size(tmp_path: Path) -> None:
    for data in (ImageNet(), ImageNet(root=str(tmp_path))):
        for call in (data.prepare_data, data.setup):
            with pytest.raises(DataError) as error:
                call()
            for words in ("138 GB", "6.3 GB", "train/CLASS/*.JPEG", "val/CLASS", "data.root=DIR"):
                assert words in str(error.value)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(DataError, match="138 GB"):
        ImageNet(num_classes=None)


@pytest.mark.vision
def test_folders_of_another_layout_raise(photographs: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(photographs, tmp_path / name))

    flat = copy("flat")
    for path in flat.glob("val/*/*"):
        path.rename(flat / "val" / path.name)
    for folder in flat.glob("val/n*"):
        if folder.is_dir():
            folder.rmdir()
    with pytest.raises(DataError, match=r"find any class folder.*CLASS/NAME\.JPEG"):
        make(flat).setup()

    other = copy("other")
    (other / "val" / "n02").rename(other / "val" / "n03")
    with pytest.raises(DataError, match="same class folders, only one of them has n02, n03"):
        make(other).setup()

    empty = copy("empty")
    for path in empty.glob("train/n01/*"):
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(DataError, match="no valid file for the classes n01"):
        make(empty).setup()

    broken = copy("broken")
    (broken / "val" / "n01" / "n01_1.JPEG").write_bytes(b"\xff\xd8")
    with pytest.raises(DataError, match=r"n01_1\.JPEG is not a complete image"):
        list(make(broken).test_dataloader())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resize": 15}, "resize must be at least size=16, got 15: .*write resize=18"),
        ({"transforms": "randaugment"}, "did you mean 'rand_augment'"),
        ({"num_workers": -1}, "num_workers must be"),
        ({"num_classes": 1}, "num_classes must be"),
        ({"val_size": 1.0}, "val_size must be"),
        ({"std": [1, 1]}, "std must be 3 numbers above 0"),
        ({"size": 0}, "size must be"),
    ],
)
def test_wrong_arguments_raise_at_construction(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(Path("nowhere"), **wrong)


def test_missing_library_raises_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "val"):
        (tmp_path / part / "n01").mkdir(parents=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    data = ImageNet(root=str(tmp_path))
    for call in (data.prepare_data, data.setup):
        with pytest.raises(ConfigError, match=r'torchvision: pip install "regrow\[vision\]"'):
            call()


@pytest.mark.vision
@pytest.mark.parametrize("foreign", [False, True])
def test_custom_transforms_depend_only_on_seed_epoch_and_image(
    photographs: Path, foreign: bool
) -> None:
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(16), v2.TrivialAugmentWide(), v2.PILToTensor()]
    transforms = v2.Compose(steps) if foreign else "rand_augment"

    def images(workers: int, number: int) -> torch.Tensor:
        data = make(photographs, transforms=transforms, num_workers=workers)
        return torch.cat([images for images, _ in epoch(data, number)])

    before = torch.get_rng_state()
    assert torch.equal(images(0, 1), images(2, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(images(0, 1), images(0, 2))
    plain = torch.cat([images for images, _ in epoch(make(photographs), 1)])
    assert not torch.equal(images(0, 1), plain)


@pytest.mark.vision
@pytest.mark.parametrize("draw", [lambda: np.random.randint(4), lambda: random.randrange(4)])
def test_transforms_may_draw_from_numpy_and_random(photographs: Path, draw: Any) -> None:
    def crop(image: Any) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels[:, draw() :, draw() :][:, :16, :16]

    def images(workers: int, number: int) -> torch.Tensor:
        data = make(photographs, transforms=crop, num_workers=workers)
        return torch.cat([images for images, _ in epoch(data, number)])

    before = np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(images(0, 1), images(2, 1))
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before
    assert not torch.equal(images(0, 1), images(0, 2))


@pytest.mark.vision
@pytest.mark.parametrize("wrong", ["size", "dtype"])
def test_custom_transforms_must_return_uint8_of_the_size(photographs: Path, wrong: str) -> None:
    from torchvision.transforms import v2

    steps = [v2.Resize((16, 16) if wrong == "dtype" else (8, 8)), v2.ToImage()]
    steps.append(v2.ToDtype(torch.float32 if wrong == "dtype" else torch.uint8, scale=True))
    with pytest.raises(DataError, match=r"must return uint8 \(3, 16, 16\), as PILToTensor does"):
        epoch(make(photographs, transforms=v2.Compose(steps)))
