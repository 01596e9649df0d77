# SPDX-License-Identifier: MIT
"""Weight initialisation of these models."""

from __future__ import annotations

from torch import nn


def he_normal(network: nn.Module) -> None:
    """Draws weights from N(0, 2 / fan); in place.

    Convolutions take fan_out, linear layers fan_in; batch norms become the identity and biases 0.

    Source: He et al. 2015, "Delving deep into rectifiers", section 2.2.

    Example:
        >>> layer = nn.Linear(8, 2)
        >>> he_normal(layer)
        >>> layer.bias.tolist()
        [0.0, 0.0]
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def xavier_normal(network: nn.Module) -> None:
    """Draws weights from N(0, 2 / (fan_in + fan_out)) and sets biases to 0; in place.

    Source: Glorot and Bengio 2010, in the Gaussian form of the lottery ticket papers.

    Example:
        >>> layer = nn.Linear(8, 2)
        >>> xavier_normal(layer)
        >>> layer.bias.tolist()
        [0.0, 0.0]
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
