# SPDX-License-Identifier: MIT
"""PostTrainingPruning: prunes and refits before the first step of a fit."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from tiny_fits import SGD, Net, copied, fit, loader, read, trainer, weights

import regrow
from regrow import PostTrainingPruning
from regrow.callbacks.support.event_refit import Refitted
from regrow.utils.errors import ConfigError, StateError


class Callable(Net):
    """A network that is called on inputs."""

    def forward(self, x):
        return self.body(x)


def trained():
    module = Callable()
    fit(module, max_epochs=5)
    return module


class FirstStep(pl.Callback):
    """Copies the weights after the event, before the first optimizer step."""

    def on_before_zero_grad(self, trainer, module, optimizer):
        if not hasattr(self, "weights"):
            self.weights = copied(module)


@pytest.mark.parametrize("criterion", ["obs", "wanda", "sparsegpt", "magnitude"])
def test_the_first_step_starts_from_what_calibrate_gives(criterion):
    module, look = trained(), FirstStep()
    reference = copy.deepcopy(module)
    callback = PostTrainingPruning(0.5, criterion=criterion, batches=8)
    fit(module, callback, look, max_epochs=1)
    batches = [batch for batch, _ in loader()]
    regrow.calibrate(reference, batches, 0.5, criterion=criterion)
    for name, value in reference.state_dict().items():
        assert torch.allclose(look.weights[name], value, atol=1e-5), name
    assert callback.sparsity == 0.5
    zeros = sum(int((w == 0).sum()) for w in weights(module).values())
    assert zeros == 72
    assert [entry["step"] for entry in callback.history] == [0]


def test_unprune_gives_the_dense_network_where_nothing_trained():
    module = trained()
    before = copied(module)
    callback = PostTrainingPruning(0.5)
    frozen = Callable(lambda parameters: SGD(parameters, lr=0.0))
    frozen.load_state_dict(before)
    fit(frozen, callback, max_epochs=1)
    assert any(not torch.equal(v, before[n]) for n, v in frozen.state_dict().items())
    callback.unprune()
    assert all(torch.equal(v, before[n]) for n, v in frozen.state_dict().items())


def test_unprune_keeps_what_was_trained_since():
    module = trained()
    before = copied(module)
    callback, look = PostTrainingPruning(0.5), FirstStep()
    fit(module, callback, look, max_epochs=1)
    now, masks = copied(module), callback.masks
    callback.unprune()
    for name, mask in masks.items():
        weight = module.get_parameter(name)
        trained_since = now[name] != look.weights[name]  # not those of units without outputs
        assert trained_since.any()
        assert torch.equal(weight[trained_since], now[name][trained_since])
        assert torch.equal(weight[~mask], before[name][~mask])
        assert torch.equal(weight[~trained_since], before[name][~trained_since])


def test_unprune_by_name_restores_that_layer():
    module = Callable(lambda parameters: SGD(parameters, lr=0.0))
    before = copied(module)
    callback = PostTrainingPruning(0.5)
    fit(module, callback, max_epochs=1)
    callback.unprune("body.0")
    after = copied(module)
    assert torch.equal(after["body.0.weight"], before["body.0.weight"])
    assert torch.equal(after["body.0.bias"], before["body.0.bias"])
    assert not torch.equal(after["body.2.weight"], before["body.2.weight"])


def test_a_resumed_fit_equals_an_uninterrupted_one_and_can_be_unpruned(tmp_path):
    whole, resumed = trained(), trained()
    one, two = PostTrainingPruning(0.5), PostTrainingPruning(0.5)
    fit(whole, one, max_epochs=2)
    first = fit(resumed, two, max_epochs=1)
    first.save_checkpoint(tmp_path / "a.ckpt")
    assert read(tmp_path / "a.ckpt")
    again, callback = Callable(), PostTrainingPruning(0.5)
    trainer(callback, max_epochs=2).fit(again, loader(), ckpt_path=str(tmp_path / "a.ckpt"))
    assert all(map(torch.equal, whole.parameters(), again.parameters()))
    assert callback.history == one.history
    one.unprune()
    callback.unprune()
    assert all(map(torch.equal, whole.parameters(), again.parameters()))


def test_without_refit_kept_weights_are_as_they_were():
    module, look = trained(), FirstStep()
    before = copied(module)
    callback = PostTrainingPruning(0.5, refit=False)
    fit(module, callback, look, max_epochs=1)
    for name, mask in callback.masks.items():
        assert torch.equal(look.weights[name], before[name] * mask)


def test_the_batches_that_training_sees_are_the_same(tmp_path):
    seen = {}

    class Watch(Callable):
        def training_step(self, batch, batch_idx):
            seen.setdefault(key, []).append(batch[0].clone())
            return super().training_step(batch, batch_idx)

    for key in ("with", "without"):
        torch.manual_seed(0)
        fit(Watch(), *([PostTrainingPruning(0.5, batches=3)] if key == "with" else []))
    assert all(map(torch.equal, seen["with"], seen["without"]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"criterion": "hessian"}, "criterion must be one of"),
        ({"batches": 0}, "batches must"),
        ({"refit": "yes"}, "refit must"),
        ({"criterion": "wanda", "distribution": "global"}, "within a layer only"),
        ({"sparsity": 1.5}, "sparsity must"),
    ],
    ids=str,
)
def test_invalid_settings(given, message):
    with pytest.raises(ConfigError, match=message):
        PostTrainingPruning(**given)


def test_a_module_without_forward():
    with pytest.raises(ConfigError, match="define forward"):
        fit(Net(), PostTrainingPruning(0.5))


def test_more_batches_than_there_are():
    with pytest.raises(ConfigError, match="more than the train loader has"):
        fit(Callable(), PostTrainingPruning(0.5, batches=9))


def test_evaluation_before_and_after_without_training():
    module = trained()
    run = trainer()
    [before] = run.validate(module, loader())
    result = regrow.calibrate(module, loader(), 0.5)
    [after] = run.validate(module, loader())
    assert result.sparsity == 0.5
    assert after["val/loss"] != before["val/loss"]
    result.undo(module)
    assert run.validate(module, loader()) == [before]


@pytest.mark.parametrize(
    ("criterion", "refit"), [("obs", True), ("magnitude", True), ("magnitude", "joint")]
)
def test_an_attached_model_is_calibrated_outside_a_fit(criterion, refit):
    module = trained()
    before, reference = copied(module), copy.deepcopy(module)
    callback = PostTrainingPruning(0.5, criterion=criterion, refit=refit)
    callback.attach(module)
    entry = callback.calibrate(loader())
    assert entry["after"] == callback.sparsity == 0.5
    regrow.calibrate(reference, loader(), 0.5, criterion=criterion, refit=refit)
    assert all(map(torch.equal, module.parameters(), reference.parameters()))
    callback.unprune()
    assert all(torch.equal(value, before[n]) for n, value in module.state_dict().items())


def test_pruning_by_hand_needs_calibration_data():
    callback = PostTrainingPruning(0.5)
    callback.attach(trained())
    with pytest.raises(StateError, match=r"call calibrate\(batches\)"):
        callback.prune_to(0.5)


@pytest.mark.parametrize(("wanted", "repair"), [(0.1, "none"), (1.0, None)])
def test_repairs_are_tried_until_the_dense_classes_are_kept(wanted, repair):
    module = Callable(lambda parameters: SGD(parameters, lr=0.0))
    fit(trained_once := trained(), max_epochs=1)
    module.load_state_dict(trained_once.state_dict())
    module.body.insert(1, torch.nn.BatchNorm1d(16))
    before = copied(module)
    callback = PostTrainingPruning(0.6, min_agreement=wanted)
    callback.attach(module)
    entry = callback.calibrate(loader())
    assert entry["repair"] == (repair or entry["repair"])
    assert entry["agreement"] >= wanted or wanted == 1
    callback.unprune()
    assert all(torch.equal(value, before[n]) for n, value in module.state_dict().items())


def test_an_agreement_needs_repairs_and_is_a_share():
    with pytest.raises(ConfigError, match="leave one of them out"):
        PostTrainingPruning(0.5, refit=False, min_agreement=0.9)
    with pytest.raises(ConfigError, match=r"write 0.99 for 99 %"):
        PostTrainingPruning(0.5, min_agreement=99)


class Sequences(Net):
    """Weights whose names are not "weight"."""

    def __init__(self, kdim=None):
        super().__init__(lambda parameters: SGD(parameters, lr=0.0))
        width = self.body[0].in_features
        self.recurrent = torch.nn.LSTM(width, width, batch_first=True)
        self.attention = torch.nn.MultiheadAttention(width, 1, batch_first=True, kdim=kdim)

    def forward(self, x):
        steps = x[:, None] * torch.linspace(0.5, 1.5, 3)[:, None]
        steps = self.recurrent(steps)[0]
        keys = steps if self.attention.kdim == steps.shape[-1] else steps.repeat(1, 1, 2)
        return self.body(self.attention(steps, keys, steps)[0].mean(1))

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    validation_step = None


@pytest.mark.parametrize("twice", [False, True])
def test_unprune_one_name_after_the_other_restores_biases_of_any_name(twice):
    torch.manual_seed(0)
    width = Net().body[0].in_features
    module = Sequences(kdim=2 * width if twice else None)
    before, callback = copied(module), PostTrainingPruning(0.5)
    fit(module, callback, max_epochs=1)
    changed = {n for n, v in module.state_dict().items() if not torch.equal(v, before[n])}
    assert {"recurrent.bias_ih_l0", "attention.out_proj.bias"} <= changed
    assert twice or "attention.in_proj_bias" in changed
    for name in callback.masks:
        callback.unprune([name])
        assert torch.equal(module.get_parameter(name), before[name])
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())


def test_attention_with_three_weights_restores_a_third_of_its_bias():
    refitted, width = Refitted(), 4
    attention = torch.nn.MultiheadAttention(width, 1, kdim=6)
    before = copied(attention)
    fitted = {name: value + 1 for name, value in before.items()}
    attention.load_state_dict(fitted)
    refitted.state = {"before": before, "after": copied(attention)}
    refitted.restore(attention, ["k_proj_weight"])
    now = attention.state_dict()
    assert torch.equal(now["k_proj_weight"], before["k_proj_weight"])
    assert torch.equal(now["q_proj_weight"], fitted["q_proj_weight"])
    parts = zip(*(state["in_proj_bias"].chunk(3) for state in (now, before, fitted)), strict=True)
    equal = [(torch.equal(a, b), torch.equal(a, c)) for a, b, c in parts]
    assert equal == [(False, True), (True, False), (False, True)]


@pytest.mark.parametrize("refit", [True, "joint"])
@pytest.mark.parametrize("criterion", ["obs", "magnitude"])
def test_a_module_in_bfloat16(refit, criterion):
    module = Callable(lambda parameters: SGD(parameters, lr=0.0))
    callback = PostTrainingPruning(0.5, criterion=criterion, refit=refit)
    fit(module, callback, max_epochs=1, precision="bf16-true")
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert callback.sparsity == 0.5
    assert all(bool(p.isfinite().all()) for p in module.parameters())
