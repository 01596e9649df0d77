# SPDX-License-Identifier: MIT
"""Imports that each process of `zoo.py` makes before it starts; they are not timed."""

import _vision  # noqa: F401
import timm  # noqa: F401
import torch
from torch import nn

from regrow.channels import groups

torch.set_num_threads(1)
# the first export of a process imports much
groups(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), torch.zeros(2, 3, 8, 8))
