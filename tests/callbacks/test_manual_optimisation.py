# SPDX-License-Identifier: MIT
"""Manual optimisation with two optimizers, through Lightning and around it."""

import pytest
import torch
from tiny_fits import BATCHES, WEIGHTS, Events, Net, Watch, fit, loader, trainer, zeros
from torch import optim

from regrow import ConfigError, DynamicSparseTraining, MagnitudePruning, OneShot, Regrow, Table


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
def test_pruned_weights_stay_zero(raw, poison):
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


def test_steps_of_all_optimizers_are_counted():
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


def test_mixed_units_raise():
    module = Manual()
    with pytest.raises(ConfigError, match="cannot be mixed"):
        fit(module, MagnitudePruning(0.5, schedule=Table({"6it": 0.25, "1ep": 0.5})))
    assert module.trained == 0


def test_gradient_criterion_over_two_optimizers_raises_and_one_each_works():
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


def test_pruned_weights_stay_zero_with_lbfgs():
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
def test_events_missed_by_raw_optimizer_steps_cause_a_warning(settings):
    """Lightning neither counts raw steps nor shows their gradients."""
    pruning = MagnitudePruning(0.5, include="body.0", **settings)
    with pytest.warns(UserWarning, match=r"before 1 planned events.*use self\.optimizers"):
        fit(Manual(raw=True), pruning)
    assert not pruning.reached


@pytest.mark.parametrize(("at", "begun"), [("2ep", 2 * BATCHES + 1), (0.5, 2 * BATCHES + 1)])
@pytest.mark.parametrize("raw", [False, True])
def test_regrowth_times_may_be_epochs_and_fractions(raw, at, begun):
    batches, pruning = Batches(), MagnitudePruning(0.8, schedule=OneShot("1ep"))
    module = Manual(raw)
    fit(module, batches, pruning, Regrow(at=at, count=20, init="he"), max_epochs=4)
    assert batches.at == [(BATCHES + 1, 1), (begun, 2)]
    assert [entry["kind"] for entry in pruning.history] == ["prune", "regrow"]
    assert zeros(module) == round(0.8 * WEIGHTS) - 20


def test_regrowth_counts_steps_of_either_optimizer():
    events, pruning = Events(), MagnitudePruning(0.8, schedule=OneShot("4it"))
    module = Manual()
    fit(module, events, pruning, Regrow(at="10it", fraction=0.5, init="he"))
    assert events.steps == [4, 10]
    assert zeros(module) == 115 - round(0.5 * 115)


def test_only_regrown_weights_train_if_asked():
    class Steps(Batches):
        def on_train_batch_start(self, trainer, pl_module, *_):
            super().on_train_batch_start()
            self.copies[self.begun] = {n: p.clone() for n, p in pl_module.named_parameters()}

    steps, pruning = Steps(), MagnitudePruning(0.8, schedule=OneShot("1ep"))
    steps.copies, module = {}, Manual()
    fit(module, steps, pruning, Regrow(at="2ep", fraction=0.5, train="regrown"), max_epochs=4)
    free, before = pruning.pruner.state.freezer.free, steps.copies[2 * BATCHES + 2]
    assert sum(int(mask.sum()) for mask in free.values()) == pruning.history[-1]["count"]
    moved = 0
    for name, parameter in module.named_parameters():
        held = ~free[name]
        assert torch.equal(parameter[held], before[name][held])
        moved += int((parameter != before[name]).sum())
    assert moved > 0.5 * pruning.history[-1]["count"]


class OneOptimizer(Manual):
    def configure_optimizers(self):
        return optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(Net.training_step(self, batch, batch_idx))
        optimizer.step()


def anything(target, momentum, removed, generator):
    return torch.rand_like(target.parameter)


@pytest.mark.parametrize(
    "callbacks",
    [
        lambda: [MagnitudePruning(0.8, schedule=OneShot("1it")), Regrow("5it", 0.5, by="gradient")],
        lambda: [MagnitudePruning(0.8, schedule=OneShot("1it")), Regrow("5it", 0.5, by=anything)],
        lambda: [DynamicSparseTraining(0.8, grow="gradient", every="4it", end="12it")],
        lambda: [DynamicSparseTraining(0.8, grow="momentum", every="4it", end="12it")],
    ],
)
def test_growth_by_gradient_uses_dense_gradients(callbacks):
    """The reference: the same fit under automatic optimisation."""

    class Automatic(Net):
        def configure_optimizers(self):
            return optim.SGD(self.parameters(), lr=0.1)

    masks = []
    for kind in (OneOptimizer, Automatic):
        torch.manual_seed(0)
        suite = callbacks()
        fit(kind(), *suite)
        masks.append(suite[0].masks)
        assert any(entry["kind"] in ("regrow", "drop_and_grow") for entry in suite[0].history)
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


def test_sparse_training_without_gradient_growth_works():
    module, pruning = OneOptimizer(), DynamicSparseTraining(0.8, grow="random", every=0.25)
    fit(module, pruning, max_epochs=4)
    assert [entry["kind"] for entry in pruning.history] == ["prune", *["drop_and_grow"] * 2]
    assert zeros(module) >= round(0.8 * WEIGHTS) == pruning.masks.pruned


def test_regrowth_missed_by_raw_optimizer_steps_causes_a_warning():
    pruning = MagnitudePruning(0.5, schedule=OneShot(0))
    with pytest.warns(UserWarning, match=r"ended before Regrow acted at step 5.*self\.optimizers"):
        fit(Manual(raw=True), pruning, Regrow(at="5it", count=1))
