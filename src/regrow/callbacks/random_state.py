# SPDX-License-Identifier: MIT
"""Random numbers that go on after a resume where they stood."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor


class RandomState(Callback):
    """Saves the global random generators in checkpoints and restores them on resume.

    They are PyTorch's (CPU and every CUDA device), NumPy's legacy one and Python's `random`:
    dropout and whatever else draws from them then goes on bit for bit. They are restored in
    `on_train_start`, after sanity checking. Callbacks whose own `on_train_start` draws numbers
    belong before this one in the list.

    In distributed training Lightning saves the callbacks of rank 0 only. Rank 0 goes on exactly;
    every other rank is seeded from rank 0's state and its own number: different on every rank, the
    same whenever that checkpoint is resumed, but not what an uninterrupted run draws. (regrow's
    data loaders do not depend on global generators and stay exact on all ranks.)

    Example:
        >>> trainer = Trainer(callbacks=[RandomState()], logger=False,
        ...                   enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets a state that an evaluation loaded; a resumed fit loads its own after this."""
        if stage == "fit":
            self._pending = None

    def state_dict(self) -> dict[str, Any]:
        """The generators' state, or the one that this run is still going to restore."""
        return self._pending or capture()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps a state until training starts."""
        self._pending = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the state of a resumed fit."""
        if self._pending is not None:
            restore(self._pending, trainer.global_rank)
            self._pending = None


def capture() -> dict[str, Any]:
    """The state of all global generators, as tensors and builtins only.

    Example:
        >>> state = capture()
        >>> before = random.random(), torch.rand(1).item()
        >>> restore(state)
        >>> before == (random.random(), torch.rand(1).item())
        True
    """
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


def restore(state: dict[str, Any], rank: int = 0) -> None:
    """Sets all global generators.

    Args:
        state: What `capture` gave on rank 0.
        rank: Of this process; from 1 on, generators are seeded from `state` and the rank.
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
        rank_zero_warn(
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
