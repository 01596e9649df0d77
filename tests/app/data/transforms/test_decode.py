# SPDX-License-Identifier: MIT
from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regrow.app.data.transforms.decode import (
    CenterCrop,
    RandomCrop,
    Seeded,
    decode,
    pixels,
    random_box,
)
from regrow.utils.errors import DataError


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 10**6))
def test_boxes_lie_inside_and_have_the_asked_shape(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = random_box(width, height, generator(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    wide, high = right - left, bottom - top
    # half a pixel of rounding either way
    assert wide - 0.5 <= (high + 0.5) * 4 / 3 + 0.5
    assert high - 0.5 <= (wide + 0.5) * 4 / 3 + 0.5


def test_boxes_have_every_area_and_every_place() -> None:
    boxes = np.array([random_box(400, 400, generator(seed)) for seed in range(4000)])
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, shape = wide * high / 400**2, np.log(wide / high)
    small = area[area < 0.5]  # larger ones may not fit in, and are drawn again
    counts, _ = np.histogram(small, bins=6, range=(0.08, 0.5))
    assert area.min() >= 0.078
    assert np.abs(counts / counts.mean() - 1).max() < 0.15
    assert abs(shape.mean()) < 0.02
    assert np.histogram(shape, bins=4, range=np.log([3 / 4, 4 / 3]))[0].min() > 700
    free = boxes[wide < 300]
    place = free[:, 0] / (400 - (free[:, 2] - free[:, 0]))
    assert place.mean() == pytest.approx(0.5, abs=0.02)
    assert place.min() < 0.01
    assert place.max() > 0.99


def test_crops_are_the_box_scaled_and_mirrored_or_not() -> None:
    image, mirrored = picture(90, 60), 0
    for seed in range(200):
        box = random_box(90, 60, generator(seed))
        part = image.crop(box).resize((20, 20), Image.Resampling.BILINEAR)
        out = RandomCrop(20)(image, generator(seed))
        plain = np.asarray(part).transpose(2, 0, 1)
        assert out.dtype == torch.uint8
        is_mirrored = np.array_equal(out.numpy(), plain[:, :, ::-1])
        assert is_mirrored or np.array_equal(out.numpy(), plain)
        mirrored += is_mirrored
    assert 70 < mirrored < 130


def test_scaling_averages_the_pixels_that_fall_on_one() -> None:
    """A picture of two pixels' stripes, made half as wide, is grey: without averaging it is not."""
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    image = Image.fromarray(stripes.repeat(3).reshape(64, 64, 3))
    out = CenterCrop(8, 8)(image, generator())
    assert (out.float() - 127.5).abs().max() < 8


@pytest.mark.parametrize(
    ("width", "height", "scaled"),
    [(500, 375, (42, 32)), (375, 500, (32, 42)), (32, 32, (32, 32)), (33, 20, (52, 32))],
)
def test_evaluation_takes_the_middle(width: int, height: int, scaled: tuple[int, int]) -> None:
    image = picture(width, height)
    whole = np.asarray(image.resize(scaled, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    left, top = (scaled[0] - 28) // 2, (scaled[1] - 28) // 2
    out = CenterCrop(28, 32)(image, generator())
    assert np.array_equal(out.numpy(), whole[:, top : top + 28, left : left + 28])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "JPEG" if mode in ("RGB", "L", "CMYK") else "PNG"  # ImageNet holds these kinds
    file = io.BytesIO()
    picture(30, 20).convert(mode).save(file, kind)
    image = decode(file.getvalue(), "a")
    assert pixels(image).shape == (3, 20, 30)


def test_broken_images_are_named() -> None:
    file = io.BytesIO()
    picture(60, 60).save(file, "JPEG")
    for data in (b"", b"<html>", file.getvalue()[:-500], file.getvalue()[:30]):
        with pytest.raises(DataError, match=r"train/n0/a\.JPEG is not a complete image"):
            decode(data, "train/n0/a.JPEG")


def test_foreign_transforms_are_seeded_for_each_image() -> None:
    def transform(image: Any) -> torch.Tensor:
        return torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)

    seeded = Seeded(transform, 8)
    before = torch.get_rng_state()
    first = seeded(picture(9, 9), generator(4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(seeded(picture(9, 9), generator(4)), first)
    assert not torch.equal(seeded(picture(9, 9), generator(5)), first)


@pytest.mark.parametrize(
    "transform",
    [lambda image: image, lambda image: torch.zeros(3, 8, 8), lambda image: pixels(image)],
)
def test_foreign_transforms_must_give_bytes_of_the_size(transform: Callable[[Any], Any]) -> None:
    with pytest.raises(DataError, match=r"must return uint8 \(3, 8, 8\)"):
        Seeded(transform, 8)(picture(9, 9), generator())
