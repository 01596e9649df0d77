# SPDX-License-Identifier: MIT
"""Split the cases of a parametrized test into the default run and `make slow`."""

import pytest


def mark_rest_slow(cases, often):
    """List all cases for `parametrize`, with those not in `often` marked slow.

    Raises:
        ValueError: If `often` names a case that does not exist.
    """
    cases, often = list(cases), list(often)
    if missing := [case for case in often if case not in cases]:
        raise ValueError(f"no such cases: {missing}")
    return [c if c in often else pytest.param(c, marks=pytest.mark.slow) for c in cases]
