# SPDX-License-Identifier: MIT
"""A pruning session in a plain training loop, without a Trainer."""

import copy

import pytest
import torch
from session_loop import LENGTH, Clock, Listeners, network, zeros
from torch import nn, optim

from regrow import ConfigError, StateError, Table
from regrow.callbacks.core.session import GradualMagnitude, PruningSession
from regrow.pruning.config import PruningConfig

PLAN = Table({"2it": 0.5, "4it": 0.75})


def begun(net, clock=None, events=None, on_change="refuse", criterion="magnitude"):
    """A session in a started fit, and its optimizer."""
    strategy = GradualMagnitude(PruningConfig(criterion), True)
    session = PruningSession(strategy, PLAN, 0.75, on_change)
    session.attach(net)
    optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    session.start(clock or Clock(), [optimizer], events=events)
    return session, optimizer


def train(net, session, optimizer, clock, until):
    """A training loop that drives the session."""
    while clock.now < until:
        torch.manual_seed(100 + clock.now)
        session.step()
        loss = net(torch.randn(4, 8)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        session.on_gradients(optimizer)
        session.pruner.enforcer.gradients()
        optimizer.step()
        clock.now += 1


def test_events_happen_at_their_steps_and_zero_stays_zero():
    net, clock, events = network(), Clock(), Listeners()
    session, optimizer = begun(net, clock, events)
    session.begin()
    found = []
    while clock.now < LENGTH:
        train(net, session, optimizer, clock, clock.now + 1)
        found.append(zeros(net))
    assert found == [0.0, 0.0, 0.5, 0.5, 0.75, 0.75, 0.75, 0.75]
    assert events.seen == ["before", (2, 0.0, 0.5), "before", (4, 0.5, 0.75)]
    assert session.strategy.reached(session)
    buffers = optimizer.state[net[0].weight]["momentum_buffer"]
    assert not buffers[net[0].weight == 0].any()


def test_gradient_event_waits_for_gradients():
    net, clock = network(), Clock()
    session, optimizer = begun(net, clock, criterion="gradient")
    session.begin()
    train(net, session, optimizer, clock, 2)
    session.step()
    assert session.pruner.sparsity == 0  # due, but without gradients
    train(net, session, optimizer, clock, 3)
    assert session.pruner.sparsity == 0.5


def test_an_event_that_is_not_allowed_happens_later():
    net, clock, events = network(), Clock(), Listeners(allowed=False)
    session, optimizer = begun(net, clock, events)
    session.begin()
    train(net, session, optimizer, clock, 4)
    assert (session.pruner.sparsity, events.seen) == (0.0, [])
    events.allowed = True
    train(net, session, optimizer, clock, LENGTH)
    # the milestones of steps 2 and 4 are both due at step 4: the later one counts
    assert [(entry["step"], entry["after"]) for entry in session.pruner.history] == [(4, 0.75)]


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 6])
def test_a_resumed_session_is_the_uninterrupted_one(cut):
    whole, clock = network(), Clock()
    session, optimizer = begun(whole, clock)
    session.begin()
    train(whole, session, optimizer, clock, LENGTH)

    first, clock = network(), Clock()
    before, optimizer = begun(first, clock)
    before.begin()
    train(first, before, optimizer, clock, cut)
    state = copy.deepcopy(before.state_dict())
    weights, moments = copy.deepcopy(first.state_dict()), copy.deepcopy(optimizer.state_dict())

    second, clock = network(), Clock(cut)
    second.load_state_dict(weights)
    after, optimizer = begun(second, clock)
    optimizer.load_state_dict(moments)
    after.resume(state)
    train(second, after, optimizer, clock, LENGTH)
    assert all(
        torch.equal(a, b) for a, b in zip(second.parameters(), whole.parameters(), strict=True)
    )
    assert after.pruner.history == session.pruner.history


def test_resuming_with_another_target_raises():
    net = network()
    session, _ = begun(net)
    session.begin()
    state = session.state_dict()
    other = PruningSession(session.strategy, Table({"2it": 0.5, "4it": 0.6}), 0.6, "refuse")
    other.attach(net)
    other.start(Clock(), [])
    with pytest.raises(
        StateError, match=r"pruned towards sparsity 0\.75, this callback towards 0\.6"
    ):
        other.resume(state)


def test_a_dry_run_has_one_event_at_its_first_step():
    net, clock = network(), Clock(dry_run=True)
    session, optimizer = begun(net, clock)
    session.begin()
    train(net, session, optimizer, clock, 1)
    assert zeros(net) == 0.75


def test_partly_failed_event_is_not_saved(monkeypatch):
    net, clock = network(), Clock()
    session, optimizer = begun(net, clock, Listeners())
    session.begin()

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(session.events, "after", fail)
    with pytest.raises(MemoryError):
        train(net, session, optimizer, clock, 3)
    with pytest.raises(StateError, match="the event at step 2 failed half-way"):
        session.state_dict()


def test_hooks_are_removed_after_the_fit():
    net, clock = network(), Clock()
    session, optimizer = begun(net, clock)
    session.begin()
    train(net, session, optimizer, clock, LENGTH)
    session.stop()
    net(torch.ones(1, 8)).sum().backward()
    nn.init.ones_(net[0].weight)
    optimizer.step()
    assert zeros(net[0]) == 0


def test_without_a_model_there_is_no_pruner():
    session = PruningSession(GradualMagnitude(PruningConfig(), True), PLAN, 0.75, "refuse")
    with pytest.raises(StateError, match="has seen no model yet"):
        _ = session.pruner
    with pytest.raises(ConfigError, match="on_change must be one of"):
        PruningSession(GradualMagnitude(PruningConfig(), True), PLAN, 0.75, "maybe")
