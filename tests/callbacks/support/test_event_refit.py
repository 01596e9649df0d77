# SPDX-License-Identifier: MIT
"""`refit=True`: each event ends with a refit, and undo and resume stay exact."""

import copy
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from tiny_fits import SGD, Net, copied, fit, loader, samples, trainer, weights
from torch.utils.data import DataLoader

import regrow
from regrow import MagnitudePruning, Rewind
from regrow.callbacks.support.event_refit import sum_over_ranks
from regrow.data import ResumableDataModule
from regrow.utils.errors import ConfigError


class Callable(Net):
    """A network that is called on inputs."""

    def forward(self, x):
        return self.body(x)


def trained(**kw):
    module = Callable(**kw)
    fit(module, max_epochs=5)
    return module


def still(module):
    """A copy with a learning rate of 0."""
    other = Callable(lambda parameters: SGD(parameters, lr=0.0))
    other.load_state_dict(module.state_dict())
    return other


def gradual(**kw):
    return MagnitudePruning(0.6, schedule="linear", begin=0, end=0.9, every="3it", refit=True, **kw)


def test_an_event_gives_what_calibrate_gives():
    module = trained()
    reference, module = copy.deepcopy(module), still(module)
    callback = MagnitudePruning(0.5, schedule="one_shot", begin=0, refit=True)
    fit(module, callback, max_epochs=1)
    regrow.calibrate(reference, loader(), 0.5, criterion="magnitude")
    for name, value in reference.state_dict().items():
        assert torch.allclose(module.state_dict()[name], value, atol=1e-6), name
    assert callback.history[0]["refitted"] == {"body.0.weight": 32, "body.2.weight": 32}


def test_outputs_after_gradual_events_are_nearer_to_the_dense_ones():
    dense, x = trained(), samples()[:][0]
    distance = {}
    for refit in (False, True):
        module = still(dense)
        callback = MagnitudePruning(0.6, schedule="linear", begin=0, end=0.9, refit=refit)
        fit(module, callback)
        assert callback.sparsity == pytest.approx(0.6, abs=1 / 144)
        distance[refit] = float((module(x) - dense(x)).norm().detach())
    assert distance[True] < 0.7 * distance[False]


def test_unprune_gives_the_dense_network_after_several_events_without_training():
    module = still(trained())
    before, callback = copied(module), gradual()
    fit(module, callback)
    assert len(callback.history) > 3
    callback.unprune()
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())


def test_unprune_by_name_restores_that_layer():
    module = still(trained())
    before, callback = copied(module), gradual()
    fit(module, callback)
    callback.unprune("body.0")
    after = module.state_dict()
    assert torch.equal(after["body.0.weight"], before["body.0.weight"])
    assert torch.equal(after["body.0.bias"], before["body.0.bias"])
    assert not torch.equal(after["body.2.weight"], before["body.2.weight"])


def test_the_batches_that_training_sees_are_the_same():
    seen = {True: [], False: []}

    class Watch(Callable):
        def training_step(self, batch, batch_idx):
            seen[refit].append((batch[0].clone(), torch.rand(1)))
            return super().training_step(batch, batch_idx)

    for refit in seen:
        torch.manual_seed(0)
        data = DataLoader(samples(), batch_size=4, shuffle=True)
        fit(Watch(), *([gradual()] if refit else []), data=data)
    for one, other in zip(*seen.values(), strict=True):
        assert all(map(torch.equal, one, other))


class SaveAt(pl.Callback):
    def __init__(self, step, file):
        self.step, self.file = step, file

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)


@pytest.mark.parametrize("step", [5, 8])
def test_a_fit_resumed_within_or_between_epochs_equals_the_uninterrupted_one(tmp_path, step):
    def data():
        return ResumableDataModule(samples(), batch_size=4, seed=3)

    whole, one, file = Callable(), gradual(), tmp_path / "a.ckpt"
    trainer(one, SaveAt(step, file)).fit(whole, data())
    resumed, two = Callable(), gradual()
    torch.load(file, weights_only=True)  # as Lightning does, from 2.6 on, if asked to
    trainer(two).fit(resumed, data(), ckpt_path=str(file))
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
    assert two.history == one.history
    one.unprune()
    two.unprune()
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


def test_a_checkpoint_without_refits_is_refused(tmp_path):
    first = fit(Callable(), MagnitudePruning(0.5), max_epochs=1)
    first.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(regrow.StateError, match="write the same rewind= and refit="):
        fit(Callable(), MagnitudePruning(0.5, refit=True), ckpt_path=str(tmp_path / "a.ckpt"))


def test_zeros_of_another_pruner_stay():
    module = trained()
    first = MagnitudePruning(0.5, schedule="one_shot", begin=0, include=["body.0"])
    second = MagnitudePruning(
        0.5, schedule="one_shot", begin="1it", include=["0.weight"], criterion="random", refit=True
    )
    fit(module, first, second)
    weight = weights(module)["body.0.weight"]
    kept = first.masks["body.0.weight"] & second.masks["body.0.weight"]
    assert torch.equal(weight != 0, kept)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"soft": True}, "soft=True trains dense weights"),
        ({"refit": "yes"}, "refit must"),
        ({"rewind": "2it"}, "that a rewind replaces"),
        ({"criterion": "taylor"}, "ranks by the gradients of a step"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_with_a_refit(given, message):
    with pytest.raises(ConfigError, match=message):
        fit(Callable(), MagnitudePruning(0.5, **({"refit": True} | given)))


def test_a_module_without_forward():
    with pytest.raises(ConfigError, match="refit=True of MagnitudePruning runs forward"):
        fit(Net(), MagnitudePruning(0.5, refit=True))


def test_a_rewound_learning_rate_goes_with_a_refit():
    callback = MagnitudePruning(0.5, refit=True, rewind=Rewind("1it", what="finetune"))
    fit(Callable(), callback)
    assert callback.sparsity == 0.5


def test_sums_over_ranks_are_taken_on_the_device_of_the_strategy():
    """NCCL refuses tensors of the CPU, such as counts."""

    class Strategy:
        root_device = torch.device("meta")

        def reduce(self, values, reduce_op):
            assert values.device == self.root_device
            assert reduce_op == "sum"
            return torch.full(values.shape, 3.0)

    total = sum_over_ranks(SimpleNamespace(world_size=2, strategy=Strategy()))
    assert total(torch.ones(2)).tolist() == [3.0, 3.0]
    assert sum_over_ranks(SimpleNamespace(world_size=1)) is None


def test_a_model_loaded_from_a_checkpoint_is_unpruned_exactly(tmp_path):
    module = still(trained())
    before, callback = copied(module), gradual()
    done = fit(module, callback)
    done.save_checkpoint(tmp_path / "last.ckpt")
    again, other = Callable(), gradual()
    again.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    other.attach(again, tmp_path / "last.ckpt")
    other.unprune()
    assert all(torch.equal(v, before[n]) for n, v in again.state_dict().items())


def test_a_module_in_bfloat16():
    module, callback = still(trained()), gradual()
    fit(module, callback, precision="bf16-true")
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert callback.sparsity == pytest.approx(0.6, abs=1 / 144)
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_a_layer_that_transforms_its_weight_is_refused_before_training():
    class Scaled(torch.nn.Linear):
        def forward(self, x):
            return torch.nn.functional.linear(x, self.weight * 0.3, self.bias)

    module = Callable()
    module.body[0] = Scaled(module.body[0].in_features, module.body[0].out_features)
    before = copied(module)
    callback = MagnitudePruning(0.5, schedule="one_shot", begin=0.9, refit=True)
    with pytest.raises(ConfigError, match=r"Scaled .*own forward.*body\.0\.weight"):
        fit(module, callback)
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())
    fit(module, MagnitudePruning(0.5, schedule="one_shot", begin=0.9, refit=True,
                                 exclude=["body.0.weight"]))  # fmt: skip
