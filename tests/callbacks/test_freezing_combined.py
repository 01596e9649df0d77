# SPDX-License-Identifier: MIT
"""Freezing restores values, which conflicts with callbacks that keep dense copies."""

import pytest
from tiny_fits import Net, fit

from regrow import LearnedMasks, MagnitudePruning, Regrow
from regrow.utils.errors import ConfigError

HELD = {"names": ["body.0"], "fraction": 0.5, "train": "regrown"}


def first():
    return MagnitudePruning(0.5, schedule="one_shot", begin="1it", include=["body.0"])


OTHERS = {
    "soft": lambda: MagnitudePruning(0.5, schedule="one_shot", include=["body.2"], soft=True),
    "learned": lambda: LearnedMasks("str", 0.5, include=["body.2"]),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("swapped", [False, True])
def test_regrow_train_raises_beside_dense_copies_before_training(other, swapped):
    module, callbacks = Net(), [first(), other()]
    callbacks = callbacks[::-1] if swapped else callbacks
    with pytest.raises(ConfigError, match="freezing weights would overwrite them: write"):
        fit(module, *callbacks, Regrow(at="4it", **HELD))
    assert module.trained == 0


def test_manual_regrow_train_raises_beside_dense_copies():
    pruning = first()

    class Back(Regrow):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if batch_idx == 3:
                pruning.regrow(0.5, train="regrown")

    with pytest.raises(ConfigError, match="stores dense values beside"):
        fit(Net(), pruning, OTHERS["soft"](), Back(at="15it", fraction=0.1, names=["body.0"]))


def test_regrow_train_freezes_the_other_weights():
    pruning = first()
    fit(Net(), pruning, Regrow(at="4it", **HELD))
    assert pruning.pruner.state.freezer.free is not None
