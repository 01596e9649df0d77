# SPDX-License-Identifier: MIT
"""Optimizers whose state is not one float per weight, like 8-bit optimizers."""

import torch
from torch import optim

BLOCK = 256


class Blockwise(optim.Optimizer):
    """SGD with momentum, which is kept in bytes: (blocks, 256) codes and a scale for each block."""

    def __init__(self, parameters, lr=0.1, momentum=0.9):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, group)
        return loss

    def update(self, parameter, group):
        state = self.state[parameter]
        moment = self.moment(parameter).mul_(group["momentum"]).add_(parameter.grad)
        self.keep(state, moment)
        parameter.sub_(self.moment(parameter), alpha=group["lr"])

    def moment(self, parameter):
        """The dequantized moment, in the parameter's shape."""
        state = self.state[parameter]
        if not state:
            return torch.zeros_like(parameter)
        values = (state["codes"].float() - 128) / 127 * state["scales"][:, None]
        return values.flatten()[: parameter.numel()].view_as(parameter).to(parameter.dtype)

    def keep(self, state, moment):
        blocks = -(-moment.numel() // BLOCK)
        whole = torch.zeros(blocks, BLOCK)
        whole.view(-1)[: moment.numel()] = moment.flatten()
        state["scales"] = whole.abs().amax(1).clamp_min(1e-12)
        state["codes"] = (whole / state["scales"][:, None] * 127 + 128).round().to(torch.uint8)


class Coded(Blockwise):
    """The same with codes of the weight's shape, and a table that says what each code means."""

    table = torch.arange(-127, 128) / 127

    def moment(self, parameter):
        state = self.state[parameter]
        if not state:
            return torch.zeros_like(parameter)
        return state["qmap1"][state["state1"].long()] * state["absmax1"]

    def keep(self, state, moment):
        state["qmap1"], state["absmax1"] = self.table, moment.abs().max().clamp_min(1e-12)
        state["state1"] = (moment / state["absmax1"] * 127 + 127).round().to(torch.uint8)
