# SPDX-License-Identifier: MIT
"""Deformable convolutions of torchvision lose channels, on both sides."""

import pytest
import torch
from cut_oracle import check
from torch import nn

IMAGE = torch.zeros(2, 3, 6, 6, dtype=torch.float64)
pytestmark = pytest.mark.vision


def network(groups, offset_groups, masked):
    from torchvision.ops import DeformConv2d

    class Deformed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 8, 1)
            self.offset = nn.Conv2d(8, offset_groups * 18, 3, padding=1)
            self.mask = nn.Conv2d(8, offset_groups * 9, 3, padding=1)
            self.d = DeformConv2d(8, 6, 3, padding=1, groups=groups)
            self.c = nn.Conv2d(6, 2, 1)

        def forward(self, x):
            x = self.a(x)
            mask = self.mask(x).sigmoid() if masked else None
            return self.c(self.d(x, self.offset(x), mask).relu())

    return Deformed()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("groups", "offset_groups"), [(1, 1), (1, 2), (2, 1), (2, 4)])
def test_deformable_convolutions_lose_inputs_and_outputs(groups, offset_groups, masked):
    inputs, outputs = 8 // max(groups, offset_groups), 6 // groups
    model = network(groups, offset_groups, masked)
    _, small = check(model, IMAGE, {"a": inputs, "d": outputs})
    assert small.d.in_channels == small.a.out_channels == 4
    assert small.d.out_channels == small.c.in_channels == (6 - 6 // groups // 2 * groups)


def test_macs_of_deformable_convolutions_are_those_of_plain_ones():
    from torchvision.ops import DeformConv2d

    from regrow.profiling.macs import count_macs

    offset = torch.zeros(2, 18, 6, 6)
    work = count_macs(DeformConv2d(4, 5, 3, padding=1), (torch.zeros(2, 4, 6, 6), offset))
    assert work == (5 * 4 * 9 * 36, {"weight": 36.0})
