# SPDX-License-Identifier: MIT
"""The hash of weights and masks, against whole numbers of Python."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regrow.distributed import fingerprint as module
from regrow.distributed.fingerprint import fingerprint
from regrow.pruning.enforcer import MaskEnforcer


def enforcer(dtype=torch.float32, sizes=((3, 5), (7,)), masked=True):
    generator = torch.Generator().manual_seed(1)
    parameters = {
        str(i): nn.Parameter(torch.randn(size, generator=generator).to(dtype))
        for i, size in enumerate(sizes)
    }
    held = MaskEnforcer(parameters)
    if masked:
        held.set_mask("0", torch.rand(sizes[0], generator=generator) > 0.5)
    return held


def parts(held):
    """The parameters and masks of an enforcer, as `fingerprint` takes them."""
    return held.parameters, {name: held.kept(name) for name in held.parameters}


def by_hand(held, chunk):
    """The same sum with Python's whole numbers."""
    drawn = torch.Generator().manual_seed(0)
    factors = (torch.randint(-(2**62), 2**62, (2, chunk), generator=drawn) * 2 + 1).tolist()
    widths = {2: np.int16, 4: np.int32, 8: np.int64}
    found = 0
    for name, parameter in held.parameters.items():
        bits = parameter.detach().view(torch.uint8).numpy().tobytes()
        values = np.frombuffer(bits, widths[parameter.itemsize]).tolist()
        kept = held.kept(name)
        flags = [] if kept is None else (kept != 0).flatten().tolist()
        for start in range(0, len(values), chunk):
            part = values[start : start + chunk]
            total = sum(r * v for r, v in zip(factors[0], part, strict=False))
            total += sum(
                s for s, k in zip(factors[1], flags[start : start + chunk], strict=False) if k
            )
            found = (found * 6364136223846793005 + total) % 2**64
        found = (found * 6364136223846793005 + (-1 if kept is None else 1)) % 2**64
    return found - 2**64 if found >= 2**63 else found


@pytest.mark.parametrize("chunk", [4, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fingerprint_equals_integer_arithmetic_by_hand(chunk, dtype, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    for masked in (True, False):
        held = enforcer(dtype, masked=masked)
        assert fingerprint(*parts(held)) == by_hand(held, chunk)


@given(st.integers(0, 14), st.booleans())
def test_one_mask_bit_changes_the_fingerprint(place, weight):
    held = enforcer()
    before = fingerprint(*parts(held))
    assert before == fingerprint(*parts(enforcer()))
    if weight:
        held.parameters["0"].data.view(-1)[place] += 1.0
    else:
        mask = held.mask("0").clone()
        mask.view(-1)[place] ^= True
        held.set_mask("0", mask)
    assert fingerprint(*parts(held)) != before


def test_memory_format_does_not_matter():
    weight = torch.randn(4, 3, 2, 2)
    masks = torch.rand(4, 3, 2, 2) > 0.5
    found = set()
    for memory in (torch.contiguous_format, torch.channels_last):
        held = MaskEnforcer({"w": nn.Parameter(weight.to(memory_format=memory))})
        held.set_mask("w", masks)
        found.add(fingerprint(*parts(held)))
    assert len(found) == 1
