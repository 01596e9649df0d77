# SPDX-License-Identifier: MIT
"""Recompute batch-norm statistics after a cut."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from regrow.utils.batches import bound_forward, device_of
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.modes import eval_mode


def recalibrate(model: nn.Module, batches: Iterable[Any]) -> int:
    """Recompute the running statistics of all norms that run, as plain means over some batches.

    Only norms with running statistics are in training mode; dropout is off, and parameters, modes
    and random generators do not change. All batches have the same weight.

    Args:
        model: The model.
        batches: Inputs on any device; a tuple holds positional arguments, a dict keyword arguments.

    Returns:
        The number of batches.

    Raises:
        ConfigError: If there is no batch.
        StateError: If a statistic is not finite. After any error the old statistics are restored.

    Source: Li et al. 2020 (EagleEye), arXiv 2007.02491, section 3.3 (adaptive batch normalisation).

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout())
        >>> recalibrate(net, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])])
        2
        >>> net[0].running_mean, net[0].running_var
        (tensor([4.]), tensor([2.]))
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and module.running_mean is not None
    }
    undo = [(norm, norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms.values()]
    device, count, ran = device_of(model), 0, set[nn.Module]()
    forked = [device] if device.type == "cuda" else []
    hooks = [norm.register_forward_pre_hook(lambda norm, _: ran.add(norm)) for norm, *_ in undo]
    with eval_mode(model), torch.no_grad(), torch.random.fork_rng(devices=forked):
        try:
            for batch in batches:
                for norm in norms.values():
                    if not count:  # not before there is a batch
                        norm.reset_running_stats()
                        norm.training = True
                    # None is a cumulative mean, which instance norms do not support
                    norm.momentum = None if isinstance(norm, _BatchNorm) else 1 / (count + 1)
                bound_forward(model, batch)()
                count += 1
            _check({name: norm for name, norm in norms.items() if norm in ran})
        except BaseException:
            ran.clear()
            raise
        finally:
            for hook in hooks:
                hook.remove()
            for norm, momentum, state in undo:
                norm.momentum = momentum
                if norm not in ran:
                    norm.load_state_dict(state)
    if not count:
        raise ConfigError("recalibrate needs a batch or more, got none: write [inputs]")
    return count


def _check(norms: Mapping[str, _NormBase]) -> None:
    for name, norm in norms.items():
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None and not bool(statistic.isfinite().all()):
                raise StateError(f"a running statistic of {name} is not finite after these batches")
