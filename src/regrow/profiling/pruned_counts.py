# SPDX-License-Identifier: MIT
"""Count pruned weights, with masks that fit the model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from regrow.masks.masks import Masks
from regrow.utils.names import named_parameters, parameters


def pruned_counts(model: nn.Module, masks: Mapping[str, Tensor] | None) -> dict[str, int]:
    """Count the weights that each mask prunes, by the first name of a shared parameter."""
    named = named_parameters(model)
    first = {id(parameter): name for name, parameter in parameters(model).items()}
    return {
        first[id(named[name])]: mask.numel() - int(mask.count_nonzero())
        for name, mask in checked_masks(model, masks).items()
    }


def checked_masks(model: nn.Module, masks: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    """Check that each mask has a parameter of its shape; None: there are no masks.

    Raises:
        StateError: Naming the parameters for which this fails.
    """
    if masks is None:
        return {}
    named = named_parameters(model)
    masks = as_masks(masks)
    masks.check({name: named[name] for name in masks if name in named})
    return masks


def as_masks(masks: Mapping[str, Tensor]) -> Masks:
    """Return masks as `Masks`, which checks that they are bool tensors."""
    return masks if isinstance(masks, Masks) else Masks(masks)
