# SPDX-License-Identifier: MIT
"""Tensors of callback states in the sharded checkpoints of `ModelParallelStrategy`.

Lightning writes such a checkpoint with `torch.distributed.checkpoint`: every rank its shards of
weights and optimizer states, and the first rank all else in one file. Sharded tensors of a callback
are stored as if they were the state of another optimizer, so that no rank holds all of them and
another number of ranks can read them. In the file meta tensors are in their places.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_map_with_path

from regrow.distributed.parameters import MOMENT
from regrow.distributed.shard import is_dtensor, local_tensor, to_dtensor_like
from regrow.io.integrity import with_digest
from regrow.utils.errors import StateError

METADATA = "meta.pt"  # Lightning's name of the file that has all but the shards
ENTRY = "sharded_in"  # key in a state: the entry of the checkpoint that has its tensors


def file_of(path: str | Path) -> Path:
    """Return the file of a checkpoint that has the callbacks' states."""
    return Path(path) / METADATA if Path(path).is_dir() else Path(path)


def saves_shards(strategy: object) -> bool:
    """Check whether a strategy of Lightning saves sharded checkpoints."""
    return bool(getattr(strategy, "_save_distributed_checkpoint", False))


def move_shards(checkpoint: dict[str, Any], key: str) -> None:
    """Move the DTensors of a callback's state to the optimizer states of a checkpoint.

    The state in the checkpoint is replaced, not changed.
    """
    if key not in checkpoint.get("callbacks", {}):  # weights only
        return
    moved: dict[str, Tensor] = {}

    def move(path: Any, value: Any) -> Any:
        if not isinstance(value, Tensor) or not is_dtensor(value):
            return value
        moved[key + keystr(path)] = value
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    state = tree_map_with_path(move, checkpoint["callbacks"][key])
    if moved:
        states = checkpoint["optimizer_states"]
        entry = f"optimizer_{len(states)}"  # as Lightning names the next one in the folder
        states.append(moved)
        checkpoint["callbacks"][key] = {**state, ENTRY: entry}


def load_shards(
    checkpoint: Mapping[str, Any], key: str, path: object, parameters: Mapping[str, Tensor]
) -> Mapping[str, Any] | None:
    """Load the tensors that `move_shards` moved back into a callback's state; None: there is none.

    Each rank reads what its shards need, whatever the number of ranks that saved them; no
    collective is called. Lightning's `consolidate_checkpoint` puts them all in one file. Tensors
    are sharded as `parameters` are, and the state replaces that in `checkpoint`.
    """
    state = (checkpoint.get("callbacks") or {}).get(key)
    if not state or ENTRY not in state:
        return cast("Mapping[str, Any] | None", state)
    consolidated, loaded = checkpoint.get(state[ENTRY]), dict[str, Tensor]()

    def make(place: Any, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_meta:
            return value
        parameter = parameters.get(place[-1].key.partition(MOMENT)[0])
        if parameter is None or parameter.shape != value.shape:
            raise StateError(
                f"the checkpoint has values of {place[-1].key} with shape {tuple(value.shape)}, "
                "which the model has not: it belongs to another model"
            )
        if consolidated is not None:
            return consolidated[key + keystr(place)]
        part = torch.zeros(local_tensor(parameter).shape, dtype=value.dtype)
        loaded[key + keystr(place)] = whole = to_dtensor_like(parameter, part).cpu()
        return whole

    filled = tree_map_with_path(make, {k: v for k, v in state.items() if k != ENTRY})
    if loaded:
        _read({state[ENTRY]: loaded}, Path(str(path)))
    filled["pruner"] = with_digest(filled["pruner"])  # plain tensors are covered too
    checkpoint["callbacks"][key] = filled
    return cast("Mapping[str, Any]", filled)


def _read(tensors: dict[str, Any], folder: Path) -> None:
    """Read tensors of a sharded checkpoint, in place."""
    from torch.distributed.checkpoint.state_dict_loader import load  # slow to import

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(tensors, checkpoint_id=folder, no_dist=True)
    except BaseException as error:  # torch's CheckpointException is none of Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise StateError(
            f"{folder} has not all of the values that pruning stores in it: it is damaged, or was "
            f"not written whole; resume from an earlier checkpoint ({error})"
        ) from error
