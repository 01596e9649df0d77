# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from regrow.app.data.augment import crop_flip, cutout, make_augmentation
from regrow.utils.errors import ConfigError

MEAN = (0.1, 0.5, 0.9)
FILL = (26, 128, 230)  # rounded, of 255


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int = 20, size: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator())


def augment(given: Any, images: Tensor) -> Tensor:
    step = make_augmentation(given, (3, *images.shape[2:]), MEAN, 255)
    return step(images, generator())


@pytest.mark.parametrize(
    ("height", "width", "size"), [(9, 9, 4), (6, 11, 5), (4, 4, 20), (5, 5, 1)]
)
def test_cutout_covers_every_square_and_nothing_else(height: int, width: int, size: int) -> None:
    image = np.random.default_rng(0).integers(1, 256, (2, height, width), dtype=np.uint8)
    possible = set()
    for y in range(height):
        for x in range(width):
            covered = image.copy()
            for row in range(y - size // 2, y - size // 2 + size):
                for column in range(x - size // 2, x - size // 2 + size):
                    if 0 <= row < height and 0 <= column < width:
                        covered[:, row, column] = (0, 7)
            possible.add(covered.tobytes())
    batch = torch.from_numpy(image).expand(2000, -1, -1, -1)
    out = cutout(batch, generator(), size, torch.tensor([0, 7], dtype=torch.uint8))
    assert out.dtype == torch.uint8
    assert {one.numpy().tobytes() for one in out} == possible


def test_augmentation_without_steps_changes_nothing() -> None:
    assert torch.equal(augment(None, noise()), noise())
    assert torch.equal(augment([], noise()), noise())


def test_names_select_steps() -> None:
    assert torch.equal(augment("crop_flip", noise()), crop_flip(noise(), generator(), 4))
    small = noise(size=16)
    assert torch.equal(augment("crop_flip", small), crop_flip(small, generator(), 2))
    wanted = cutout(noise(), generator(), 16, torch.tensor(FILL))
    assert torch.equal(augment("cutout", noise()), wanted)


@pytest.mark.parametrize(
    "given",
    [
        ["crop_flip", {"cutout": 8}],
        {"crop_flip": None, "cutout": {"size": 8}},
        [{"crop_flip": {"padding": 4}, "cutout": 8}],
        OmegaConf.create(["crop_flip", {"cutout": 8}]),
    ],
)
def test_steps_are_applied_in_order(given: Any) -> None:
    draws = generator()
    wanted = cutout(crop_flip(noise(), draws, 4), draws, 8, torch.tensor(FILL))
    assert torch.equal(augment(given, noise()), wanted)


def test_covered_pixels_are_zero_after_normalisation() -> None:
    """To the rounding of one 8-bit step, as the paper covers with zeros after normalising."""
    out = augment({"cutout": 64}, noise()) / 255
    assert (out - torch.tensor(MEAN).view(-1, 1, 1)).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "crop",
            "augment must be one of crop_flip, cutout, rand_augment, got 'crop': did you mean",
        ),
        (["crop_flip", {"cutuot": 8}], "did you mean 'cutout'"),
        ({"cutout": {"side": 8}}, "cutout has no 'side': .*size"),
        ({"cutout": 0}, "cutout size must be a whole number of at least 1, got 0"),
        ({"cutout": "wide"}, "cutout size must be"),
        ({"crop_flip": -1}, "crop_flip padding must be"),
        ({"rand_augment": {"magnitude": 31}}, "magnitude must be from 0 to 30, got 31"),
        ({"rand_augment": {"ops": 0}}, "ops must be"),
        (3, "augment must be null, a name, or a list such as"),
        ([["crop_flip"], 3], "augment must be null, a name, or a list such as"),
    ],
)
def test_wrong_steps_raise(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_augmentation(given, (3, 32, 32), MEAN, 255)


def test_color_operations_need_8_bits() -> None:
    with pytest.raises(ConfigError, match=r"8-bit images .* from 0 to 16"):
        make_augmentation("rand_augment", (1, 8, 8), (0.3,), 16)


@pytest.mark.vision
def test_rand_augment_equals_torchvisions_and_differs_by_image() -> None:
    from torchvision.transforms import v2

    before = torch.get_rng_state()
    out = augment({"rand_augment": {"ops": 3, "magnitude": 12}}, noise(1).expand(8, -1, -1, -1))
    assert torch.equal(torch.get_rng_state(), before)
    assert out.dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in out}) == 8
    torch.manual_seed(0)
    one = v2.RandAugment(3, 12, fill=list(FILL))
    assert torch.equal(out, torch.stack([one(noise(1)[0]) for _ in range(8)]))
