# SPDX-License-Identifier: MIT
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR

from regrow.app.training.lr_schedules import constant, cosine, linear, multistep
from regrow.utils.errors import ConfigError


def rates(make: Callable[[SGD], LRScheduler], steps: int) -> list[float]:
    sgd = SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler = make(sgd)
    seen = []
    for _ in range(steps):
        seen.append(sgd.param_groups[0]["lr"])
        sgd.step()
        scheduler.step()
    return [*seen, sgd.param_groups[0]["lr"]]


@given(st.integers(1, 60), st.floats(0, 1))
def test_cosine_equals_torchs(total: int, final: float) -> None:
    mine = rates(lambda sgd: cosine(sgd, total, final=final), total)
    theirs = rates(lambda sgd: CosineAnnealingLR(sgd, total, eta_min=0.2 * final), total)
    assert mine == pytest.approx(theirs, abs=1e-9)


@given(st.integers(1, 60), st.floats(0.01, 1))
def test_linear_equals_torchs(total: int, final: float) -> None:
    mine = rates(lambda sgd: linear(sgd, total, final=final), total)
    theirs = rates(lambda sgd: LinearLR(sgd, 1.0, final, total), total)
    assert mine == pytest.approx(theirs, abs=1e-9)


def test_multistep_equals_torchs() -> None:
    mine = rates(lambda sgd: multistep(sgd, 41, (0.3, 0.5, 0.75), gamma=0.2), 41)
    theirs = rates(lambda sgd: MultiStepLR(sgd, [12, 20, 31], 0.2), 41)
    assert mine == pytest.approx(theirs)


def test_constant_never_changes() -> None:
    assert rates(lambda sgd: constant(sgd, 5), 5) == [0.2] * 6


@pytest.mark.parametrize("schedule", [constant, linear, cosine])
def test_warmup_rises_to_the_full_rate_before_the_schedule(schedule: Any) -> None:
    seen = rates(lambda sgd: schedule(sgd, 20, warmup=0.25), 20)
    assert seen[:5] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])
    assert seen[5:] == pytest.approx(rates(lambda sgd: schedule(sgd, 15), 15))


def test_milestones_count_the_warmup() -> None:
    seen = rates(lambda sgd: multistep(sgd, 20, (0.5,), warmup=0.25), 20)
    assert seen == pytest.approx([0.04, 0.08, 0.12, 0.16, *[0.2] * 6, *[0.02] * 11])


@given(epoch=st.integers(1, 400), shorter=st.sampled_from([1, 2, 5]))
def test_milestones_in_epochs_are_exact(epoch: int, shorter: int) -> None:
    """Against whole numbers: 90 epochs with a warm-up of 5 and drops at 30, 60 and 80."""
    total = 90 * epoch // shorter
    sgd = SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    factor = multistep(sgd, total, (30, 60, 80), warmup=5, of=90).lr_lambdas[0]
    rise, *drops = (round(5 * total / 90), *(round(e * total / 90) for e in (30, 60, 80)))
    for step in {0, rise, *drops, *(drop - 1 for drop in drops), total - 1} - {-1}:
        expected = (step + 1) / rise if step < rise else 0.1 ** sum(step >= at for at in drops)
        assert factor(step) == pytest.approx(expected)
    if shorter == 1:
        assert (rise, *drops) == (5 * epoch, 30 * epoch, 60 * epoch, 80 * epoch)


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_rate_stays_constant_after_the_end(schedule: Any) -> None:
    assert rates(lambda sgd: schedule(sgd, 4, final=0.5), 9)[4:] == pytest.approx([0.1] * 6)


@pytest.mark.parametrize("schedule", [constant, linear, cosine, multistep])
def test_rates_after_a_resume_are_bit_exact(schedule: Any) -> None:
    whole = rates(lambda sgd: schedule(sgd, 20, warmup=0.1), 20)
    first, second = (SGD([torch.zeros(1, requires_grad=True)], lr=0.2) for _ in range(2))
    before, after = schedule(first, 20, warmup=0.1), schedule(second, 20, warmup=0.1)
    for _ in range(7):
        first.step()
        before.step()
    second.load_state_dict(first.state_dict())
    after.load_state_dict(before.state_dict())
    seen = []
    for _ in range(13):
        seen.append(second.param_groups[0]["lr"])
        second.step()
        after.step()
    assert seen == whole[7:20]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"warmup": 1.0}, "warmup must be a fraction"),
        ({"warmup": 500}, "warmup must be a fraction"),
        ({"milestones": (0.75, 0.5)}, "increasing"),
        ({"milestones": (30, 60)}, "milestones must be a fraction.*of=90"),
        ({"milestones": (30, 90), "of": 90}, r"milestones must be a part of 90 in \[0, 90\)"),
        ({"warmup": 0.05, "of": 0}, "of must be a number above 0"),
        ({"milestones": (60, 30), "of": 90}, "increasing"),
        ({"gamma": -1}, "gamma must be a factor"),
        ({"gamma": float("nan")}, "gamma must be a factor"),
        ({"total_steps": 0}, "total_steps must be"),
    ],
)
def test_wrong_values_raise(wrong: dict[str, Any], message: str) -> None:
    sgd = SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    with pytest.raises(ConfigError, match=message):
        multistep(sgd, **{"total_steps": 10, **wrong})


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_final_is_a_factor(schedule: Any) -> None:
    sgd = SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    with pytest.raises(ConfigError, match="final must be a factor"):
        schedule(sgd, 10, final=-0.1)
