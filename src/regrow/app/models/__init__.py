# SPDX-License-Identifier: MIT
"""Small networks of the pruning literature; those for ImageNet are torchvision's and timm's."""

from regrow.app.models.cifar_resnet import CifarResNet as CifarResNet
from regrow.app.models.cifar_resnet import WideResNet as WideResNet
from regrow.app.models.cifar_vgg import VGG as VGG
from regrow.app.models.digits_cnn import DigitsCNN as DigitsCNN
from regrow.app.models.lenet import LeNet5 as LeNet5
from regrow.app.models.lenet import LeNet300100 as LeNet300100

__all__ = [
    "VGG",
    "CifarResNet",
    "DigitsCNN",
    "LeNet5",
    "LeNet300100",
    "WideResNet",
]
