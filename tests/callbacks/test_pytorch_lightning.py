# SPDX-License-Identifier: MIT
"""`pytorch_lightning` as the framework gives the same fits as `lightning`, bit-exactly."""

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from installed_versions import needs_lightning, two_packages
from tiny_fits import ADAM, SGD, loader, read
from torch import nn

from regrow import (
    AccuracyBudget,
    ChannelPruning,
    ConfigError,
    Cubic,
    DynamicSparseTraining,
    Exponential,
    LearnedMasks,
    MagnitudePruning,
    OneShot,
    PruneAtInit,
    RandomState,
    Regrow,
    SparseEarlyStopping,
    SparseModelCheckpoint,
    SparsityMonitor,
)
from regrow.callbacks.core.base import Callback
from regrow.callbacks.support.checkpoint_shapes import ChannelsMixin

FAMILIES = {"lightning": lightning.pytorch, "pytorch_lightning": pytorch_lightning}
OTHER = {"lightning": pytorch_lightning, "pytorch_lightning": lightning.pytorch}


def module_of(family, make=ADAM, base=(), **attributes):
    """The toy network as a module of a family."""

    class Net(*base, family.LightningModule):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            self.example_input_array = torch.zeros(2, 6)

        def forward(self, x):
            return self.body(x)

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = nn.functional.cross_entropy(self(x), y)
            self.log("loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.log("accuracy", (self(x).argmax(1) == y).float().mean())

        def configure_optimizers(self):
            return make(self.parameters())

    for name, value in attributes.items():
        setattr(Net, name, value)
    return Net()


def fit(family, module, *callbacks, ckpt_path=None, **kw):
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_checkpointing": False, "num_sanity_val_steps": 0, "max_epochs": 6,
        "enable_model_summary": False}  # fmt: skip
    trainer = family.Trainer(callbacks=list(callbacks), **(quiet | kw))
    trainer.fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return trainer


def assert_equal_in_both_packages(make, make_module=module_of, **kw):
    """The weights of a fit under each family; `make(family)` returns callbacks."""
    found = []
    for family in FAMILIES.values():
        torch.manual_seed(0)
        module = make_module(family)
        callbacks = make(family)
        fit(family, module, *callbacks, **kw)
        found.append((module.state_dict(), callbacks))
    (expected, ours), (got, theirs) = found
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    return expected, ours, theirs


class Stop(Callback):
    """Interrupts a fit as an epoch begins."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("stopped")


def zeros(state):
    return sum(int((w == 0).sum()) for w in state.values() if w.dim() > 1)


def gradual(**kw):
    return MagnitudePruning(0.75, schedule=Cubic("1ep", "4ep", "1ep"), **kw)


def callback_of(family, name):
    callbacks = family.callbacks
    if "Weight" in name and not hasattr(callbacks, name):
        pytest.skip("of Lightning 2.6")
    return {
        "EMAWeightAveraging": lambda: callbacks.EMAWeightAveraging(decay=0.9),
        "WeightAveraging": lambda: callbacks.WeightAveraging(),
        "SWA": lambda: callbacks.StochasticWeightAveraging(0.01, swa_epoch_start=2),
        "accumulation": lambda: callbacks.GradientAccumulationScheduler({2: 4}),
    }[name]()


METHODS = {
    "gradual": lambda: [gradual()],
    "soft": lambda: [gradual(soft=True)],
    "gradients": lambda: [gradual(criterion="taylor")],
    "rewind": lambda: [MagnitudePruning(schedule=Exponential(0.5, "2ep", 2), rewind="4it")],
    "sparse training": lambda: [DynamicSparseTraining(0.75, every="3it")],
    "learned": lambda: [LearnedMasks("str", 0.75)],
    "at initialisation": lambda: [PruneAtInit(0.75, method="snip", batches=2)],
    "grasp": lambda: [PruneAtInit(0.75, method="grasp")],
    "channels": lambda: [ChannelPruning(0.5), SparsityMonitor()],
    "regrown": lambda: [gradual(), Regrow(at="5ep", fraction=0.2)],
    "budget": lambda: [gradual(), AccuracyBudget("accuracy", 1.0)],
    "random state": lambda: [gradual(), RandomState()],
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_equal_results_in_both_packages(name):
    assert_equal_in_both_packages(lambda family: METHODS[name]())


@pytest.mark.parametrize("name", ["EMAWeightAveraging", "WeightAveraging", "SWA", "accumulation"])
def test_callbacks_of_both_packages_are_recognised(name):
    """Averages obey the masks, and epochs stay epochs."""
    state, ours, theirs = assert_equal_in_both_packages(
        lambda family: [gradual(), callback_of(family, name)]
    )
    steps = [[entry["step"] for entry in c[0].history] for c in (ours, theirs)]
    assert steps[0] == steps[1]
    assert zeros(state) == 108


@needs_lightning
@two_packages
@pytest.mark.parametrize("key", FAMILIES)
def test_swa_of_the_other_package_works(key):
    module = module_of(FAMILIES[key])
    fit(FAMILIES[key], module, gradual(), callback_of(OTHER[key], "SWA"))
    assert zeros(module.state_dict()) == 108


@needs_lightning
@two_packages
@pytest.mark.parametrize("key", FAMILIES)
@pytest.mark.parametrize("name", ["EMAWeightAveraging", "WeightAveraging", "accumulation"])
def test_callbacks_of_the_other_package_raise_with_the_right_import(name, key):
    package = FAMILIES[key].__name__
    kind = type(callback_of(FAMILIES[key], name)).__name__
    line = rf"write from {package}\.callbacks import {kind}"
    with pytest.raises(ConfigError, match=line):
        fit(FAMILIES[key], module_of(FAMILIES[key]), gradual(), callback_of(OTHER[key], name))
    assert hasattr(FAMILIES[key].callbacks, kind)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_resumed_run_is_the_uninterrupted_one(family, tmp_path):
    whole, half, rest = (module_of(family) for _ in range(3))
    fit(family, whole, gradual())
    saves = SparseModelCheckpoint(tmp_path, monitor="accuracy", mode="max")
    with pytest.raises(RuntimeError, match="stopped"):
        fit(family, half, gradual(), saves, Stop(3), enable_checkpointing=True)
    pruning = gradual()
    fit(family, rest, pruning, ckpt_path=tmp_path / "last.ckpt")
    expected, got = whole.state_dict(), rest.state_dict()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert zeros(got) == 108 == pruning.pruner.pruned


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_sparse_checkpoint_derives_from_the_trainers_package(family, average, tmp_path):
    """It is the only one, the best is sparse, and `ckpt_path="best"` is that one."""
    saves = SparseModelCheckpoint(tmp_path, monitor="accuracy", mode="max")
    averages = [callback_of(family, "EMAWeightAveraging")] if average else []
    module = module_of(family)
    trainer = fit(family, module, saves, gradual(), *averages, enable_checkpointing=True,
        default_root_dir=tmp_path)  # fmt: skip
    assert trainer.checkpoint_callbacks == [saves] == trainer.callbacks[-1:]
    assert trainer.checkpoint_callback is saves
    state = read(saves.best_model_path)["state_dict"]
    assert zeros(state) == 108
    trainer.test(module_of(family, test_step=lambda *_: None), loader(), ckpt_path="best")
    assert {path.name for path in tmp_path.glob("**/*.ckpt")} == {
        "last.ckpt", saves.best_model_path.rpartition("/")[2]
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_early_stopping_derives_from_the_trainers_package(family):
    stops = SparseEarlyStopping("accuracy", mode="min", patience=1)
    trainer = fit(family, module_of(family), gradual(), stops, max_epochs=50)
    assert trainer.early_stopping_callback is stops
    assert trainer.current_epoch < 50


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_one_callback_needs_no_list(family):
    pruning = MagnitudePruning(0.5)
    assert isinstance(pruning, family.Callback)
    assert pruning in family.Trainer(callbacks=pruning, accelerator="cpu", logger=False).callbacks


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_isinstance_checks_cover_both_packages(family):
    swa = family.callbacks.StochasticWeightAveraging(0.01)
    with pytest.raises(ConfigError, match="StochasticWeightAveraging"):
        fit(family, module_of(family), gradual(), swa, AccuracyBudget("accuracy", 1.0))
    with pytest.raises(ConfigError, match="ModelPruning"):
        fit(family, module_of(family), gradual(), family.callbacks.ModelPruning("l1_unstructured"))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_weights_written_after_the_step_are_detected(family):
    def on_train_epoch_end(self):
        with torch.no_grad():
            self.body[0].weight.add_(0.1)

    module = module_of(family, on_train_epoch_end=on_train_epoch_end)
    with pytest.warns(UserWarning, match=r"written them: Net\.on_train_epoch_end\."):
        fit(family, module, MagnitudePruning(0.75, schedule=OneShot(0)), family.callbacks.Timer())
    assert zeros(module.state_dict()) == 108


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_cut_module_loads_under_both_packages(family, tmp_path):
    module = module_of(family, SGD, base=(ChannelsMixin,))
    trainer = fit(family, module, ChannelPruning(0.5))
    trainer.save_checkpoint(tmp_path / "cut.ckpt")
    again = type(module).load_from_checkpoint(tmp_path / "cut.ckpt")
    assert again.body[0].weight.shape == module.body[0].weight.shape != (16, 6)
    assert all(map(torch.equal, again.parameters(), module.parameters()))


def test_files_are_written_atomically_under_both(tmp_path, monkeypatch):
    """A save that fails half-way leaves the earlier file."""
    for name, family in FAMILIES.items():
        folder = tmp_path / name
        module = module_of(family)
        saves = SparseModelCheckpoint(folder, monitor="accuracy", mode="max")
        trainer = fit(family, module, gradual(), saves, enable_checkpointing=True)
        before = (folder / "last.ckpt").read_bytes()

        def broken(checkpoint, path, storage_options=None):
            with open(path, "w") as file:
                file.write("half")
            raise RuntimeError("half-way")

        monkeypatch.setattr(trainer.strategy.checkpoint_io, "save_checkpoint", broken)
        with pytest.raises(RuntimeError, match="half-way"):
            saves._save_checkpoint(trainer, str(folder / "last.ckpt"))
        assert (folder / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_an_old_lightning_raises_with_what_to_install(family, monkeypatch):
    monkeypatch.setattr(family, "__version__", "2.4.0")
    name = family.__name__.partition(".")[0].replace("_", "-")
    with pytest.raises(ConfigError, match=rf'pip install "{name}>=2\.5\.6"'):
        fit(family, module_of(family), gradual())
