# SPDX-License-Identifier: MIT
"""Lightning's tuners leave no trace: the fit afterwards equals the fit without them."""

import copy

import pytest
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from tiny_fits import WEIGHTS, Net, copied, equal, read, samples, trainer, zeros
from torch import optim
from torch.utils.data import DataLoader

from regrow import DynamicSparseTraining, MagnitudePruning, Regrow, Rewind, Table
from regrow.masks.masks import Masks

LEVELS = Table({"3it": 0.4, "9it": 0.8})


class Tunable(Net):
    def __init__(self):
        super().__init__()
        self.lr, self.batch_size = 0.01, 4

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=self.lr)

    def train_dataloader(self):
        return DataLoader(samples(), batch_size=self.batch_size)

    val_dataloader = train_dataloader


SUITES = {
    "gradual": lambda: [MagnitudePruning(0.8, schedule=LEVELS)],
    "moments": lambda: [MagnitudePruning(0.8, schedule=LEVELS, keep_removed="moments")],
    "movement": lambda: [MagnitudePruning(0.8, schedule=LEVELS, criterion="movement")],
    "soft": lambda: [MagnitudePruning(0.8, schedule=LEVELS, soft=True)],
    "rewound": lambda: [MagnitudePruning(0.8, schedule=LEVELS), Rewind("1it")],
    "regrown": lambda: [MagnitudePruning(0.8, schedule=LEVELS), Regrow("11it", 0.5)],
    "rigl": lambda: [DynamicSparseTraining(0.8, every="3it")],
}


def tune(made, module, what):
    """Tries learning rates or batch sizes, and sets none."""
    if what == "lr":
        Tuner(made).lr_find(module, num_training=6, min_lr=1e-4, update_attr=False)
    else:
        Tuner(made).scale_batch_size(module, max_trials=2, init_val=2)
        module.batch_size = 4


def known(suite):
    return [copy.deepcopy(callback.state_dict()) for callback in suite]


@pytest.mark.parametrize("what", ["lr", pytest.param("batch size", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SUITES)
def test_tuners_leave_masks_and_weights_unchanged(name, what):
    ends = []
    for tuned in (False, True):
        module, suite = Tunable(), SUITES[name]()
        made = trainer(*suite)
        for fits in (1, 2):
            if tuned:
                pruning, before = suite[0], (copied(module), known(suite))
                sparsity, history = pruning.sparsity, list(pruning.history)
                tune(made, module, what)
                assert equal(copied(module), before[0])
                assert (pruning.sparsity, pruning.history) == (sparsity, history)
                if fits == 2:
                    assert equal(known(suite)[0]["pruner"], before[1][0]["pruner"])
            made.fit_loop.max_epochs = 2 * fits
            made.fit(module)
        ends.append((copied(module), made.optimizers[0].state_dict(), dict(suite[0].masks),
                     suite[0].history))  # fmt: skip
    assert equal(*ends)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "kind", [LearningRateFinder, pytest.param(BatchSizeFinder, marks=pytest.mark.slow)]
)
def test_finder_callbacks_only_change_the_found_setting(kind, first):
    """The reference is a fit that has the found value from the start."""
    settings = (
        {"num_training_steps": 6, "min_lr": 1e-4}
        if kind is LearningRateFinder
        else {"max_trials": 1, "init_val": 2}
    )
    finder, pruning, module = kind(**settings), MagnitudePruning(0.8, schedule=LEVELS), Tunable()
    made = trainer(*([finder, pruning] if first else [pruning, finder]), max_epochs=3)
    made.fit(module)
    assert [entry["step"] for entry in pruning.history] == [3, 9]
    assert zeros(module) == round(0.8 * WEIGHTS)
    plain, other = Tunable(), MagnitudePruning(0.8, schedule=LEVELS)
    plain.lr, plain.batch_size = module.lr, module.batch_size
    trainer(other, max_epochs=3).fit(plain)
    assert equal(copied(module), copied(plain))
    assert equal(dict(pruning.masks), dict(other.masks))


def test_a_resumed_fit_with_a_finder_has_its_masks(tmp_path):
    """Lightning's step counter restarts with its finder; pruned weights stay pruned."""

    def run(*callbacks, **kw):
        module, pruning = Tunable(), MagnitudePruning(0.8, schedule=LEVELS)
        finder = LearningRateFinder(num_training_steps=4, min_lr=1e-4, update_attr=False)
        made = trainer(pruning, finder, *callbacks, enable_checkpointing=bool(callbacks))
        made.fit(module, **kw)
        assert zeros(module) == pruning.masks.pruned == round(0.8 * WEIGHTS)
        return dict(pruning.masks), [entry["pruned"] for entry in pruning.history]

    whole = run(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    then = read(tmp_path / "epoch=0.ckpt")["callbacks"]
    [masks] = (v["pruner"]["masks"] for k, v in then.items() if k.startswith("MagnitudePruning"))
    again, counts = run(ckpt_path=tmp_path / "epoch=0.ckpt")
    assert counts == whole[1]
    for name, mask in Masks.unpack(masks).items():
        assert not (again[name] & ~mask).any(), "nothing came back"
