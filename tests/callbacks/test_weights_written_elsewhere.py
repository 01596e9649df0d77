# SPDX-License-Identifier: MIT
"""Pruned weights written by other code after the step are masked again, with a warning."""

import copy
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from tiny_fits import Net, fit, loader, trainer, weights

from regrow import ChannelPruning, MagnitudePruning, OneShot, StateError


def pruning(**kw):
    return MagnitudePruning(0.75, schedule=OneShot(0), **kw)


def live(module, masks):
    """How many pruned weights are not zero: counted here, not by the suite."""
    named = dict(module.named_parameters())
    return sum(int((named[name][~masks[name]] != 0).sum()) for name in masks)


class Observe(Callback):
    """Count nonzero pruned weights in validation, in test and in checkpoints."""

    def __init__(self):
        self.seen = {}

    def count(self, trainer, pl_module, where):
        callback = next(c for c in trainer.callbacks if hasattr(c, "masks"))
        if callback.sparsity:
            self.seen.setdefault(where, []).append(live(pl_module, callback.masks))

    def on_validation_batch_end(self, trainer, pl_module, *_):
        self.count(trainer, pl_module, "validation")

    def on_test_batch_end(self, trainer, pl_module, *_):
        self.count(trainer, pl_module, "test")

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.count(trainer, pl_module, "checkpoint")

    def on_fit_end(self, trainer, pl_module):
        self.count(trainer, pl_module, "end")


class MeanTeacher(Net):
    """Keeps an average of the first layer in the second copy, as a mean teacher does."""

    def __init__(self):
        super().__init__()
        self.teacher = copy.deepcopy(self.body)
        for weight in self.teacher.parameters():
            weight.data = weight.data.flip(0)  # other masks than the student's

    def on_train_batch_end(self, *_):
        for ours, theirs in zip(self.teacher.parameters(), self.body.parameters(), strict=True):
            ours.data.mul_(0.9).add_(theirs.data, alpha=0.1)


class NoisyEpochEnd(Net):
    def on_train_epoch_end(self):
        for weight in weights(self).values():
            weight.add_(0.01)


class NoisyValidationStart(Net):
    def on_validation_start(self):
        for weight in weights(self).values():
            weight.add_(0.01)


class NoisyValidationEpochStart(Net):
    def on_validation_epoch_start(self):
        for weight in weights(self).values():
            weight.add_(0.01)


class SwapAverageIn(Callback):
    """A user's own exponential average, swapped in for validation and out again."""

    def __init__(self):
        self.average = None

    def on_train_batch_end(self, trainer, pl_module, *_):
        now = {n: p.detach().clone() for n, p in pl_module.named_parameters()}
        if self.average is None:
            self.average = {n: p + 0.1 for n, p in now.items()}
        for name, value in now.items():
            self.average[name].mul_(0.9).add_(value, alpha=0.1)

    def exchange(self, pl_module):
        for name, parameter in pl_module.named_parameters():
            parameter.data, self.average[name] = self.average[name], parameter.data

    def on_validation_epoch_start(self, trainer, pl_module):
        if self.average is not None:
            self.exchange(pl_module)

    def on_validation_epoch_end(self, trainer, pl_module):
        if self.average is not None:
            self.exchange(pl_module)


WRITERS = {
    "mean teacher": (MeanTeacher, "MeanTeacher.on_train_batch_end"),
    "noise at the epoch's end": (NoisyEpochEnd, "NoisyEpochEnd.on_train_epoch_end"),
    "noise at validation's start": (
        NoisyValidationStart,
        "NoisyValidationStart.on_validation_start",
    ),
    "noise at validation's epoch start": (
        NoisyValidationEpochStart,
        "NoisyValidationEpochStart.on_validation_epoch_start",
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_pruned_weights_are_zero_at_validation_saving_and_the_end(kind, tmp_path):
    module, named = WRITERS[kind]
    observe = Observe()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = fit(module(), pruning(), observe, val=loader(), max_epochs=3)
        made.save_checkpoint(tmp_path / "a.ckpt")
        made.test(made.lightning_module, loader(), verbose=False)
    texts = [str(w.message) for w in caught if "written" in str(w.message)]
    assert len(texts) == 1  # said once, not at every batch
    assert named in texts[0]
    assert {*observe.seen} == {"validation", "test", "checkpoint", "end"}
    assert not any(any(counts) for counts in observe.seen.values()), observe.seen


@pytest.mark.parametrize("swap_first", [True, False])
def test_averages_swapped_in_by_a_custom_callback_are_masked(swap_first):
    swap, masks, observe = SwapAverageIn(), pruning(), Observe()
    order = (swap, masks) if swap_first else (masks, swap)
    with pytest.warns(UserWarning, match="SwapAverageIn"):
        fit(Net(), *order, observe, val=loader(), max_epochs=3)
    assert observe.seen["validation"]
    assert not any(observe.seen["validation"])


@pytest.mark.parametrize("kind", WRITERS)
def test_checkpoint_saved_after_other_code_wrote_weights_can_be_resumed(kind, tmp_path):
    module, _ = WRITERS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(module(), pruning(), max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
        resumed = pruning()
        made = trainer(resumed, max_epochs=2)
        made.fit(module(), loader(), ckpt_path=tmp_path / "a.ckpt")
    assert resumed.sparsity == pytest.approx(0.75, abs=0.01)
    assert live(made.lightning_module, resumed.masks) == 0


class Assigns(Callback):
    """Loads dense weights with assign=True within the fit: every parameter is a new object."""

    def __init__(self, at=1):
        self.at = at

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.at:
            dense = {n: torch.full_like(t, 0.5) for n, t in pl_module.state_dict().items()}
            pl_module.load_state_dict(dense, assign=True)


class ReplacesHead(Callback):
    def __init__(self, out=3):
        self.out = out

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.body[2] = torch.nn.Linear(16, self.out)


@pytest.mark.parametrize("replace", [Assigns, ReplacesHead])
def test_replaced_parameters_are_detected_and_masked(replace, tmp_path):
    masks, observe = pruning(), Observe()
    with pytest.warns(UserWarning, match=r"body\.2\.weight.*replaced.*no optimizer trains"):
        made = fit(Net(), masks, replace(), observe, val=loader(), max_epochs=3)
    assert all(count == 0 for counts in observe.seen.values() for count in counts)
    for target in masks.pruner.targets:
        assert dict(made.lightning_module.named_parameters())[target.name] is target.parameter
    made.save_checkpoint(tmp_path / "a.ckpt")
    resumed = pruning()
    fit(Net(), resumed, max_epochs=4, ckpt_path=tmp_path / "a.ckpt")
    assert resumed.sparsity == masks.sparsity


def test_parameters_replaced_with_another_shape_raise_with_the_name():
    with pytest.raises(StateError, match=r"body\.2\.weight"):
        fit(Net(), pruning(), ReplacesHead(out=5), max_epochs=3)


def test_parameters_replaced_before_the_event_are_detected():
    masks = MagnitudePruning(0.75, schedule=OneShot("2ep"))
    with pytest.warns(UserWarning, match="replaced"):
        made = fit(Net(), masks, Assigns(), max_epochs=4)
    assert live(made.lightning_module, masks.masks) == 0
    assert masks.sparsity == 0.75


class NoisyForward(NoisyValidationStart):
    def forward(self, inputs):
        return self.body(inputs)


def test_channel_masks_are_restored():
    masks = ChannelPruning(0.5, schedule=OneShot(0), example_input=torch.zeros(2, 6))
    observe = Observe()
    with pytest.warns(UserWarning, match="written"):
        fit(NoisyForward(), masks, observe, val=loader(), max_epochs=3)
    assert not any(any(counts) for counts in observe.seen.values())


@pytest.mark.parametrize("kw", [{}, {"soft": True}, {"keep_removed": "moments"}])
def test_ordinary_fit_causes_no_warning(kw):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*written.*")
        warnings.filterwarnings("error", ".*replaced.*")
        masks = pruning(**kw)
        made = fit(Net(), masks, val=loader(), max_epochs=3)
    assert masks.sparsity == 0.75
    assert live(made.lightning_module, masks.masks) == 0
