# SPDX-License-Identifier: MIT
"""Epochs of changing length under every method and beside every callback that counts epochs."""

import pytest
import torch
from accuracy_budget_fits import Judge, table
from changing_epochs import LENGTHS, STARTS, Changing, Epochs, fit_changing
from lightning.pytorch import Callback
from tiny_channel_fits import Net as ChannelNet
from tiny_fits import ADAM, Net, fit, stream, weights, zeros

from regrow import (
    AccuracyBudget,
    ChannelPruning,
    Cubic,
    DynamicSparseTraining,
    LearnedMasks,
    Linear,
    MagnitudePruning,
    OneShot,
    PruneAtInit,
    Regrow,
    Rewind,
    Table,
)

TWO = Table({"2ep": 0.25, "4ep": 0.5})

METHODS = {
    "soft": lambda: MagnitudePruning(0.5, schedule=TWO, soft=True),
    "gradients": lambda: MagnitudePruning(0.5, schedule=TWO, criterion="taylor"),
    "movement": lambda: MagnitudePruning(0.5, schedule=TWO, criterion="movement"),
    "uniform": lambda: MagnitudePruning(0.5, schedule=TWO, distribution="uniform"),
}


@pytest.mark.parametrize("name", METHODS)
def test_events_of_weights_come_in_their_epochs(name):
    epochs = Epochs()
    fit_changing(Net(ADAM), epochs, METHODS[name]())
    assert epochs.at == [(2, 0), (4, 0)]
    assert epochs.steps == [STARTS[2], STARTS[4]]
    assert epochs.zeros == [0, 0, 36, 36, 72, 72]


def test_events_of_channels_come_in_their_epochs():
    epochs = Epochs()
    example = torch.zeros(2, 6)
    pruning = ChannelPruning(0.5, schedule=TWO, example_input=example, compact="event")
    fit_changing(ChannelNet(), epochs, pruning)
    assert epochs.at == [(2, 0), (4, 0)]


def test_two_pruning_callbacks_each_have_their_epochs():
    epochs = Epochs()
    first = MagnitudePruning(0.5, schedule=OneShot("2ep"), include=["body.0"])
    second = MagnitudePruning(0.25, schedule=OneShot("4ep"), include=["body.2"])
    fit_changing(Net(), epochs, first, second)
    assert epochs.at == [(2, 0), (4, 0)]
    assert epochs.zeros[-1] == 48 + 12


@pytest.mark.parametrize("grow", ["gradient", "random", "momentum"])
def test_updates_of_sparse_training_come_once_an_epoch(grow):
    epochs = Epochs()
    training = DynamicSparseTraining(0.8, grow=grow, every="1ep", end="5ep", init="zero")
    fit_changing(Net(), epochs, training)
    assert epochs.at == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)]
    assert training.strategy.end == STARTS[4] + LENGTHS[4]  # of which the drop fraction is


def test_updates_of_sparse_training_end_at_a_fraction_of_the_real_fit():
    epochs = Epochs()
    training = DynamicSparseTraining(0.8, grow="random", every="2it", end=0.5)
    fit_changing(Net(), epochs, training, data=Changing((4, 8, 8, 8, 8, 8)))
    assert epochs.steps == list(range(0, 22, 2))  # of 44 steps, planned as 24


def test_masks_at_initialisation_do_not_change():
    epochs = Epochs()
    fit_changing(Net(), epochs, PruneAtInit(0.5, method="random"))
    assert epochs.at == [(0, 0)]
    assert epochs.zeros == [72] * 6


@pytest.mark.parametrize("method", ["str", "edge_popup"])
def test_masks_are_learned_in_their_epochs(method):
    class Learns(Callback):
        seen = ()

        def on_train_batch_end(self, trainer, *_):
            if masks.changes_between_events:
                self.seen += (trainer.global_step - 1,)

    epochs, learns = Epochs(), Learns()
    masks = LearnedMasks(method, 0.5, begin="1ep", end="4ep")
    module = Net(ADAM)
    fit_changing(module, epochs, masks, learns)
    assert epochs.at == [(4, 0)]
    assert learns.seen == tuple(range(STARTS[1], STARTS[4]))
    assert zeros(module) == 72
    assert masks.strategy.learner.window.last == STARTS[4]


class Copies(Callback):
    """The weights before the first batch of each epoch."""

    def __init__(self):
        self.at = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.at.append({name: p.clone() for name, p in weights(pl_module).items()})


class Rewound(Epochs):
    def on_prune_event(self, trainer, pl_module, event):
        super().on_prune_event(trainer, pl_module, event)
        self.weights = {name: p.clone() for name, p in weights(pl_module).items()}


def check_rewound(copies, rewound, start):
    for name, weight in rewound.weights.items():
        assert torch.equal(weight[weight != 0], copies.at[2][name][weight != 0])
    assert sum(int((w == 0).sum()) for w in rewound.weights.values()) == 72


def test_rewinding_goes_back_to_the_beginning_of_its_epoch():
    copies, rewound = Copies(), Rewound()
    rewind = Rewind("2ep", what=("weights",))
    pruning = MagnitudePruning(0.5, schedule=OneShot("4ep"), rewind=rewind)
    fit_changing(Net(), copies, pruning, rewound)
    check_rewound(copies, rewound, STARTS[2])
    assert pruning.history[0]["rewound_to"] == STARTS[2]


def test_rewinding_to_an_epoch_whose_predecessor_ended_early():
    """The loader announces eight batches and gives six: no step is the planned one."""
    copies, rewound = Copies(), Rewound()
    rewind = Rewind("2ep", what=("weights",))
    pruning = MagnitudePruning(0.5, schedule=OneShot("4ep"), rewind=rewind)
    data = stream(count=24)
    fit(Net(), copies, pruning, rewound, data=data, limit_train_batches=8, max_epochs=6)
    check_rewound(copies, rewound, 12)
    assert pruning.history[0]["rewound_to"] == 12


def test_rewinding_to_a_fraction_of_the_real_fit():
    pruning = MagnitudePruning(0.5, schedule=OneShot("4ep"), rewind=Rewind(0.25, what=("weights",)))
    fit_changing(Net(), pruning, data=Changing((2, 8, 8, 8, 8, 8)))
    assert pruning.history[0]["rewound_to"] == 10  # of 42 steps; of 12, as planned, 3


@pytest.mark.parametrize("at", [["2ep", "4ep"], ["4ep", "2ep"]])
def test_regrowth_comes_in_its_epochs(at):
    epochs = Epochs()
    pruning = MagnitudePruning(0.5, schedule=OneShot("1ep"))
    fit_changing(Net(), epochs, pruning, Regrow(at, count=8))
    assert epochs.at == [(1, 0), (2, 0), (4, 0)]
    kinds = [entry["kind"] for entry in pruning.history]
    assert kinds == ["prune", "regrow", "regrow"]


def test_regrowth_at_a_step_and_at_a_fraction_that_pass_each_other():
    """Planned at steps 6 and 10 of 24; then the fit has 44 steps, and the half comes at 22."""
    epochs = Epochs()
    pruning = MagnitudePruning(0.5, schedule=OneShot("1it"))
    regrow = Regrow([0.25, "10it"], count=8)
    fit_changing(Net(), epochs, pruning, regrow, data=Changing((4, 8, 8, 8, 8, 8)))
    assert epochs.steps == [1, 10, 11]


def test_a_missed_regrowth_names_its_cause():
    pruning, data = MagnitudePruning(0.5, schedule=OneShot("1it")), stream(count=24)
    with pytest.warns(UserWarning, match="step 14: its last epoch ended early, after 12 steps"):
        fit(Net(), pruning, Regrow("14it", count=8), data=data, limit_train_batches=8)


@pytest.mark.parametrize("limit", [1.0, 0.3])
def test_a_budget_judges_after_an_epoch_of_any_length(limit):
    """Events in epochs 2 and 4; what lost too much is taken back as epoch 5 begins."""
    epochs = Epochs()
    pruning = MagnitudePruning(schedule=table(0.25, 0.5))
    budget = AccuracyBudget("acc", max_drop=0.1)
    fit_changing(Judge(pruning, limit), epochs, pruning, budget)
    assert epochs.at[:2] == [(2, 0), (4, 0)]
    kinds = [(entry["kind"], entry["epoch"]) for entry in pruning.history]
    if limit == 1:
        assert [(kind, epoch) for kind, epoch in kinds] == [("prune", 2), ("prune", 4)]
        assert all(entry["lost"] == 0 for entry in pruning.history)
    else:
        assert kinds[:2] == [("prune", 2), ("rollback", 5)]
        assert pruning.sparsity <= 0.3


@pytest.mark.parametrize("schedule", [Linear, Cubic])
@pytest.mark.parametrize("lengths", [LENGTHS, (2, 5, 9, 1, 4, 3), (9, 7, 5, 4, 2, 1)])
def test_a_budget_plans_events_again_as_epochs_change(schedule, lengths):
    epochs = Epochs()
    pruning = MagnitudePruning(0.5, schedule=schedule(0.2, 0.75, 0.05))
    budget = AccuracyBudget("acc", max_drop=0.1)
    data = Changing(lengths)
    fit_changing(Judge(pruning, 1.0), epochs, pruning, budget, data=data)
    assert pruning.schedule_done
    assert epochs.zeros[-1] == 72
    assert all(entry["lost"] == 0 for entry in pruning.history)
