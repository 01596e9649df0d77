# SPDX-License-Identifier: MIT
"""Each operation on a whole batch is Pillow's on each image, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from regrow.app.data.transforms import affine_ops as warps
from regrow.app.data.transforms import color_ops
from regrow.app.data.transforms.rand_augment import OPERATIONS, rand_augment

FILL = (10, 20, 30)
Picture = Callable[[Image.Image], Image.Image]


def batch() -> Tensor:
    """Smooth pictures, noise, one colour, two color_ops."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32] / 31
    smooth = [
        np.stack([a * rows + b * columns + c * rows * columns for a, b, c in random.random((3, 3))])
        for _ in range(12)
    ]
    images = [(picture / picture.max() * 200 + 20).astype(np.uint8) for picture in smooth]
    images += list(random.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8))
    halves = np.broadcast_to(np.where(rows < 0.3, 3, 250), (3, 32, 32)).astype(np.uint8)
    return torch.from_numpy(np.stack([*images, np.full((3, 32, 32), 77, np.uint8), halves]))


def pillow(images: Tensor, change: Picture) -> np.ndarray:
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    return np.stack([np.asarray(change(one)) for one in pictures]).transpose(0, 3, 1, 2)


def affine(*matrix: float) -> Picture:
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=FILL
    )


def turned(degrees: float) -> Picture:
    return lambda image: image.rotate(degrees, Image.Resampling.NEAREST, fillcolor=FILL)


@pytest.mark.parametrize("bits", [8, 7, 4, 1])
def test_posterize(bits: int) -> None:
    wanted = pillow(batch(), lambda image: ImageOps.posterize(image, bits))
    assert np.array_equal(color_ops.posterize(batch(), bits).numpy(), wanted)


@pytest.mark.parametrize("threshold", [0, 100, 178.5, 255])
def test_solarize(threshold: float) -> None:
    wanted = pillow(batch(), lambda image: ImageOps.solarize(image, threshold))
    assert np.array_equal(color_ops.solarize(batch(), threshold).numpy(), wanted)


def test_autocontrast_and_equalize() -> None:
    wanted = pillow(batch(), ImageOps.autocontrast)
    assert np.array_equal(color_ops.autocontrast(batch()).numpy(), wanted)
    assert np.array_equal(color_ops.equalize(batch()).numpy(), pillow(batch(), ImageOps.equalize))


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (color_ops.brightness, ImageEnhance.Brightness),
        (color_ops.color, ImageEnhance.Color),
        (color_ops.contrast, ImageEnhance.Contrast),
        (color_ops.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_mixtures_have_a_factor_an_image(
    mine: Callable[[Tensor, Tensor], Tensor], theirs: type[ImageEnhance._Enhance]
) -> None:
    factors = torch.tensor([0.1, 0.73, 1.0, 1.27, 1.9])
    for image in batch():
        out = mine(image.expand(5, -1, -1, -1), factors).numpy()
        for factor, one in zip(factors.tolist(), out, strict=True):
            wanted = pillow(image[None], lambda picture, by=factor: theirs(picture).enhance(by))
            assert np.array_equal(one, wanted[0])


def test_grey_images_keep_one_channel() -> None:
    grey = batch()[:, :1]
    assert torch.equal(color_ops.color(grey, torch.full((len(grey),), 0.3)), grey)
    for operation in OPERATIONS.values():
        out = operation(grey, 0.3, torch.ones(len(grey), dtype=torch.long), torch.tensor([9]))
        assert out.shape == grey.shape


@pytest.mark.parametrize(
    ("matrix", "change"),
    [
        (warps.shear_x(0.27), affine(1, 0.27, 0, 0, 1, 0)),
        (warps.shear_x(-0.09), affine(1, -0.09, 0, 0, 1, 0)),
        (warps.shear_y(0.3), affine(1, 0, 0, 0.3, 1, 0)),
        (warps.translate_x(4), affine(1, 0, 4, 0, 1, 0)),
        (warps.translate_y(-3), affine(1, 0, 0, 0, 1, -3)),
        (warps.rotate(9, 32, 32), turned(9)),
        (warps.rotate(-30, 32, 32), turned(-30)),
    ],
)
def test_warps(matrix: warps.Matrix, change: Picture) -> None:
    which = torch.arange(len(batch())) % 2
    still: warps.Matrix = (1, 0, 0, 0, 1, 0)
    out = warps.warp(batch(), (still, matrix), which, torch.tensor(FILL)).numpy()
    assert np.array_equal(out[::2], batch()[::2].numpy())
    assert np.array_equal(out[1::2], pillow(batch()[1::2], change))


def test_warps_of_oblong_images_match_a_loop() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 9), dtype=np.uint8)
    a, b, c, d, e, f = matrix = warps.rotate(30, 5, 9)
    wanted = np.full_like(image, 1)
    for y in range(5):
        for x in range(9):
            column = int(np.floor(a * (x + 0.5) + b * (y + 0.5) + c))
            row = int(np.floor(d * (x + 0.5) + e * (y + 0.5) + f))
            if 0 <= column < 9 and 0 <= row < 5:
                wanted[:, y, x] = image[:, row, column]
    fill = torch.ones(2)
    out = warps.warp(torch.from_numpy(image)[None], (matrix,), torch.tensor([0]), fill)
    assert np.array_equal(out[0].numpy(), wanted)


def possible() -> dict[str, list[Picture]]:
    """Every outcome of one operation at magnitude 9 of 30, from the paper's table of ranges."""
    strength = 9 / 30
    moved = int(150 / 331 * 32 * strength)
    both = (-1, 1)
    mixed = {
        "brightness": ImageEnhance.Brightness,
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }
    plain: dict[str, list[Picture]] = {
        "identity": [lambda image: image],
        "shear_x": [affine(1, 0.3 * strength * sign, 0, 0, 1, 0) for sign in both],
        "shear_y": [affine(1, 0, 0, 0.3 * strength * sign, 1, 0) for sign in both],
        "translate_x": [affine(1, 0, moved * sign, 0, 1, 0) for sign in both],
        "translate_y": [affine(1, 0, 0, 0, 1, moved * sign) for sign in both],
        "rotate": [turned(30 * strength * sign) for sign in both],
        "posterize": [lambda image: ImageOps.posterize(image, 7)],
        "solarize": [lambda image: ImageOps.solarize(image, 178.5)],  # type: ignore[arg-type]
        "autocontrast": [ImageOps.autocontrast],
        "equalize": [ImageOps.equalize],
    }
    for name, kind in mixed.items():
        plain[name] = [
            lambda image, kind=kind, sign=sign: kind(image).enhance(1 + 0.9 * strength * sign)
            for sign in both
        ]
    return plain


def run(image: Tensor, count: int, ops: int) -> list[bytes]:
    generator = torch.Generator().manual_seed(0)
    out = rand_augment(
        image.expand(count, -1, -1, -1), generator, ops, 9, torch.tensor(FILL, dtype=torch.uint8)
    )
    return [one.numpy().tobytes() for one in out]


def test_one_operation_is_drawn_with_equal_chance() -> None:
    image, count = batch()[0] // 2 + batch()[12] // 4 + 40, 2800
    outcomes = {
        pillow(image[None], change)[0].tobytes(): name
        for name, changes in possible().items()
        for change in changes
    }
    assert {*possible()} == {*OPERATIONS}
    assert len(outcomes) == sum(map(len, possible().values()))  # no two look the same
    found = run(image, count, 1)
    assert {*found} == {*outcomes}  # both signs of each
    drawn = [outcomes[one] for one in found]
    for name in OPERATIONS:
        assert 140 < drawn.count(name) < 260, name  # 200 expected, 4 standard deviations


def test_two_operations_follow_each_other() -> None:
    image = batch()[13]
    changes = [change for both in possible().values() for change in both]
    first = [pillow(image[None], change) for change in changes]
    outcomes = {
        pillow(torch.from_numpy(one.copy()), change)[0].tobytes()
        for one in first
        for change in changes
    }
    found = {*run(image, 1000, 2)}
    assert found <= outcomes
    assert len(found) > 200


def test_images_are_left_alone_and_the_generator_decides() -> None:
    images = batch()
    fill = torch.tensor(FILL, dtype=torch.uint8)

    def drawn(seed: int) -> Tensor:
        return rand_augment(images, torch.Generator().manual_seed(seed), 2, 15, fill)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert torch.equal(images, batch())
