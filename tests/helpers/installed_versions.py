# SPDX-License-Identifier: MIT
"""What the installed versions lack."""

from functools import cache
from importlib.metadata import version

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from packaging.version import Version
from torch import nn

LIGHTNING_25 = Version(version("pytorch-lightning")) < Version("2.6")
needs_lightning = pytest.mark.skipif(
    lightning.pytorch is pytorch_lightning, reason="lightning is not installed"
)
two_packages = pytest.mark.skipif(
    LIGHTNING_25, reason="a Trainer of Lightning 2.5 raises for callbacks of the other distribution"
)


class _New(nn.Module):
    def forward(self, x):
        self.new = x + 1
        return self.new


@cache
def exports_new_attributes():
    """Whether torch.export traces modules whose forward adds attributes; torch 2.8 refuses them."""
    try:
        torch.export.export(_New(), (torch.zeros(1),), strict=False)
    except ValueError:
        return False
    return True
