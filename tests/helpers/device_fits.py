# SPDX-License-Identifier: MIT
"""Fits on a chosen device, and a callback that checks where their tensors are."""

from lightning.pytorch import Callback
from tiny_fits import Net


def on(device):
    """Arguments of a Trainer for one device of a kind."""
    if device.type == "stand_in":
        from stand_in_device import trainer_arguments

        return trainer_arguments(device)
    kind = "gpu" if device.type == "cuda" else device.type
    return {"accelerator": kind, "devices": 1}


class Callable(Net):
    """A network that is called on inputs."""

    def forward(self, x):
        return self.body(x)


class Placed(Callback):
    """Collects the kinds of device on which parameters and their optimizer state were."""

    def __init__(self):
        self.kinds = set()

    def on_train_batch_end(self, trainer, pl_module, *_):
        for parameter in pl_module.parameters():
            self.kinds.add(parameter.device.type)
            for optimizer in trainer.optimizers:
                for value in optimizer.state.get(parameter, {}).values():
                    if getattr(value, "shape", None) == parameter.shape:
                        self.kinds.add(value.device.type)
