# SPDX-License-Identifier: MIT
"""Manual optimisation with two optimizers, through Lightning and around it."""

import pytest
import torch
from torch import optim
from toys import BATCHES, WEIGHTS, Events, Net, Watch, fit, loader, trainer, zeros

from regrow import ConfigError, MagnitudePruning, OneShot, Table


class Manual(Net):
    """One optimizer a layer; both step at every batch."""

    def __init__(self, raw=False, poison=None):
        super().__init__()
        self.automatic_optimization = False
        self.raw, self.poison = raw, poison

    def configure_optimizers(self):
        first = optim.SGD(self.body[0].parameters(), lr=0.1, momentum=0.9)
        return first, optim.Adam(self.body[2].parameters(), lr=0.01)

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers(use_pl_optimizer=not self.raw):
            self.zero_grad()
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            if self.poison is not None:
                for p in self.body[0].weight, self.body[2].weight:
                    p.grad[p == 0] = self.poison
            optimizer.step()


@pytest.mark.parametrize("poison", [None, float("nan")])
@pytest.mark.parametrize("raw", [False, True])
def test_zero_is_zero(raw, poison):
    """A raw step does not count for Lightning: times are then given in epochs or fractions."""
    watch, pruning = Watch(), MagnitudePruning(0.8, schedule=Table({"1ep": 0.5, "2ep": 0.8}))
    module = Manual(raw, poison)
    fit(module, watch, pruning, val=loader(), max_epochs=3)
    assert [sparsity for _, sparsity in watch.seen] == [0.5, round(115 / 144, 6)]
    assert zeros(module) == round(0.8 * WEIGHTS)


class Batches(Events):
    """Remembers how many batches had begun at each event."""

    def __init__(self):
        super().__init__()
        self.begun, self.at = 0, []

    def on_train_batch_start(self, *_):
        self.begun += 1

    def on_prune_event(self, trainer, pl_module, event):
        self.at.append((self.begun, event.epoch))


def test_epochs_and_fractions_are_counted_in_batches():
    for schedule, expected in [
        (Table({"1ep": 0.25, "2ep": 0.5}), [(BATCHES + 1, 1), (2 * BATCHES + 1, 2)]),
        (OneShot(0.25), [(BATCHES + 1, 1)]),
        (OneShot(0), [(1, 0)]),
    ]:
        batches = Batches()
        fit(Manual(), batches, MagnitudePruning(0.5, schedule=schedule), max_epochs=4)
        assert batches.at == expected


def test_its_are_steps_of_either_optimizer():
    events = Events()
    fit(Manual(), events, MagnitudePruning(0.5, schedule=Table({"6it": 0.25, "10it": 0.5})))
    assert events.steps == [6, 10]


def test_a_second_fit_counts_its_epochs_from_its_own_start():
    batches, pruning = Batches(), MagnitudePruning(0.5, schedule=OneShot("1ep"))
    module, made = Manual(), trainer(batches, pruning)
    made.fit(module, loader())
    assert batches.at == [(BATCHES + 1, 1)]
    pruning.unprune()
    made.fit_loop.max_epochs = 4
    made.fit(module, loader())
    assert batches.at[1:] == [(3 * BATCHES + 1, 3)]


def test_mixed_units_are_refused():
    module = Manual()
    with pytest.raises(ConfigError, match="cannot be mixed"):
        fit(module, MagnitudePruning(0.5, schedule=Table({"6it": 0.25, "1ep": 0.5})))
    assert module.trained == 0


def test_a_gradient_criterion_over_two_optimizers_is_refused_and_one_each_works():
    module = Manual()
    with pytest.raises(ConfigError, match="no optimizer trains all of them"):
        fit(module, MagnitudePruning(0.5, schedule=OneShot(0), criterion="taylor"))
    assert module.trained == 0
    both = [
        MagnitudePruning(0.5, schedule=OneShot(at), criterion="taylor", include=layer)
        for at, layer in [("3it", "body.0"), ("6it", "body.2")]
    ]
    events = Events()
    fit(module, events, *both)
    # the second optimizer's step of batch 1 is step 3; batch 3 begins at step 6 with the first's
    assert events.seen == [(4, 0.5), (7, 0.5)]
    assert torch.count_nonzero(module.body[0].weight) == 48
    assert torch.count_nonzero(module.body[2].weight) == 24


def test_lbfgs_in_manual_optimisation():
    class Closing(Net):
        def __init__(self):
            super().__init__(lambda parameters: optim.LBFGS(parameters, lr=0.1, max_iter=3))
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            def closure():
                self.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                return loss

            self.optimizers().step(closure)

    watch, module = Watch(), Closing()
    fit(module, watch, MagnitudePruning(0.8, schedule=OneShot(0.25)), max_epochs=4)
    assert zeros(module) == round(0.8 * WEIGHTS)


@pytest.mark.parametrize(
    "settings",
    [{"schedule": OneShot("3it")}, {"schedule": OneShot(0.25), "criterion": "taylor"}],
)
def test_events_that_raw_steps_kept_from_happening_are_told(settings):
    """Lightning neither counts raw steps nor shows their gradients."""
    pruning = MagnitudePruning(0.5, include="body.0", **settings)
    with pytest.warns(UserWarning, match=r"before 1 planned events.*use self\.optimizers"):
        fit(Manual(raw=True), pruning)
    assert not pruning.reached
