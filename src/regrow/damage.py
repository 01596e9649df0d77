# SPDX-License-Identifier: MIT
"""Checkpoints that are not what was written: a damaged file, weights and masks of two moments."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrow.errors import StateError
from regrow.masks import check_packed, unpack_bits
from regrow.sharding import is_cut
from regrow.targets import clean


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint file, read with `weights_only=True` and compared with its checksums.

    Raises:
        StateError: If it is damaged, or holds more than tensors and plain values.
    """
    refuse_damaged(path)
    try:
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever damaged bytes lead torch and pickle into
        raise StateError(
            f"{path} cannot be read as a checkpoint of tensors and plain values: {error}"
        ) from error
    return loaded


def refuse_damaged(path: object, old: bool = True) -> None:
    """Reads a checkpoint file once more and compares it with the checksums in it.

    `torch.load` does not: most flipped bits load as other numbers. What is no file (folders of
    sharded checkpoints, addresses) is left alone.

    Args:
        path: The file.
        old: Whether it may be of PyTorch's format before 1.6, which has no checksums.

    Raises:
        StateError: Naming the file and the first part of it that is damaged.
    """
    if path is None or not Path(str(path)).is_file():
        return
    try:
        if not zipfile.is_zipfile(str(path)):
            reason = None if old else "it has no end"
        else:
            with zipfile.ZipFile(str(path)) as archive:
                bad = archive.testzip()
            reason = None if bad is None else f"the checksum of {bad} is wrong"
    except Exception as error:  # whatever a damaged directory leads zipfile into
        reason = str(error)
    if reason is not None:
        raise StateError(
            f"{path} is damaged ({reason}): go on from an earlier checkpoint, or remove it"
        )


def refuse_unmasked(packed: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Refuses weights beside masks that they do not obey.

    In every checkpoint a pruned weight is exactly +0.0; one that is not means that weights and
    masks were saved at different moments, or changed since. Weights that are not there, have
    another shape or are sharded are left alone.

    Args:
        packed: What `Masks.pack` gave.
        tensors: Weights by name, as in a model's `state_dict`.

    Raises:
        StateError: Naming the parameters.
    """
    check_packed(packed)
    named = {clean(str(name)): value for name, value in tensors.items()}
    wrong = []
    for name, shape in packed.get("shapes", {}).items():  # one mask at a time
        weight = named.get(name)
        if isinstance(weight, Tensor) and not is_cut(weight) and list(weight.shape) == shape:
            pruned = ~unpack_bits(packed["bits"][name], shape).to(weight.device)
            if bool(_alive(weight.detach())[pruned].any()):
                wrong.append(name)
    if wrong:
        raise StateError(
            f"the checkpoint's weights of {', '.join(wrong[:5])} are not zero where its masks "
            "prune: they are of different moments, or something else wrote these weights: load "
            "them into the model and start a fit without ckpt_path"
        )


def _alive(weight: Tensor) -> Tensor:
    return (weight != 0) | weight.signbit()
