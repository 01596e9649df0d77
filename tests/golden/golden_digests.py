# SPDX-License-Identifier: MIT
"""Digests of what a case computed, their comparison, and a fingerprint of the machine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Where a redesign renames a key of the history, write {new: old}: digests then stay the same.
HISTORY_KEYS: dict[str, str] = {}
STEP, AFTER = "step", "after"  # as recorded
DIGESTS = ("weights", "masks", "moments", "history", "extra")
TOLERANCE = 1e-3  # of the absolute sum, on other processors


def machine() -> dict[str, str]:
    """The version of torch, and a digest of floating-point results that processors differ in."""
    torch.set_num_threads(1)
    made = torch.Generator().manual_seed(7)
    one, other = torch.randn(64, 64, generator=made), torch.randn(64, 64, generator=made)
    images = torch.randn(4, 3, 12, 12, generator=made)
    kernel = torch.randn(8, 3, 3, 3, generator=made).requires_grad_()
    optimizer = torch.optim.SGD([kernel], lr=0.01, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.conv2d(images, kernel).square().mean().backward()
        optimizer.step()
    bn = nn.functional.batch_norm(images, None, None, training=True)
    found = [one @ other, one.exp(), one.tanh(), one.softmax(1), kernel.detach(), bn, one.sum()]
    return {"torch": torch.__version__, "floats": digest(enumerate(found))}


def digest(tensors: Iterable[tuple[object, Tensor]]) -> str:
    """Of named tensors: names, types, shapes and raw bytes, in the order given."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        value = tensor.detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def weights(module: nn.Module) -> str:
    """Of all parameters and buffers, by name."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return digest(sorted(named.items()))


def masks(found: Iterable[Mapping[str, Tensor]]) -> str:
    """Of the masks of one or more pruners, as packed bits."""
    result = hashlib.sha256()
    for each in found:
        for name in sorted(each):
            mask = each[name].detach().cpu()
            result.update(f"{name} {tuple(mask.shape)};".encode())
            result.update(np.packbits(mask.numpy().ravel()).tobytes())
    return result.hexdigest()


def moments(optimizers: Iterable[torch.optim.Optimizer]) -> str:
    """Of the optimizers' state tensors, in the order of parameters."""
    return digest(
        (f"{number}.{place}.{key}", torch.as_tensor(value))
        for number, optimizer in enumerate(optimizers)
        for place, parameter in enumerate(p for g in optimizer.param_groups for p in g["params"])
        for key, value in sorted(optimizer.state.get(parameter, {}).items())
        if isinstance(value, Tensor | int | float)
    )


def plain(value: Any) -> Any:
    """Builtin values; keys of the history under the names that were recorded."""
    if isinstance(value, Mapping):
        return {HISTORY_KEYS.get(str(k), str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Tensor | np.generic):
        return value.tolist() if isinstance(value, Tensor) else value.item()
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def text(value: Any) -> str:
    """A digest of builtin values; floats to the last bit."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def describe(
    module: nn.Module,
    pruners: Iterable[Any] = (),
    optimizers: Iterable[torch.optim.Optimizer] = (),
    extra: Any = None,
    found: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """What is recorded of a case.

    Args:
        module: Its weights.
        pruners: Callbacks or pruners, for their `masks` and `history`.
        optimizers: Their state.
        extra: Builtin values to be digested too.
        found: Masks that no pruner holds.
    """
    pruners = list(pruners)
    held = [dict(p.masks) for p in pruners] + ([dict(found)] if found is not None else [])
    history = [plain(p.history) for p in pruners]
    values = [p.detach().double() for _, p in sorted(module.named_parameters())]
    return {
        "weights": weights(module),
        "masks": masks(held),
        "moments": moments(optimizers),
        "history": text(history),
        "extra": text(extra),
        "pruned": sum(int((~m).sum()) for each in held for m in each.values()),
        "events": [[e.get(STEP), e.get(AFTER)] for entries in history for e in entries],
        "sum": math.fsum(float(v.sum()) for v in values),
        "abs_sum": math.fsum(float(v.abs().sum()) for v in values),
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any], exact: bool) -> list[str]:
    """What differs between two records of a case.

    Args:
        old: As recorded.
        new: As computed now.
        exact: Whether every bit counts; else only what does not depend on the processor.
    """
    keys = [*DIGESTS, "pruned", "events", "sum", "abs_sum"] if exact else ["pruned"]
    result = [f"{key}: {old[key]} -> {new[key]}" for key in keys if old[key] != new[key]]
    if exact:
        return result
    pairs = list(zip(old["events"], new["events"], strict=False))
    same = len(old["events"]) == len(new["events"]) and all(
        a[0] == b[0] and _near(a[1], b[1], 1.0) for a, b in pairs
    )
    if not same:
        result.append(f"events: {old['events']} -> {new['events']}")
    for key in ("sum", "abs_sum"):
        if not _near(old[key], new[key], old["abs_sum"]):
            result.append(f"{key}: {old[key]} -> {new[key]}")
    return result


def _near(one: float | None, other: float | None, scale: float) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= TOLERANCE * scale or (math.isnan(one) and math.isnan(other))
