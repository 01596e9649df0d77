# SPDX-License-Identifier: MIT
"""The networks of the recipes: plain `nn.Module`s that know nothing of pruning."""

from regrow.app.models.cifar_resnet import CifarResNet as CifarResNet
from regrow.app.models.cifar_resnet import WideResNet as WideResNet
from regrow.app.models.cifar_vgg import VGG as VGG
from regrow.app.models.digits_cnn import DigitsCNN as DigitsCNN
from regrow.app.models.efficientnet_lite import EfficientNetLite0 as EfficientNetLite0
from regrow.app.models.lenet import LeNet5 as LeNet5
from regrow.app.models.lenet import LeNet300100 as LeNet300100
from regrow.app.models.mobilenet import MobileNetV2 as MobileNetV2
from regrow.app.models.resnet import ImageNetResNet as ImageNetResNet

__all__ = [
    "VGG",
    "CifarResNet",
    "DigitsCNN",
    "EfficientNetLite0",
    "ImageNetResNet",
    "LeNet5",
    "LeNet300100",
    "MobileNetV2",
    "WideResNet",
]
