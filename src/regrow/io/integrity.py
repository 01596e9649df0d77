# SPDX-License-Identifier: MIT
"""Digests of saved state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from regrow.distributed.shard import is_dtensor
from regrow.utils.errors import StateError

DIGEST = "seal"


def with_digest(state: Mapping[str, Any]) -> dict[str, Any]:
    """Add a digest of each tensor of a state, and one of all other values.

    `torch.load` does not verify the checksums of a file, so a flipped bit of a packed mask would
    prune or restore a weight unnoticed. Of DTensors and meta tensors, whose values a sharded
    checkpoint stores elsewhere, only type and shape are covered.
    """
    return {**state, DIGEST: _digests(state)}


def verify_digest(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state if it matches its digests; else raise, naming the values that changed."""
    if not isinstance(state, Mapping) or not isinstance(state.get(DIGEST), Mapping):
        raise StateError(
            "the saved state of the masks has no digest: another version of regrow wrote it, or it "
            "is damaged: load the weights into the model and start a fit without ckpt_path"
        )
    then, now = state[DIGEST], _digests(state)
    wrong = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if wrong:
        named = ", ".join(name or "a value that is no tensor" for name in wrong[:5])
        raise StateError(
            f"the saved state is damaged: {named} is not what was saved: resume from an earlier "
            "checkpoint"
        )
    return state


def _digests(state: Mapping[str, Any]) -> dict[str, str]:
    rest, digests = hashlib.blake2b(digest_size=8), {}
    for path, value in _leaves("", {k: v for k, v in state.items() if k != DIGEST}):
        if isinstance(value, Tensor) and not (value.is_meta or is_dtensor(value)):
            digests[path] = _digest(value)
        else:
            elsewhere = isinstance(value, Tensor)
            text = f"{value.dtype}{list(value.shape)}" if elsewhere else repr(value)
            rest.update(f"{path}={text}\n".encode())
    return digests | {"": rest.hexdigest()}


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield all values of nested containers by path; of containers their type and length."""
    if isinstance(value, Mapping | list | tuple):
        yield path, f"{'dict' if isinstance(value, Mapping) else type(value).__name__}{len(value)}"
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _leaves(f"{path}/{key}" if path else str(key), item)
    else:
        yield path, value


def _digest(tensor: Tensor) -> str:
    digest = hashlib.blake2b(f"{tensor.dtype}{list(tensor.shape)}".encode(), digest_size=8)
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
