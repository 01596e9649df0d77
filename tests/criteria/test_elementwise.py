# SPDX-License-Identifier: MIT
"""Scores compared with NumPy, and errors."""

import functools

import numpy as np
import pytest
import torch

import regrow
from regrow.criteria.base import (
    CRITERIA,
    TrackingCriterion,
    compute_scores,
    get_criterion,
    needs_gradients,
)
from regrow.criteria.elementwise import gradient, magnitude, random, taylor
from regrow.criteria.movement import Movement
from regrow.utils.errors import ConfigError, StateError
from regrow.utils.random import make_generator

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def pair(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    weight, grad = torch.randn(2, 6, 5, generator=generator).to(dtype)
    return weight, grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_equal_their_formulas_in_numpy(dtype):
    weight, grad = pair(dtype)
    w, g = weight.double().numpy(), grad.double().numpy()
    for found, wanted in [
        (magnitude(weight), np.abs(w)),
        (gradient(weight, grad), np.abs(g)),
        (taylor(weight, grad), np.abs(w * g)),
    ]:
        np.testing.assert_allclose(found.double().numpy(), wanted, rtol=1e-6)
        assert found.shape == weight.shape


def test_small_products_do_not_vanish_in_half_precision():
    weight = torch.tensor([1e-4, 1e-4], dtype=torch.float16)
    grad = torch.tensor([1e-4, 2e-4], dtype=torch.float16)
    low, high = taylor(weight, grad).tolist()
    assert 0 < low < high


def test_movement_is_minus_the_sum_of_products():
    movement, steps = Movement(), [pair() for _ in range(3)]
    for i, (weight, grad) in enumerate(steps):
        movement.update("w", weight * i, grad.half())
    wanted = -sum(
        (w * i).double().numpy() * g.half().double().numpy() for i, (w, g) in enumerate(steps)
    )
    found = movement.scores("w", steps[0][0])
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32


def test_movement_is_saved_and_restored():
    weight, grad = pair()
    one, two = Movement(), Movement()
    one.update("w", weight, grad)
    two.load_state_dict(one.state_dict())
    assert torch.equal(two.scores("w", weight), one.scores("w", weight))
    two.update("w", weight, grad)
    assert not torch.equal(two.scores("w", weight), one.scores("w", weight)), "no shared memory"
    with pytest.raises(StateError, match=r"movement has seen no gradient of fc.weight"):
        one.scores("fc.weight", weight)


def test_random_scores_depend_only_on_seed_event_and_name():
    def draw(seed, event, name):
        torch.rand(7)  # what else is drawn must not matter
        return compute_scores(get_criterion("random"), name, torch.zeros(50), None, (seed, event))

    first = draw(0, 0, "a")
    assert torch.equal(first, draw(0, 0, "a"))
    for other in ((1, 0, "a"), (0, 1, "a"), (0, 0, "b")):
        assert not torch.equal(first, draw(*other))
    assert 0 <= first.min() < first.max() < 1
    before = torch.get_rng_state()
    random(torch.zeros(3), generator=make_generator(0, 0, "a"))
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"


def test_random_scores_do_not_depend_on_layout_and_precision():
    plain = torch.zeros(4, 3, 2, 2)
    wanted = random(plain, generator=make_generator(0, 0, "w"))
    for weight in (plain.to(memory_format=torch.channels_last), plain.half()):
        assert torch.equal(random(weight, generator=make_generator(0, 0, "w")), wanted)


def deletes(weight, grad):
    del grad
    return weight.abs()


class Blind:
    def __call__(self, weight, grad):
        return weight.abs()


class Seeing:
    def __call__(self, weight, grad):
        return weight.abs() * grad


@pytest.mark.parametrize("criterion", [lambda w, g: w.abs(), deletes, Blind()])
def test_a_criterion_that_ignores_gradients_works_without(criterion):
    net = torch.nn.Linear(8, 8)
    kept = net.weight.detach().abs().flatten().argsort()[32:]
    mask = regrow.prune(net, 0.5, criterion=criterion)["weight"]
    assert mask.flatten().nonzero().flatten().tolist() == sorted(kept.tolist())


def test_a_criterion_that_reads_gradients_raises_without():
    with pytest.raises(regrow.StateError, match="needs the gradient of weight"):
        regrow.prune(torch.nn.Linear(8, 8), 0.5, criterion=Seeing())


def test_criteria_say_whether_they_need_gradients():
    assert {name for name in CRITERIA if needs_gradients(get_criterion(name))} == {
        "gradient",
        "taylor",
        "snip",
    }
    assert needs_gradients(lambda w, g: w * g)
    assert needs_gradients(lambda w, g: w if g is None else g)
    assert needs_gradients(lambda w, g: (lambda: g)()), "read by a function within"
    assert not needs_gradients(lambda w, g: w.abs()), "it never reads the gradient"
    assert not needs_gradients(deletes), "it never reads the gradient"
    assert not needs_gradients(Blind())
    assert needs_gradients(Seeing())
    assert needs_gradients(functools.wraps(deletes)(lambda *given: given[1])), "it cannot be known"
    assert not needs_gradients(lambda w, g=None: w)
    assert not needs_gradients(lambda w, *, power=2: w)
    assert not needs_gradients(torch.abs), "a builtin does not tell: it gets the weight"
    assert needs_gradients(functools.partial(taylor))


def test_any_callable_is_a_criterion():
    weight, grad = pair()
    own = get_criterion(lambda w, g: w.abs() + g.abs())
    assert torch.equal(compute_scores(own, "w", weight, grad, (0, 0)), weight.abs() + grad.abs())
    assert torch.equal(compute_scores(torch.abs, "w", weight, None, (0, 0)), weight.abs())


def test_names_make_criteria():
    assert get_criterion("snip") is taylor
    assert isinstance(get_criterion("movement"), TrackingCriterion)
    assert get_criterion("movement") is not get_criterion("movement")
    with pytest.raises(ConfigError, match=r"criterion must be one of .*did you mean 'magnitude'"):
        get_criterion("magnitud")
    with pytest.raises(ConfigError, match="a callable"):
        get_criterion(3)
    with pytest.raises(ConfigError, match=r"an object such as Movement\(\), got <class"):
        get_criterion(Movement)


def test_missing_gradient_raises():
    with pytest.raises(StateError, match=r"needs the gradient of fc.weight, which has none"):
        compute_scores(taylor, "fc.weight", torch.ones(2), None, (0, 0))


@pytest.mark.parametrize("bad", [lambda w: w.sum(), lambda w: w.argsort()])
def test_scores_of_another_shape_raise(bad):
    with pytest.raises(StateError, match=r"scores of w must be floating point of shape \(4,\)"):
        compute_scores(bad, "w", torch.ones(4), None, (0, 0))
