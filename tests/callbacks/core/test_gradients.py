# SPDX-License-Identifier: MIT
"""Gradient criteria read dense, unscaled, reduced and unclipped gradients."""

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from tiny_fits import ADAM, WEIGHTS, Events, Net, fit, loader, magnitude_masks, zeros
from torch import nn, optim

from regrow import ConfigError, MagnitudePruning, Movement, OneShot, Table

SGD = lambda parameters: optim.SGD(parameters, lr=0.1)  # noqa: E731


def batches():
    return list(loader())


def gradients(weights, batch):
    """The gradients of the toy network, by NumPy."""
    w0, b0, w1, b1 = (w.astype(np.float64) for w in weights)
    x, y = batch[0].numpy().astype(np.float64), batch[1].numpy()
    hidden = np.tanh(x @ w0.T + b0)
    logits = hidden @ w1.T + b1
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p /= len(y)
    back = (p @ w1) * (1 - hidden**2)
    return [back.T @ x, back.sum(0), p.T @ hidden, p.sum(0)]


def trained(weights, steps, masks=None, clip=None, window=1):
    """Plain SGD by NumPy; yields (weights, dense gradients) at each step."""
    data = batches()
    for step in range(steps):
        window_gradients = [
            gradients(weights, data[(step * window + i) % len(data)]) for i in range(window)
        ]
        dense = [sum(parts) / window for parts in zip(*window_gradients, strict=True)]
        yield weights, dense
        live = dense if masks is None else [g * m for g, m in zip(dense, masks, strict=True)]
        if clip is not None:
            norm = np.sqrt(sum((g**2).sum() for g in live))
            live = [g * min(1, clip / (norm + 1e-6)) for g in live]
        weights = [w - 0.1 * g for w, g in zip(weights, live, strict=True)]


def start():
    return [p.detach().numpy().copy() for p in Net().parameters()]


def by_hand(scores, count):
    names = ["body.0.weight", "body.2.weight"]
    return magnitude_masks(dict(zip(names, map(torch.from_numpy, scores), strict=True)), count)


CONDITIONS = {
    "plain": {},
    "clipped": {"gradient_clip_val": 0.01},
    "scaled": {"plugins": lambda: MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))},
    "accumulated": {"accumulate_grad_batches": 2},
}


class InFloat(Net):
    """Computes in float32 also under autocast, so that scaling is all that differs."""

    def loss(self, batch):
        with torch.autocast("cpu", enabled=False):
            return super().loss(batch)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("criterion", ["taylor", "snip", "gradient"])
def test_scores_equal_a_manual_computation(criterion, condition):
    settings = {k: v() if callable(v) else v for k, v in CONDITIONS[condition].items()}
    at = 2
    pruning = MagnitudePruning(0.6, schedule=OneShot(f"{at}it"), criterion=criterion)
    fit(InFloat(SGD), pruning, max_epochs=1, **settings)
    *_, (weights, dense) = trained(
        start(),
        at + 1,
        clip=settings.get("gradient_clip_val"),
        window=settings.get("accumulate_grad_batches", 1),
    )
    scores = [np.abs(dense[i] * (1 if criterion == "gradient" else weights[i])) for i in (0, 2)]
    expected = by_hand(scores, round(0.6 * WEIGHTS))
    assert all(torch.equal(pruning.masks[name], expected[name]) for name in expected)


def test_second_event_uses_dense_gradients_and_keeps_pruned_weights():
    """Scores at pruned places are ignored: pruned weights stay pruned."""
    pruning = MagnitudePruning(0.6, schedule=Table({"1it": 0.3, "2it": 0.6}), criterion="gradient")
    fit(Net(SGD), pruning, max_epochs=1)
    *_, (weights, dense) = trained(start(), 2)
    first = by_hand([np.abs(dense[i]) for i in (0, 2)], round(0.3 * WEIGHTS))
    masks = [first["body.0.weight"].numpy(), 1, first["body.2.weight"].numpy(), 1]
    masked = [w * m for w, m in zip(weights, masks, strict=True)]
    # the event falls before this step's update
    after = [w - 0.1 * g * m for w, g, m in zip(masked, dense, masks, strict=True)]
    dense = gradients(after, batches()[2])
    scores = [np.where(masks[i], np.abs(dense[i]), -1) for i in (0, 2)]
    expected = by_hand([s + 1 for s in scores], round(0.6 * WEIGHTS))
    assert all(torch.equal(pruning.masks[name], expected[name]) for name in expected)


@pytest.mark.parametrize("spell", [lambda: "movement", Movement])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_movement_is_the_sum_over_all_steps(clip, spell):
    at = 5
    pruning = MagnitudePruning(0.6, schedule=OneShot(f"{at}it"), criterion=spell())
    fit(Net(SGD), pruning, max_epochs=1, gradient_clip_val=clip)
    sums = [np.zeros((16, 6)), np.zeros((3, 16))]
    for weights, dense in trained(start(), at + 1, clip=clip):
        sums = [s - dense[i] * weights[i] for s, i in zip(sums, (0, 2), strict=True)]
    lowest = min(s.min() for s in sums)
    expected = by_hand([s - lowest + 1 for s in sums], round(0.6 * WEIGHTS))
    assert all(torch.equal(pruning.masks[name], expected[name]) for name in expected)


def test_movement_includes_gradients_of_pruned_weights():
    pruning = MagnitudePruning(0.6, schedule=OneShot("1it"), criterion="movement")
    fit(Net(SGD), pruning, max_epochs=1, max_steps=2)
    evidence = pruning.pruner.criterion.state_dict()
    sums = [np.zeros((16, 6)), np.zeros((3, 16))]
    for weights, dense in trained(start(), 2):
        sums = [s - dense[i] * weights[i] for s, i in zip(sums, (0, 2), strict=True)]
    for expected, name in zip(sums, pruning.masks, strict=True):
        np.testing.assert_allclose(evidence[name].numpy(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("criterion", ["taylor", "movement"])
def test_another_pruning_callback_changes_no_score(criterion):
    """Each gradient is read once, dense, whichever callback masks first."""
    alone = MagnitudePruning(0.6, schedule=OneShot("4it"), criterion=criterion, include="body.0")
    fit(Net(ADAM), alone)
    for first in (False, True):
        other = MagnitudePruning(0.0, schedule=OneShot(0), include="body.2")
        again = MagnitudePruning(
            0.6, schedule=OneShot("4it"), criterion=criterion, include="body.0"
        )
        fit(Net(ADAM), *([other, again] if first else [again, other]))
        assert torch.equal(alone.masks["body.0.weight"], again.masks["body.0.weight"])
        states = [p.pruner.state_dict()["criterion"] for p in (alone, again)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_custom_criteria_are_supported():
    class Largest:
        """Tracks the largest gradient."""

        def __init__(self):
            self.seen = {}

        def update(self, name, weight, grad):
            self.seen[name] = torch.maximum(self.seen.get(name, grad.abs()), grad.abs()).clone()

        def scores(self, name, weight):
            return self.seen[name]

        def state_dict(self):
            return dict(self.seen)

        def load_state_dict(self, state):
            self.seen = dict(state)

    for criterion in (Largest(), lambda weight, grad: grad.square(), lambda weight: -weight.abs()):
        module, events = Net(), Events()
        fit(module, events, MagnitudePruning(0.5, schedule=OneShot("4it"), criterion=criterion))
        assert events.seen == [(4, 0.5)]
        assert zeros(module) == WEIGHTS // 2


@pytest.mark.parametrize("criterion", ["taylor", "gradient", "movement"])
def test_frozen_layer_raises_before_training(criterion):
    module = Net(lambda parameters: optim.SGD([p for p in parameters if p.requires_grad], lr=0.1))
    module.body[0].requires_grad_(False)
    with pytest.raises(ConfigError, match="exclude what is not trained"):
        fit(module, MagnitudePruning(0.5, schedule=OneShot("1it"), criterion=criterion))
    assert module.trained == 0


def test_random_scores_depend_on_the_seed_only():
    masks = []
    for number, seed in enumerate([0, 0, 1]):
        torch.manual_seed(number)
        pruning = MagnitudePruning(
            0.6, schedule=Table({"1it": 0.3, "4it": 0.6}), criterion="random", seed=seed
        )
        module = Net()
        torch.rand(number + 1)
        fit(module, pruning)
        assert zeros(module) == round(0.6 * WEIGHTS)
        masks.append(nn.utils.parameters_to_vector(pruning.masks.values()))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
