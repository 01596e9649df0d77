# SPDX-License-Identifier: MIT
"""Masking calls as many of torch's operators for many tensors as for few, as GPUs want it."""

import pytest
import torch
from torch import nn, optim
from torch.utils._python_dispatch import TorchDispatchMode

from regrow.pruning.enforcer import MaskEnforcer


class Operators(TorchDispatchMode):
    """The names of operators that were called, views left out: those launch nothing."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def trained(layers, dtypes=(torch.float32,)):
    """An enforcer of as many layers, half of their weights pruned, and their optimizer."""
    net = nn.ModuleList(
        nn.Linear(5, 3, dtype=dtypes[number % len(dtypes)]) for number in range(layers)
    )
    optimizer = optim.Adam(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    enforcer = MaskEnforcer({n: p for n, p in net.named_parameters() if p.dim() == 2})
    for name in enforcer.parameters:
        enforcer.set_mask(name, torch.arange(15).view(3, 5) % 2 == 0)
    return enforcer, optimizer


def called(action):
    with Operators() as operators:
        action()
    return operators.names


MULTIPLY = "aten::_foreach_mul_.List"


@pytest.mark.parametrize("layers", [1, 30])
def test_a_step_masks_all_gradients_by_one_operator_and_all_weights_by_another(layers):
    enforcer, optimizer = trained(layers)
    assert called(enforcer.gradients) == [MULTIPLY]
    enforcer.weights()  # the first call makes views
    assert called(enforcer.weights) == [MULTIPLY]
    assert called(lambda: enforcer.state([optimizer])) == [MULTIPLY]
    for parameter in enforcer.parameters.values():
        for tensor in (parameter.detach(), parameter.grad, *optimizer.state[parameter].values()):
            if tensor.dim() == 2:
                assert torch.equal(tensor != 0, torch.arange(15).view(3, 5) % 2 == 0)


def test_each_dtype_is_one_operator():
    enforcer, optimizer = trained(30, (torch.float32, torch.bfloat16, torch.float64))
    for action in (enforcer.gradients, enforcer.weights, lambda: enforcer.state([optimizer])):
        action()
        assert called(action) == [MULTIPLY] * 3
