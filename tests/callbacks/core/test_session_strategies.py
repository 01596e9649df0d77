# SPDX-License-Identifier: MIT
"""Every strategy runs in a plain training loop, without a Trainer, and resumes bit-exactly."""

import copy

import pytest
import torch
from session_loop import LENGTH, Clock, Listeners, network, zeros
from torch import optim

from regrow import (
    ChannelPruning,
    DynamicSparseTraining,
    LearnedMasks,
    PruneAtInit,
    StateError,
    Table,
)

EXAMPLE = torch.zeros(2, 8)

CALLBACKS = {
    "at init": lambda: PruneAtInit(0.5, method="random"),
    "snip": lambda: scored("snip", batches()),
    "grasp": lambda: scored("grasp", batches()),
    "synflow": lambda: scored("synflow", EXAMPLE, rounds=1),
    "rigl": lambda: DynamicSparseTraining(0.5, every="2it", end="6it", distribution="uniform"),
    "set": lambda: DynamicSparseTraining(0.5, grow="random", every="2it", end="6it"),
    "snfs": lambda: DynamicSparseTraining(0.5, grow="momentum", every="2it", end="6it"),
    "learned": lambda: LearnedMasks("str", 0.5, begin="1it", end="5it", ramp=0.5),
    "channels": lambda: ChannelPruning(
        0.5, schedule=Table({"2it": 0.25, "4it": 0.5}), example_input=EXAMPLE, round_to=1
    ),
}


def batches():
    """Two batches to score with."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(4, 8, generator=generator) for _ in range(2)]


def squares(model, batch):
    return model(batch).square().mean()


def scored(method, data, **settings):
    """Pruning at initialisation by scores that need a network and data, but no Trainer."""
    callback = PruneAtInit(0.5, method=method, **settings)
    strategy = callback.strategy
    strategy.make_probe = lambda: (callback.pruner.model, data, lambda t: t, squares)
    return callback


def start(name, clock, net, events=None):
    """The session of a callback at the start of a fit, and its optimizer."""
    session = CALLBACKS[name]().session
    session.attach(net)
    optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    session.start(clock, [optimizer], events=events)
    return session, optimizer


def train(net, session, optimizer, clock, until):
    """A training loop that drives the session; returns the sparsity after each step."""
    learner, found = getattr(session.strategy, "learner", None), []
    while clock.now < until:
        torch.manual_seed(100 + clock.now)
        session.step()
        idle = learner is not None and not (learner.active or session.progress.all_done)
        if idle and clock.now >= session.strategy.first:
            session.strategy.start(session, clock.now)
        loss = net(torch.randn(4, 8)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        session.on_gradients(optimizer)
        session.pruner.enforcer.prepare()
        learning = learner is not None and learner.active
        if learning:
            learner.backward_to_dense(optimizer)
        optimizer.step()
        if learning:
            learner.step(optimizer, clock.now, 1.0)
        clock.now += 1
        found.append(session.strategy.sparsity(session.pruner))
    return found


def kinds(session):
    return [(entry["kind"], entry["step"]) for entry in session.pruner.history]


def test_pruning_at_init_prunes_once_before_the_first_step():
    net, clock, events = network(), Clock(), Listeners()
    session, optimizer = start("at init", clock, net, events)
    session.begin()
    assert train(net, session, optimizer, clock, LENGTH) == [0.5] * LENGTH
    assert events.seen == ["before", (0, 0.0, 0.5)]
    assert zeros(net) == 0.5


def snip_by_formula(weights, net):
    """|g w|, with g the gradient of the mean loss."""
    loss = sum(squares(net, batch) for batch in batches()) / 2
    return [(g * w).abs() for g, w in zip(torch.autograd.grad(loss, weights), weights, strict=True)]


def grasp_by_formula(weights, net):
    """w (H g), which is half the derivative of g g, here by dense Hessians."""
    shapes = [w.shape for w in weights]

    def loss(flat):
        one, two = (part.view(s) for part, s in zip(flat.split([64, 32]), shapes, strict=True))
        values = {"0.weight": one, "2.weight": two}
        outputs = [torch.func.functional_call(net, values, (batch,)) for batch in batches()]
        return sum(output.square().mean() for output in outputs) / 2

    flat = torch.cat([w.detach().flatten() for w in weights])
    gradient = torch.autograd.functional.jacobian(loss, flat)
    scores = flat * (torch.autograd.functional.hessian(loss, flat) @ gradient)
    return [part.view(s) for part, s in zip(scores.split([64, 32]), shapes, strict=True)]


def synflow_by_formula(weights, net):
    """The sum over all paths through a weight of the product of their |w|, in a linear network."""
    first, second = (w.detach().double().abs() for w in weights)
    return [first * second.sum(0)[:, None], second * first.sum(1)]


@pytest.mark.parametrize(
    ("name", "formula"),
    [("snip", snip_by_formula), ("grasp", grasp_by_formula), ("synflow", synflow_by_formula)],
)
def test_pruning_at_init_keeps_the_highest_scores_of_its_formula(name, formula):
    net, clock = network(), Clock()
    session, optimizer = start(name, clock, net)
    weights = [net[0].weight, net[2].weight]
    expected = torch.cat([s.flatten() for s in formula(weights, net)])
    session.begin()
    assert train(net, session, optimizer, clock, LENGTH) == [0.5] * LENGTH
    kept = torch.cat([mask.flatten() for mask in session.pruner.masks.values()])
    assert set(expected.topk(48).indices.tolist()) == set(kept.nonzero().flatten().tolist())
    assert kinds(session) == [("prune", 0)]
    assert zeros(net) == 0.5


@pytest.mark.parametrize("name", ["rigl", "set", "snfs"])
def test_sparse_training_moves_masks_at_constant_sparsity(name):
    net, clock = network(), Clock()
    session, optimizer = start(name, clock, net)
    session.begin()
    assert train(net, session, optimizer, clock, 2) == [0.5, 0.5]
    before = {n: mask.clone() for n, mask in session.pruner.masks.items()}
    assert train(net, session, optimizer, clock, 3) == [0.5]
    after = session.pruner.masks
    assert any(not torch.equal(before[n], after[n]) for n in before)
    assert all(before[n].sum() == after[n].sum() for n in before)
    train(net, session, optimizer, clock, LENGTH)
    assert kinds(session)[:2] == [("prune", 0), ("drop_and_grow", 2)]
    assert zeros(net) == 0.5


def test_gradient_growth_waits_for_gradients():
    net, clock = network(), Clock()
    session, optimizer = start("rigl", clock, net)
    session.begin()
    train(net, session, optimizer, clock, 2)
    session.step()
    assert kinds(session) == [("prune", 0)]


def test_learned_masks_harden_to_the_exact_target():
    net, clock = network(), Clock()
    session, optimizer = start("learned", clock, net)
    session.begin()
    train(net, session, optimizer, clock, 5)
    assert session.strategy.is_changing(session.pruner)
    assert train(net, session, optimizer, clock, LENGTH) == [0.5] * (LENGTH - 5)
    assert kinds(session) == [("prune", 5)]
    assert zeros(net) == 0.5


def test_channels_are_masked_then_cut():
    net, clock = network(), Clock()
    session, optimizer = start("channels", clock, net)
    session.begin()
    assert train(net, session, optimizer, clock, LENGTH) == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5]
    masked = net(torch.ones(3, 8))
    session.pruner.compact(session.optimizers)
    assert net[0].weight.shape == (4, 8)
    assert net[2].weight.shape == (4, 4)
    torch.testing.assert_close(net(torch.ones(3, 8)), masked)
    session.stop()


@pytest.mark.parametrize("cut", [1, 3, 6])
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_resumed_session_is_the_uninterrupted_one(name, cut):
    whole, clock = network(), Clock()
    session, optimizer = start(name, clock, whole)
    session.begin()
    train(whole, session, optimizer, clock, LENGTH)

    first, clock = network(), Clock()
    before, optimizer = start(name, clock, first)
    before.begin()
    train(first, before, optimizer, clock, cut)
    state = copy.deepcopy(before.state_dict())
    weights, moments = copy.deepcopy(first.state_dict()), copy.deepcopy(optimizer.state_dict())

    second, clock = network(), Clock(cut)
    second.load_state_dict(weights)
    after, optimizer = start(name, clock, second)
    optimizer.load_state_dict(moments)
    after.resume(state)
    train(second, after, optimizer, clock, LENGTH)
    for one, other in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)
    assert after.pruner.history == session.pruner.history


def test_learned_masks_do_not_resume_with_other_settings():
    net = network()
    session, _ = start("learned", Clock(), net)
    session.begin()
    state = session.state_dict()
    other = LearnedMasks("str", 0.5, begin="1it", end="5it", ramp=0.9).session
    other.attach(net)
    other.start(Clock(), [])
    with pytest.raises(StateError, match=r"ramp=0\.5, now 0\.9"):
        other.resume(state)
