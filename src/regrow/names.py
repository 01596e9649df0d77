# SPDX-License-Identifier: MIT
"""Checkpoints of compiled modules and of plain ones, each loaded into the other."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from regrow.targets import clean


def follow_names(module: nn.Module) -> RemovableHandle:
    """Lets a module load weights whose names differ from its own by `torch.compile`'s prefix alone.

    Lightning loads a module's weights before it asks any callback, so this is a hook of the module.

    Args:
        module: The whole one.

    Returns:
        What removes the hook.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False))
        >>> handle = follow_names(net)
        >>> net.load_state_dict({"0._orig_mod.weight": net[0].weight.data})
        <All keys matched successfully>
    """
    handle: RemovableHandle
    handle = module.register_load_state_dict_pre_hook(_rename)  # type: ignore[no-untyped-call]
    return handle


def _rename(
    module: nn.Module, state_dict: MutableMapping[str, Any], prefix: str, *_: object
) -> None:
    names = {f"{prefix}{name}" for name in module.state_dict()}
    known = {clean(name): name for name in names}
    for name in [*state_dict]:
        own = known.get(clean(name), name)
        if name not in names and own not in state_dict:
            state_dict[own] = state_dict.pop(name)
