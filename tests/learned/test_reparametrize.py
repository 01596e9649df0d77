# SPDX-License-Identifier: MIT
"""The mechanism against networks that have f in their forward pass, over whole trainings."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regrow.learned.learner import Learner
from regrow.learned.learning_window import LearningWindow
from regrow.learned.methods import L0, STR, ContinuousSparsification, EdgePopup
from regrow.learned.reparametrize import Reparametrization
from regrow.pruning.pruner import Pruner
from regrow.utils.errors import StateError

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
RULES = {"str": STR(first=-2.0), "cs": ContinuousSparsification(), "l0": L0(), "top": EdgePopup()}
STEPS, LENGTH, PENALTY = 12, 24, 0.003


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def batches(count=STEPS):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 8, 6, generator=generator, dtype=torch.float64)
    return [(x, x[:, :3].argmax(1)) for x in inputs]


class Explicit(nn.Module):
    """The same network, with weights and scores as parameters and f in its forward pass."""

    def __init__(self, kind, net, marks):
        super().__init__()
        self.kind = kind
        self.weights = nn.ParameterList([net[0].weight.clone(), net[2].weight.clone()])
        self.biases = nn.ParameterList([net[0].bias.clone(), net[2].bias.clone()])
        self.scores = nn.ParameterList([mark.clone() for mark in marks])

    def effective(self, weight, score, beta, noise):
        if self.kind == "str":
            return torch.sign(weight) * torch.relu(weight.abs() - torch.sigmoid(score))
        if self.kind == "cs":
            return weight * torch.sigmoid(beta * score)
        if self.kind == "l0":
            gate = torch.sigmoid((noise + score) * 1.5) * 1.2 - 0.1
            return weight * gate.clamp(0, 1)
        count = round(0.5 * weight.numel())
        hard = torch.zeros_like(weight).flatten()
        hard[score.abs().flatten().topk(weight.numel() - count).indices] = 1
        size = score.abs()
        return weight * (hard.view_as(weight) + size - size.detach())

    def penalty(self, beta):
        if self.kind == "str":
            return sum((s - 5).square() / 2 for s in self.scores)
        if self.kind == "cs":
            return sum(torch.sigmoid(beta * s).sum() for s in self.scores)
        shift = (2 / 3) * torch.log(torch.tensor(0.1 / 1.1, dtype=torch.float64))
        return sum(torch.sigmoid(s - shift).sum() for s in self.scores)

    def forward(self, inputs, beta, noises):
        first, second = (
            self.effective(*each)
            for each in zip(self.weights, self.scores, [beta] * 2, noises, strict=True)
        )
        hidden = torch.tanh(F.linear(inputs, first, self.biases[0]))
        return F.linear(hidden, second, self.biases[1])


def train(kind, make, scores_by, monkeypatch):
    """Both, side by side; the noise is what the learner drew."""
    net, rule = network(), RULES[kind]
    learner = Learner(rule, optimizer=scores_by, train_weights=True)
    names = ("0.weight", "2.weight")
    named = dict(net.named_parameters())
    learner.attach({name: named[name] for name in names})

    def highest():
        marks = [learner.scores[name].detach().abs() for name in names]
        tops = [m.flatten().topk(m.numel() - round(0.5 * m.numel())).indices for m in marks]
        masks = [torch.zeros(m.numel(), dtype=torch.bool) for m in marks]
        for mask, top in zip(masks, tops, strict=True):
            mask[top] = True
        return {n: m.view_as(mark) for n, m, mark in zip(names, masks, marks, strict=True)}

    learner.choose = highest if kind == "top" else dict
    monkeypatch.setattr(Learner, "update_penalty", lambda self, now: None)
    optimizer = make(net.parameters())
    learner.start(LearningWindow(0.5, 0.7, 0, LENGTH), 0.02)
    learner.penalty = 0.0 if kind == "top" else PENALTY
    reference = Explicit(kind, network(), [learner.scores[n].detach() for n in names])
    theirs = make([*reference.weights, *reference.biases])
    of_scores = {"adam": torch.optim.Adam, "sgd": partial(torch.optim.SGD, momentum=0.9)}
    movers = of_scores[scores_by](reference.scores, lr=0.02)
    for step, (inputs, labels) in enumerate(batches()):
        if rule.stochastic:
            learner.sample_noise(step)
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), labels).backward()
        learner.backward_to_dense(optimizer)
        noises = [learner._noise.get(name) for name in names]
        optimizer.step()
        learner.step(optimizer, step)
        beta = 200.0 ** (step / LENGTH)
        theirs.zero_grad(), movers.zero_grad()
        F.cross_entropy(reference(inputs, beta, noises), labels).backward()
        theirs.step(), movers.step()
        if learner.penalty:
            reference.scores.zero_grad()
            reference.penalty(200.0 ** ((step + 1) / LENGTH)).backward()
            with torch.no_grad():
                for scores in reference.scores:
                    scores.sub_(PENALTY * scores.grad)
        yield net, learner, reference, names


@pytest.mark.parametrize("scores_by", ["adam", "sgd"])
@pytest.mark.parametrize("make", [SGD, ADAMW], ids=["momentum", "adamw"])
@pytest.mark.parametrize("kind", RULES)
def test_trains_as_the_network_with_f_in_its_forward_pass(kind, make, scores_by, monkeypatch):
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
    steps = 0
    for net, learner, reference, names in train(kind, make, scores_by, monkeypatch):
        steps += 1
        for name, weight, scores in zip(names, reference.weights, reference.scores, strict=True):
            close(learner.dense[name], weight.detach())
            close(learner.scores[name].detach(), scores.detach())
        close(net[0].bias.detach(), reference.biases[0].detach())
    assert steps == STEPS
    moved = [(learner.dense[n] - before).abs().max() for n, before in start(names)]
    assert min(moved) > 1e-3


def start(names):
    named = dict(network().named_parameters())
    return [(name, named[name].detach()) for name in names]


def one(rule, values, **kw):
    weight = nn.Parameter(torch.tensor(values))
    learner = Reparametrization(rule, **kw)
    learner.attach({"w": weight})
    learner.begin()
    return weight, learner


def test_zero_is_positive_zero():
    weight, _ = one(STR(first=0.0), [-0.25, 0.25, -0.0, 2.0])
    assert weight.view(torch.int32)[:3].tolist() == [0, 0, 0]


def test_noise_is_a_function_of_the_step():
    weight, learner = one(L0(), [1.0] * 50)
    rest = weight.detach().clone()
    learner.sample_noise(3)
    first = weight.detach().clone()
    learner.flush_dense()
    assert torch.equal(weight, rest)
    assert not torch.equal(first, rest)
    learner.sample_noise(3)
    assert torch.equal(weight, first)
    learner.sample_noise(4)
    assert not torch.equal(weight, first)


def test_a_skipped_step_leaves_effective_weights():
    weight, learner = one(STR(first=0.0), [2.0, -3.0])
    sgd = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.ones(2)
    learner.backward_to_dense(sgd)
    assert weight.tolist() == [2.0, -3.0]
    learner.flush_dense()
    assert weight.tolist() == [1.5, -2.5]
    assert learner.scores["w"].grad is None


def test_fixed_weights_are_not_changed_by_an_optimizer():
    weight, learner = one(ContinuousSparsification(), [2.0, -3.0], train_weights=False)
    decays = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.5)
    weight.grad = torch.ones(2)
    learner.backward_to_dense(decays)
    decays.step()
    assert learner.collect_dense(decays) == ["w"]
    assert learner.dense["w"].tolist() == [2.0, -3.0]
    assert learner.scores["w"].grad is not None


def test_step_without_hooks_raises():
    weight, learner = one(STR(), [2.0])
    sgd = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.ones(1)
    sgd.step()
    with pytest.raises(StateError, match=r"step\(\) of self.optimizers"):
        learner.collect_dense(sgd)


def test_parameters_of_other_optimizers_are_unchanged():
    weight, learner = one(STR(first=0.0), [2.0])
    other = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    learner.backward_to_dense(torch.optim.SGD([other], lr=1.0))
    assert weight.tolist() == [1.5]
    assert weight.grad.tolist() == [1.0]


@pytest.mark.parametrize("kind", ["str", "cs"])
def test_a_shared_weight_trains_as_one_that_the_forward_pass_uses_twice(kind, monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    net[2].weight = net[0].weight
    learner = Learner(RULES[kind], optimizer="sgd", train_weights=True)
    learner.attach_to(Pruner(net))
    assert [*learner.parameters] == ["0.weight"]
    monkeypatch.setattr(Learner, "update_penalty", lambda self, now: None)
    weight, bias, other = (p.detach().clone().requires_grad_() for p in net.parameters())
    optimizer, theirs = SGD(net.parameters()), SGD([weight, bias, other])
    learner.start(LearningWindow(0.5, 0.7, 0, LENGTH), 0.02)
    scores = learner.scores["0.weight"].detach().clone().requires_grad_()
    movers = torch.optim.SGD([scores], lr=0.02, momentum=0.9)
    for step, (inputs, labels) in enumerate(batches()):
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), labels).backward()
        learner.backward_to_dense(optimizer)
        optimizer.step()
        learner.step(optimizer, step)
        theirs.zero_grad(), movers.zero_grad()
        effective = weight * torch.sigmoid(200.0 ** (step / LENGTH) * scores)
        if kind == "str":
            effective = torch.sign(weight) * torch.relu(weight.abs() - torch.sigmoid(scores))
        hidden = torch.tanh(F.linear(inputs, effective, bias))
        F.cross_entropy(F.linear(hidden, effective, other), labels).backward()
        theirs.step(), movers.step()
        close = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
        close(learner.dense["0.weight"], weight.detach())
        close(learner.scores["0.weight"].detach(), scores.detach())
    assert net[2].weight is net[0].weight
