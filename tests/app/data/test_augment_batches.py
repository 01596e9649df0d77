# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest
import torch

from regrow.app.data.augment import crop_flip, make_normalizer


@pytest.mark.parametrize(("channels", "height", "width", "padding"), [(1, 8, 8, 2), (3, 5, 7, 1)])
def test_crop_flip_takes_every_window_and_nothing_else(
    channels: int, height: int, width: int, padding: int
) -> None:
    image = np.random.default_rng(0).integers(1, 255, (channels, height, width), dtype=np.uint8)
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    windows = set()
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            window = padded[:, top : top + height, left : left + width]
            windows |= {window.tobytes(), window[:, :, ::-1].tobytes()}
    images = torch.from_numpy(image).expand(2000, -1, -1, -1)
    out = crop_flip(images, torch.Generator().manual_seed(0), padding)
    assert out.dtype == torch.uint8
    assert {one.numpy().tobytes() for one in out} == windows


def test_crop_flip_depends_only_on_its_generator() -> None:
    images = torch.rand(20, 1, 8, 8)
    first = crop_flip(images, torch.Generator().manual_seed(1), 2)
    assert torch.equal(crop_flip(images, torch.Generator().manual_seed(1), 2), first)
    assert not torch.equal(crop_flip(images, torch.Generator().manual_seed(2), 2), first)


def test_normalizer_equals_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 5), dtype=np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
    expected = (images / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    out = make_normalizer(255, mean, std)(torch.from_numpy(images))
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-5)
