# SPDX-License-Identifier: MIT
"""A snapshot can be restored exactly, any number of times."""

import copy
import io

import pytest
import torch
from torch import nn, optim

from regrow.utils.errors import StateError
from regrow.utils.snapshot import TrainingSnapshot

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: optim.Adam(p, lr=0.01, amsgrad=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1),
    "adam, a tensor as rate": lambda p: optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
}
SCHEDULES = {
    "lambda": lambda o: optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "cosine": lambda o: optim.lr_scheduler.CosineAnnealingLR(o, 20),
    "multistep": lambda o: optim.lr_scheduler.MultiStepLR(o, [2, 5, 5], 0.5),
    "one cycle": lambda o: optim.lr_scheduler.OneCycleLR(o, 0.2, 60),
    "in sequence": lambda o: optim.lr_scheduler.SequentialLR(
        o,
        [
            optim.lr_scheduler.LinearLR(o, 0.1, total_iters=4),
            optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        [4],
    ),
}


class Training:
    """A network with batch normalisation, and everything that moves while it trains."""

    def __init__(self, make="sgd", schedule="lambda"):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.optimizer = OPTIMIZERS[make](self.net.parameters())
        self.scheduler = SCHEDULES[schedule](self.optimizer)

    @property
    def parts(self):
        return {
            "moments": [self.optimizer],
            "rates": [self.optimizer],
            "schedulers": [self.scheduler],
        }

    def steps(self, numbers):
        for number in numbers:
            generator = torch.Generator().manual_seed(number)
            inputs = torch.randn(16, 4, generator=generator)
            self.optimizer.zero_grad()
            self.net(inputs).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()

    def state(self):
        return copy.deepcopy(
            (
                self.net.state_dict(),
                self.optimizer.state_dict(),
                {k: v for k, v in self.scheduler.state_dict().items() if k != "_schedulers"},
            )
        )


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


# one cycle moves the momentum too, which not every optimizer has
PAIRS = [
    (make, schedule)
    for make in OPTIMIZERS
    for schedule in SCHEDULES
    if schedule != "one cycle" or make in ("sgd", "adam")
]


@pytest.mark.parametrize(("make", "schedule"), PAIRS)
def test_every_restore_equals_the_first(make, schedule):
    training = Training(make, schedule)
    training.steps(range(3))
    memory, then = TrainingSnapshot(training.net, **training.parts), training.state()
    objects = [id(p) for p in training.net.parameters()]
    ends = []
    for _ in range(3):
        training.steps(range(3, 12))
        ends.append(training.state())
        memory.restore(training.net, **training.parts)
        assert equal(then, training.state())
    assert equal(ends[0], ends[1])
    assert equal(ends[0], ends[2])
    assert not equal(ends[0], then)
    assert objects == [id(p) for p in training.net.parameters()]


def test_running_statistics_are_restored():
    training = Training()
    memory = TrainingSnapshot(training.net)
    training.steps(range(5))
    norm = training.net[1]
    assert norm.running_mean.any()
    memory.restore(training.net)
    assert not norm.running_mean.any()
    assert norm.running_var.eq(1).all()
    assert norm.num_batches_tracked == 0


def test_only_the_requested_parts_are_restored():
    training = Training()
    memory = TrainingSnapshot(training.net, **training.parts)
    training.steps(range(5))
    late = training.state()
    memory.restore(training.net)
    assert equal(late[1:], training.state()[1:])
    assert not equal(late[0], training.state()[0])
    memory.restore(moments=[training.optimizer])
    assert training.optimizer.param_groups[0]["lr"] == late[1]["param_groups"][0]["lr"]
    assert not training.optimizer.state


def test_snapshot_survives_a_file_and_shares_no_memory():
    training = Training("adam")
    training.steps(range(3))
    memory, then = TrainingSnapshot(training.net, **training.parts), training.state()
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    loaded = TrainingSnapshot.loaded(saved)
    for tensor in saved["parameters"].values():
        tensor.zero_()
    training.steps(range(3, 6))
    loaded.restore(training.net, **training.parts)
    assert equal(then, training.state())


def test_shuffle_permutes_the_same_values():
    training = Training()
    memory, start = TrainingSnapshot(training.net), training.state()[0]
    memory.permuted(1).restore(training.net)
    other = training.state()[0]
    for name in start:
        assert torch.equal(start[name].flatten().sort()[0], other[name].flatten().sort()[0])
    assert (start["0.weight"] != other["0.weight"]).float().mean() > 0.8
    memory.permuted(1).restore(training.net)
    assert equal(other, training.state()[0])
    memory.permuted(2).restore(training.net)
    assert not equal(other, training.state()[0])
    memory.restore(training.net)
    assert equal(start, training.state()[0])


def test_another_module_raises_with_the_names():
    memory = TrainingSnapshot(nn.Linear(2, 2))
    with pytest.raises(StateError, match=r"parameters are not those .* weight"):
        memory.restore(nn.Linear(3, 2))


def test_other_optimizers_raise():
    training = Training()
    memory = TrainingSnapshot(**training.parts)
    with pytest.raises(StateError, match="holds 1 rates, got 2"):
        memory.restore(rates=[training.optimizer, training.optimizer])
