# SPDX-License-Identifier: MIT
"""Generators keyed by (seed, event, name); capture and restore of the global generators."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from regrow.utils.logging import warn


class NumpyRandomState(TypedDict):
    """Result of `numpy.random.get_state(legacy=True)`, with the keys as a tensor."""

    name: str
    keys: Tensor
    position: int
    has_gauss: int
    gauss: float


class RandomStateDict(TypedDict):
    """States of all global random generators."""

    torch: Tensor
    cuda: list[Tensor]  # one per device
    numpy: NumpyRandomState
    python: tuple[Any, ...]  # random.getstate()


def make_generator(seed: int, event: int, name: str) -> torch.Generator:
    """Make a generator that depends only on (seed, event, name), not on earlier draws."""
    key = hashlib.blake2b(f"{seed}/{event}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)


def capture_random_state() -> RandomStateDict:
    """Return the state of all global generators, as tensors and builtin types."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {
            "name": str(name),
            "keys": torch.tensor(np.asarray(keys, dtype=np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "python": random.getstate(),
    }


def restore_random_state(state: Mapping[str, Any], rank: int = 0) -> None:
    """Set all global generators to what `capture_random_state` returned on rank 0.

    On other ranks they are seeded from that state and the rank.
    """
    if rank > 0:
        _seed(state["torch"], rank)
        return
    torch.set_rng_state(state["torch"].cpu())
    _restore_cuda([cuda.cpu() for cuda in state["cuda"]])
    numpy = state["numpy"]
    keys = numpy["keys"].cpu().numpy().astype(np.uint32)
    np.random.set_state(
        (numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["gauss"])
    )
    random.setstate(state["python"])


def _restore_cuda(states: list[Tensor]) -> None:
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(states) != devices:
        warn(
            f"The checkpoint holds the random state of {len(states)} CUDA devices and this machine "
            f"has {devices}: numbers drawn on the others will not be those of an uninterrupted run."
        )
    for device, state in enumerate(states[:devices]):
        torch.cuda.set_rng_state(state, device)


def _seed(torch_state: Tensor, rank: int) -> None:
    key = torch_state.cpu().numpy().tobytes() + rank.to_bytes(8, "big")
    seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
    torch.manual_seed(seed)  # every device
    np.random.seed(seed % 2**32)
    random.seed(seed)
