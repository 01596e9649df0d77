# SPDX-License-Identifier: MIT
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regrow.app.models.mobilenet import Conv2dSame, conv_norm


def same(image: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's rule in plain loops: as many outputs as steps fit, what is odd at the end."""
    k, size = len(kernel), len(image)
    out = math.ceil(size / stride)
    pad = max(0, (out - 1) * stride + k - size)
    whole = np.pad(image, (pad // 2, pad - pad // 2))
    return np.array(
        [
            [
                (whole[r * stride : r * stride + k, c * stride : c * stride + k] * kernel).sum()
                for c in range(out)
            ]
            for r in range(out)
        ]
    )


@given(st.integers(3, 12), st.sampled_from([3, 5]), st.sampled_from([1, 2, 3]))
def test_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    conv = Conv2dSame(1, 1, kernel, stride)
    image = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(size))
    expected = same(image[0, 0].numpy(), conv.weight.detach()[0, 0].numpy(), stride)
    np.testing.assert_allclose(conv(image).detach()[0, 0].numpy(), expected, atol=1e-5)


def test_height_and_width_are_padded_each_by_its_own_size() -> None:
    conv = Conv2dSame(2, 2, 3, 2, groups=2)
    assert conv(torch.zeros(1, 2, 7, 8)).shape == (1, 2, 4, 4)
    x = torch.zeros(1, 2, 7, 8)
    x[..., 7] = 1  # the last column meets the middle of the kernel only where 1 is padded after it
    seen = conv(x).detach()[0, 0, 1, 3]
    assert seen.item() == pytest.approx(conv.weight.detach()[0, 0, :, 1].sum().item(), abs=1e-6)


def test_padding_differs_only_where_the_stride_is_above_one() -> None:
    assert type(conv_norm(4, 4, 5, stride=2, groups=4, same=True)[0]) is Conv2dSame
    plain = conv_norm(4, 4, 5, groups=4, same=True)[0]
    assert type(plain) is torch.nn.Conv2d
    twin = Conv2dSame(4, 4, 5, 1, groups=4)
    twin.load_state_dict(plain.state_dict())
    x = torch.randn(1, 4, 9, 9)
    torch.testing.assert_close(twin(x), plain(x))
