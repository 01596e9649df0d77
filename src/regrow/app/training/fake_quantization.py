# SPDX-License-Identifier: MIT
"""FakeQuantization: trains weights that lose little in int8."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from regrow.callbacks.core.base import Callback
from regrow.utils.errors import ConfigError
from regrow.utils.imports import import_optional
from regrow.utils.lightning_classes import pl


class FakeQuantization(Callback):
    """Round weights and inputs of Linear layers to int8 in each forward pass of a fit.

    The layers are prepared by torchao: a scale for each output of the weights, without an offset,
    so that pruned weights are zero in int8 too, and a scale and an offset for each row of the
    inputs (an exported file has one for all rows, from calibration). Gradients pass the rounding
    unchanged. Weights stay float32, and checkpoints are those of the float network. Convolutions
    are not rounded.

    Raises:
        ConfigError: If torchao is missing, or the network has no Linear layer.

    Source: Jacob et al. 2018, arXiv:1712.05877.
    """

    def __init__(self) -> None:
        _import("torchao")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not any(isinstance(module, nn.Linear) for module in pl_module.modules()):
            raise ConfigError(
                "callbacks=int8 trains Linear layers, and the network has none: write "
                "callbacks=default, and round it with `regrow export --to onnx --int8`"
            )
        qat = _import("torchao.quantization.qat")
        inputs = qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
        weights = qat.IntxFakeQuantizeConfig(torch.int8, "per_channel", is_symmetric=True)
        prepare = qat.QATConfig(activation_config=inputs, weight_config=weights, step="prepare")
        _import("torchao.quantization").quantize_(pl_module, prepare)


def _import(name: str) -> Any:
    return import_optional("fake quantization", "int8", name)
