# SPDX-License-Identifier: MIT
"""The fastest form of a layer that computes the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regrow.profiling.latency import Speedup, compare_latency
from regrow.runtime.candidates import find_candidates
from regrow.utils.batches import relative_difference

DENSE = "dense"


@dataclass(frozen=True)
class LayerChoice:
    """What a layer became, and why.

    Attributes:
        name: Of the layer.
        sparsity: The fraction of its weights that are zero.
        form: "dense", "CSR", "BSR 16x16", "2:4" or "channels last".
        speedup: Of this form; None for "dense".
        reason: What was measured of each form.
    """

    name: str
    sparsity: float
    form: str
    speedup: Speedup | None
    reason: str


def choose_form(
    name: str, layer: nn.Module, x: Tensor | None, *, tolerance: float, repeats: int
) -> tuple[LayerChoice, nn.Module]:
    """Compare the forms of a layer on its input `x`, and return the best with its module."""
    sparsity = float((layer.get_parameter("weight") == 0).double().mean())
    if x is None:
        return LayerChoice(name, sparsity, DENSE, None, "not called"), layer
    best, module, form = None, layer, DENSE
    reasons = []
    for candidate, make in find_candidates(layer):
        try:
            other = make()
            with torch.inference_mode():
                difference = relative_difference(other(x), layer(x))
            if not difference <= tolerance:
                reasons.append(f"{candidate} differs by {difference:.1g}")
                continue
            speedup = compare_latency(layer, other, (x,), repeats=repeats).speedup
        except RuntimeError as error:  # an operator without a kernel for a device or a dtype
            reasons.append(f"{candidate} fails: {str(error).splitlines()[0][:80]}")
            continue
        reasons.append(f"{candidate} {speedup}")
        if speedup.is_faster and (best is None or speedup.ratio > best.ratio):
            best, module, form = speedup, other, candidate
    reason = "; ".join(reasons) or "no other form: too few zeros, or no sparse kernel"
    return LayerChoice(name, sparsity, form, best, reason), module
