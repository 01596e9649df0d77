# SPDX-License-Identifier: MIT
"""Beside the real torchvision, where it is installed: the same pixels, and its own transforms."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = importlib.util.find_spec("torchvision") is not None
if HERE and not torch.cuda.is_available() and "torchvision" not in sys.modules:
    # Its wheel is built for CUDA: beside a CPU-only torch these two operators are missing, and
    # without them neither torchvision nor Lightning can be imported.
    _KEPT_ALIVE = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _KEPT_ALIVE.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from PIL import Image  # noqa: E402

from regrow.app.data.imagenet import ImageNet  # noqa: E402
from regrow.app.data.transforms.decode import CenterCrop, RandomCrop, pixels, random_box  # noqa: E402
from regrow.utils.errors import ConfigError  # noqa: E402

needs_it = pytest.mark.skipif(not HERE, reason='needs torchvision: pip install "regrow[vision]"')


def make(root: Path, **given: Any) -> ImageNet:
    usual = {"num_classes": 3, "val_size": 6, "size": 16, "resize": 20, "batch_size": 4}
    return ImageNet(root=str(root), **usual | {"num_workers": 0} | given)


@pytest.mark.skipif(HERE, reason="torchvision is installed")
def test_what_must_be_installed_is_named() -> None:
    with pytest.raises(ConfigError, match=r'torchvision: pip install "regrow\[vision\]"'):
        ImageNet(transforms="torchvision")


@needs_it
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 300), (61, 47)])
def test_our_crops_are_torchvisions_to_the_bit(size: tuple[int, int]) -> None:
    from torchvision.transforms import v2

    random = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (*reversed(size), 3), dtype=torch.uint8, generator=random)
    image = Image.fromarray(noise.numpy())
    evaluated = v2.Compose([v2.Resize(48), v2.CenterCrop(40), v2.PILToTensor()])
    assert torch.equal(CenterCrop(40, 48)(image, random), evaluated(image))
    for seed in range(20):
        left, top, right, bottom = random_box(*size, torch.Generator().manual_seed(seed))
        crop = v2.functional.resized_crop(image, top, left, bottom - top, right - left, [40, 40])
        out = RandomCrop(40)(image, torch.Generator().manual_seed(seed))
        assert torch.equal(out, pixels(crop)) or torch.equal(out, pixels(crop).flip(2))


@needs_it
def test_our_boxes_are_drawn_as_torchvisions_are() -> None:
    from torchvision.transforms import v2

    image = Image.new("RGB", (320, 240))
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(8)
    theirs = [crop.make_params([image]) for _ in range(4000)]
    boxes = [random_box(320, 240, torch.Generator().manual_seed(seed)) for seed in range(4000)]
    ours = torch.tensor([[t, le, b - t, r - le] for le, t, r, b in boxes]).double()
    wanted = torch.tensor([[p[k] for k in ("top", "left", "height", "width")] for p in theirs])
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        difference = ours.quantile(quantile, 0) - wanted.double().quantile(quantile, 0)
        assert difference.abs().max() < 8


@needs_it
@pytest.mark.parametrize("foreign", [False, True])
def test_its_transforms_depend_on_seed_epoch_and_image_alone(
    photographs: Path, foreign: bool
) -> None:
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(16), v2.TrivialAugmentWide(), v2.PILToTensor()]
    transforms = v2.Compose(steps) if foreign else "torchvision"

    def epoch(workers: int, number: int) -> torch.Tensor:
        data = make(photographs, transforms=transforms, num_workers=workers)
        loader = data.train_dataloader()
        loader.set_epoch(number)
        return torch.cat([images for images, _ in loader])

    before = torch.get_rng_state()
    assert torch.equal(epoch(0, 1), epoch(2, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(epoch(0, 1), epoch(0, 2))
