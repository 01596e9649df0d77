# SPDX-License-Identifier: MIT
"""When outputs count as equal."""

import pytest
import torch

from regrow.io.program import ExportMismatch, difference

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("found", "right", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, INF, NAN, -INF], [1.0, INF, NAN, -INF], 0.0),
        ([1.0, 8.0004], [1.0, 8.0], 5e-5),
        ([1.0, 8.004], [1.0, 8.0], None),
        ([1.0, NAN], [1.0, 8.0], None),
        ([1.0, INF], [1.0, -INF], None),
        ([1.0, INF], [1.0, 8.0], None),
        ([8.0004, -1e9], [8.0, -1e9], 5e-5),
        ([8.004, -1e9], [8.0, -1e9], None),
        ([], [], 0.0),
        ([1], [1], 0.0),
        ([1], [2], None),
        ([1.0], [1], None),
        ([1.0], [[1.0]], None),
    ],
)
def test_difference_is_the_relative_error_or_raises(found, right, error):
    if error is None:
        with pytest.raises(ExportMismatch):
            difference([torch.tensor(found)], [torch.tensor(right)])
    else:
        given = difference([torch.tensor(found)], [torch.tensor(right)])
        assert given == pytest.approx(error, rel=0.1)
    with pytest.raises(ExportMismatch, match="it returns 0 tensors"):
        difference([], [torch.tensor(right)])
