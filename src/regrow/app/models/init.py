# SPDX-License-Identifier: MIT
"""Argument checks, layers and weight initialization shared by the models."""

from __future__ import annotations

from torch import nn

from regrow.utils.errors import check_count


def check_counts(**counts: int) -> None:
    """Check that each argument is a positive integer."""
    for name, value in counts.items():
        check_count(name, value)


def conv_bn_relu(inputs: int, outputs: int) -> list[nn.Module]:
    """Return a 3 x 3 convolution, batch norm and ReLU."""
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


def he_normal(network: nn.Module) -> None:
    """Draw weights from N(0, 2 / fan) in place, and set biases to 0.

    Convolutions use fan_out, linear layers fan_in.

    Source: He et al. 2015, "Delving deep into rectifiers", section 2.2.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def xavier_normal(*layers: nn.Linear) -> None:
    """Draw weights from N(0, 2 / (fan_in + fan_out)) and set biases to 0, in place.

    Source: Glorot and Bengio 2010, in the Gaussian form of the lottery ticket papers.
    """
    for layer in layers:
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
