# SPDX-License-Identifier: MIT
"""Small networks of the pruning literature; those for ImageNet are torchvision's and timm's."""

from regrow.app.models.cifar_resnet import CifarResNet, WideResNet
from regrow.app.models.cifar_vgg import VGG
from regrow.app.models.digits_cnn import DigitsCNN
from regrow.app.models.lenet import LeNet5, LeNet300100

__all__ = ["VGG", "CifarResNet", "DigitsCNN", "LeNet5", "LeNet300100", "WideResNet"]
