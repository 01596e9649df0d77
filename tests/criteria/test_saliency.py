# SPDX-License-Identifier: MIT
"""SNIP against hand-computed gradients, GraSP against an explicit Hessian."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

import regrow
from regrow.criteria.precomputed import Scores
from regrow.criteria.saliency import grasp, snip
from regrow.utils.errors import ConfigError, StateError


def network(seed=0):
    """Two layers in double precision, 23 numbers, 18 of them prunable."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def some_batches(count=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 5, 4, generator=generator, dtype=torch.float64)
    return [(x, x[:, :2].argmax(1)) for x in inputs]


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def by_hand(model, inputs, labels):
    """Gradients of the mean cross-entropy of the two layers, by the chain rule in NumPy."""
    w1, b1, w2, b2 = (p.detach().numpy() for p in model.parameters())
    hidden = np.tanh(inputs @ w1.T + b1)
    logits = hidden @ w2.T + b2
    error = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1
    error /= len(labels)
    back = (error @ w2) * (1 - hidden**2)
    return {"0.weight": back.T @ inputs, "2.weight": error.T @ hidden}


def hessian_product(model, batches):
    """H g over the prunable weights, from the whole Hessian of the mean loss."""
    names = ["0.weight", "2.weight"]
    shapes = [dict(model.named_parameters())[name].shape for name in names]
    rest = {n: p.detach() for n, p in model.named_parameters() if n not in names}
    flat = torch.cat([dict(model.named_parameters())[n].detach().reshape(-1) for n in names])

    def mean_loss(vector):
        parts = vector.split([shape.numel() for shape in shapes])
        own = {n: part.view(s) for n, part, s in zip(names, parts, shapes, strict=True)}
        values = [
            nn.functional.cross_entropy(functional_call(model, own | rest, (x,)), y)
            for x, y in batches
        ]
        return torch.stack(values).mean()

    hessian = torch.autograd.functional.hessian(mean_loss, flat)
    [gradient] = torch.autograd.grad(mean_loss(v := flat.clone().requires_grad_()), [v])
    parts = (hessian @ gradient).split([shape.numel() for shape in shapes])
    return {n: part.view(s) for n, part, s in zip(names, parts, shapes, strict=True)}


def test_snip_equals_weight_times_gradient_by_hand():
    model, batches = network(), some_batches()
    scores = snip(model, batches, loss)
    inputs, labels = (torch.cat(part).numpy() for part in zip(*batches, strict=True))
    for name, gradient in by_hand(model, inputs, labels).items():
        weight = dict(model.named_parameters())[name].detach().numpy()
        np.testing.assert_allclose(scores[name].numpy(), np.abs(weight * gradient), rtol=1e-10)


def test_snip_averages_gradients_before_taking_the_magnitude():
    """Gradients of two batches that cancel leave nothing."""
    model = nn.Linear(2, 1, bias=False)
    scores = snip(model, [torch.ones(1, 2), -torch.ones(1, 2)], lambda net, x: net(x).sum())
    assert not scores["weight"].any()


def test_grasp_equals_weight_times_hessian_times_gradient():
    model, batches = network(), some_batches()
    scores = grasp(model, batches, loss)
    for name, product in hessian_product(model, batches).items():
        weight = dict(model.named_parameters())[name].detach()
        torch.testing.assert_close(scores[name], weight * product, rtol=1e-9, atol=1e-12)


def test_grasp_keeps_the_weights_whose_removal_hurts_gradient_flow():
    """Without a weight of positive score the squared gradient norm falls, to first order."""
    model, batches = network(), some_batches()
    scores, step = grasp(model, batches, loss), 1e-5

    def squared_norm():
        weights = [model[0].weight, model[2].weight]
        total = torch.stack([loss(model, batch) for batch in batches]).mean()
        return sum(float(g.square().sum()) for g in torch.autograd.grad(total, weights))

    before, weight = squared_norm(), model[0].weight.data
    for place in [(0, 0), (1, 2), (2, 3)]:
        value = weight[place].clone()
        weight[place] = value * (1 - step)
        change = (squared_norm() - before) / step
        weight[place] = value
        assert change == pytest.approx(-2 * float(scores["0.weight"][place]), rel=1e-3)


@pytest.mark.parametrize("method", [snip, grasp])
def test_model_is_unchanged(method):
    model = network()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    method(model, some_batches(), loss)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert bool((model[0].weight.grad == 1).all())
    assert model[2].weight.grad is None


@pytest.mark.parametrize("method", [snip, grasp])
def test_gradients_are_averaged_over_ranks(method):
    """Two ranks with a batch each score as one with both."""
    model, batches = network(), some_batches(2)
    wanted = method(model, batches, loss)
    sides: list[list[torch.Tensor]] = []
    for round_ in range(3):  # each finds what the other's means were in the round before
        means = [torch.stack(both).mean(0) for both in zip(*sides, strict=True)]
        sides = []
        for batch in batches:
            asked, given = [], iter(means)

            def mean(grad, asked=asked, given=given):
                asked.append(grad.clone())
                return next(given, grad)

            scores = method(model, [batch], loss, mean=mean)
            sides.append(asked)
        assert round_ < 2 or all(torch.allclose(scores[n], wanted[n]) for n in wanted)


def test_scores_can_be_used_as_a_criterion():
    model = network()
    scores = snip(model, some_batches(), loss)
    masks = regrow.prune(model, 0.5, criterion=scores)
    flat = torch.cat([scores[name].reshape(-1) for name in scores])
    kept = torch.cat([masks[name].reshape(-1) for name in scores])
    assert int(kept.sum()) == 9
    assert flat[kept].min() >= flat[~kept].max()


def test_grasp_of_a_linear_loss_is_zero():
    model = nn.Linear(2, 1)
    assert not grasp(model, [torch.ones(1, 2)], lambda net, x: net(x).sum())["weight"].any()


@pytest.mark.parametrize(
    ("make", "batches", "of", "words"),
    [
        (network, [], loss, "no batches"),
        (network, [0], lambda model, _: torch.ones(2), "scalar tensor"),
        (network, [0], lambda model, _: model[0].weight.sum(), "does not depend on 2.weight"),
        (lambda: network().requires_grad_(False), some_batches(), loss, "0.weight is frozen"),
    ],
)
@pytest.mark.parametrize("method", [snip, grasp])
def test_weights_without_gradient_raise(method, make, batches, of, words):
    with pytest.raises((ConfigError, StateError), match=words):
        method(make(), batches, of)


def ctc(model, batch):
    """A loss whose gradient PyTorch cannot differentiate, of one label in five steps."""
    steps = model(batch[0])[:, None].log_softmax(-1)
    lengths = torch.tensor([5]), torch.tensor([1])
    return nn.functional.ctc_loss(steps, torch.ones(1, 1).long(), *lengths)


def test_grasp_raises_without_second_derivatives():
    with pytest.raises(ConfigError, match=r"second derivatives.*write method='snip'"):
        grasp(network(), some_batches(), ctc)


def test_grasp_works_with_attention():
    """The fast kernel has no second derivative, the plain one has."""
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    sequences = torch.randn(3, 5, 8)
    scores = grasp(net, [sequences], lambda net, x: net(x).square()[..., :3].mean())
    assert all(bool(score.isfinite().all()) and bool(score.any()) for score in scores.values())


def test_missing_scores_raise_with_the_name():
    pruner = regrow.Pruner(network())
    with pytest.raises(StateError, match=r"no scores of 2\.weight \(there are some of 0\.weight\)"):
        pruner.prune_to(0.5, scores=Scores({"0.weight": torch.rand(3, 4)}))
    assert pruner.pruned == 0
    assert pruner.config.criterion is regrow.Pruner(network()).config.criterion
