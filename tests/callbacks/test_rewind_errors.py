# SPDX-License-Identifier: MIT
"""Wrong settings of rewinding raise before the first step."""

import pytest
from rewinding_fits import Normed, pruning
from tiny_fits import Net, fit

from regrow import ConfigError, Rewind, StateError


def test_two_rewinds_raise():
    with pytest.raises(ConfigError, match="supports one Rewind"):
        fit(Normed(), pruning(), Rewind("3it"), max_epochs=4)


def test_soft_pruning_raises():
    with pytest.raises(ConfigError, match="does not restore the dense weights of soft=True"):
        fit(Normed(), pruning(soft=True), max_epochs=4)


def test_a_missing_pruning_callback_raises():
    with pytest.raises(ConfigError, match="needs a pruning callback"):
        fit(Normed(), Rewind("3it"))


@pytest.mark.parametrize("first", [True, False])
def test_step_after_the_first_event_raises(first):
    callbacks = [pruning(None), Rewind("9it")]
    module = Normed()
    with pytest.raises(ConfigError, match="to=9it is step 9, but the first event comes at step 8"):
        fit(module, *(reversed(callbacks) if first else callbacks), max_epochs=4)
    assert module.trained == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"to": 500}, "to=500 has no unit"),
        ({"to": "0it", "what": "all"}, "what must be one of finetune, lr, weights, got 'all'"),
        ({"to": "0it", "what": ["momentum"]}, "one of lr, optimizer, weights, got 'momentum'"),
        ({"to": "0it", "what": []}, "rewinds nothing"),
        ({"to": "3it", "reinit": 1}, "write to='0it'"),
        ({"to": 0, "what": "lr", "reinit": 1}, "what='weights'"),
    ],
)
def test_invalid_settings_raise(given, message):
    with pytest.raises(ConfigError, match=message):
        Rewind(**given)


def test_unreachable_step_raises():
    with pytest.raises(ConfigError, match="to=99it is step 99"):
        fit(Normed(), pruning("99it"), max_epochs=4)


@pytest.mark.parametrize("own", [True, False])
def test_a_checkpoint_without_rewind_raises(own, tmp_path):
    made = fit(Net(), pruning(None), max_epochs=4)
    made.save_checkpoint(tmp_path / "plain.ckpt")
    callbacks = [pruning()] if own else [pruning(None), Rewind("3it")]
    with pytest.raises(StateError, match=r"without rewind=|without Rewind"):
        fit(Net(), *callbacks, max_epochs=5, ckpt_path=tmp_path / "plain.ckpt")


def test_resume_with_other_rewound_parts_raises(tmp_path):
    made = fit(Net(), pruning(), max_epochs=4)
    made.save_checkpoint(tmp_path / "end.ckpt")
    with pytest.raises(StateError, match="write the same what="):
        fit(Net(), pruning(Rewind("3it", "lr")), max_epochs=4, ckpt_path=tmp_path / "end.ckpt")
