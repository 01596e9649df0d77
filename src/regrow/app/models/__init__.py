# SPDX-License-Identifier: MIT
"""The networks of the recipes: plain `nn.Module`s that know nothing of pruning."""

from regrow.app.models.digits_cnn import DigitsCNN as DigitsCNN
from regrow.app.models.lenet import LeNet5 as LeNet5
from regrow.app.models.lenet import LeNet300100 as LeNet300100
from regrow.app.models.resnet import CifarResNet as CifarResNet
from regrow.app.models.vgg import VGG as VGG

__all__ = ["VGG", "CifarResNet", "DigitsCNN", "LeNet5", "LeNet300100"]
