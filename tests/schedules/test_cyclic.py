# SPDX-License-Identifier: MIT
"""AC/DC and dense-sparse-dense: timelines written down by hand."""

from itertools import pairwise

import pytest

from regrow import ACDC, Cyclic
from regrow.schedules.registry import make_schedule
from regrow.schedules.time import Timeline
from regrow.utils.errors import ConfigError

EPOCHS = Timeline(total=1000, steps_per_epoch=10)  # 100 epochs


def phases(plan):
    """Epoch at which each phase begins, "S"parse or "D"ense."""
    return [(step // 10, "S" if sparsity else "D") for step, sparsity in plan]


def test_acdc_phases_equal_the_100_epochs_of_the_paper():
    """Peste et al.: 10 epochs of warm-up, phases of 5, a dense one from 75 to 85, then sparse."""
    expected = [(10 + 5 * k, "SD"[k % 2]) for k in range(14)] + [(85, "S")]
    assert expected[-2:] == [(75, "D"), (85, "S")]
    assert phases(ACDC("10ep", "85ep", "5ep").plan(0.9, EPOCHS)) == expected
    assert ACDC().plan(0.9, EPOCHS) == ACDC("10ep", "85ep", "5ep").plan(0.9, EPOCHS)
    assert {sparsity for _, sparsity in ACDC().plan(0.9, EPOCHS)} == {0.0, 0.9}


def test_acdc_phases_of_16_epochs():
    plan = ACDC("2ep", "13ep", "2ep").plan(0.98, Timeline(160, 10))
    assert phases(plan) == [(2, "S"), (4, "D"), (6, "S"), (8, "D"), (10, "S"), (12, "D"), (13, "S")]


@pytest.mark.parametrize("end", range(30, 90))
def test_acdc_prunes_again_at_its_end(end):
    plan = ACDC("10ep", f"{end}ep", "7ep").plan(0.5, EPOCHS)
    steps = [m.step for m in plan]
    assert plan[-1] == (10 * end, 0.5)
    assert plan[-2].sparsity == 0
    assert all(a.sparsity != b.sparsity for a, b in pairwise(plan))
    lengths = [b - a for a, b in pairwise(steps)]
    assert {*lengths[:-1]} <= {70}
    assert 0 < lengths[-1] <= 140


def test_too_short_fits_and_dense_ends_raise():
    with pytest.raises(ConfigError, match="no room for a sparse and a dense phase of every=5ep"):
        ACDC("10ep", "14ep", "5ep").plan(0.9, EPOCHS)
    with pytest.raises(ConfigError, match=r"AC/DC ends sparse: write Cyclic\(last='dense'\)"):
        ACDC(last="dense")
    with pytest.raises(ConfigError, match="begin=5ep lies after end=3ep"):
        ACDC("5ep", "3ep", "1ep")


def test_acdc_is_made_by_name():
    assert make_schedule("acdc", "1ep", "9ep", "2ep") == ACDC("1ep", "9ep", "2ep")


def test_dense_sparse_dense_has_one_sparse_phase():
    """Han et al. 2017: dense, sparse, dense to the end."""
    plan = Cyclic("40ep", "70ep", "30ep", last="dense").plan(0.5, EPOCHS)
    assert phases(plan) == [(40, "S"), (70, "D")]


@pytest.mark.parametrize("total", range(10, 120))
def test_dense_sparse_dense_of_rounded_fractions_has_one_sparse_phase(total):
    """0.4 + 0.3 is 0.7, also where steps are rounded to a sum past it."""
    plan = Cyclic(0.4, 0.7, 0.3, last="dense").plan(0.5, Timeline(total))
    assert [sparsity for _, sparsity in plan] == [0.5, 0.0]
    assert plan[0].step == round(0.4 * total)
    assert abs(plan[1].step - 0.7 * total) <= 1.5
