# SPDX-License-Identifier: MIT
"""A fit that starts with unmasked zeros warns, and keeps them with from_zeros=True."""

import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from tiny_fits import WEIGHTS, Net, fit, weights

from regrow import (
    ChannelPruning,
    ConfigError,
    DynamicSparseTraining,
    LearnedMasks,
    MagnitudePruning,
    OneShot,
    PruneAtInit,
)

ZEROS = 108  # of the 144 weights


def sparse(share=0.75):
    """A network of which NumPy zeroed the smallest weights of each layer."""
    net = Net()
    for weight in weights(net).values():
        values = np.abs(weight.numpy())
        limit = np.sort(values.ravel())[round(share * weight.numel())]
        weight[torch.from_numpy(values < limit)] = 0.0
    return net


def zero_places(net):
    return {name: weight.numpy() == 0 for name, weight in weights(net).items()}


class Revived(Callback):
    """Counts after every batch how many of the first zeros are no longer zero."""

    def __init__(self):
        self.counts = []

    def on_train_start(self, trainer, pl_module):
        self.first = zero_places(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        now = zero_places(pl_module)
        self.counts.append(sum(int((self.first[n] & ~now[n]).sum()) for n in now))


def warned(*args, **kw):
    """The warnings of a fit that speak of zeros."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(*args, **kw)
    return [str(w.message) for w in seen if "exactly zero" in str(w.message)]


@pytest.mark.parametrize(
    "callback",
    [
        lambda: MagnitudePruning(0.9),
        lambda: MagnitudePruning(0.9, soft=True),
        lambda: DynamicSparseTraining(0.9, every="2it"),
        lambda: PruneAtInit(0.9, method="random"),
        lambda: LearnedMasks("str", 0.9),
        lambda: ChannelPruning(0.25, compact=None, example_input=torch.zeros(2, 6)),
    ],
)
def test_zeros_are_counted_in_a_warning(callback):
    net = sparse()
    net.forward = net.body.forward
    [message] = warned(net, callback())
    assert f"{ZEROS} of {WEIGHTS} prunable weights (75.0%) are exactly zero" in message
    assert "from_zeros=True" in message
    assert "body.0.weight" in message


def test_zeros_are_pruned_anew_without_from_zeros():
    revived = Revived()
    warned(sparse(), MagnitudePruning(0.9), revived)
    assert revived.counts[0] > 50


@pytest.mark.parametrize(
    "callback",
    [
        lambda: MagnitudePruning(0.9, from_zeros=True),
        lambda: MagnitudePruning(0.9, from_zeros=True, schedule=OneShot("1ep")),
        lambda: MagnitudePruning(0.9, from_zeros=True, keep_removed=False),
        lambda: MagnitudePruning(0.9, from_zeros=True, keep_removed="moments"),
        lambda: MagnitudePruning(0.9, from_zeros=True, distribution="uniform"),
    ],
)
def test_zeros_stay_zero_with_from_zeros(callback):
    revived, callback = Revived(), callback()
    net = sparse()
    assert not warned(net, callback, revived)
    assert set(revived.counts) == {0}
    assert callback.sparsity == round(0.9 * WEIGHTS) / WEIGHTS


def test_only_nonzero_weights_train():
    """At the present sparsity nothing is pruned and no zero changes."""
    net, callback = sparse(), MagnitudePruning(0.75, from_zeros=True)
    before = zero_places(net)
    fit(net, callback)
    assert all(np.array_equal(before[n], now) for n, now in zero_places(net).items())
    assert not callback.progress.plan


def test_static_sparse_training_starts_from_the_zeros():
    net = sparse()
    before = zero_places(net)
    assert not warned(net, DynamicSparseTraining(0.75, grow="none", from_zeros=True))
    assert all(np.array_equal(before[n], now) for n, now in zero_places(net).items())


def test_dynamic_sparse_training_moves_the_zeros():
    net = sparse()
    before = zero_places(net)
    callback = DynamicSparseTraining(0.75, every="2it", from_zeros=True)
    assert not warned(net, callback)
    assert callback.sparsity == 0.75
    kinds = {entry["kind"] for entry in callback.history}
    assert kinds == {"drop_and_grow"}, "no random masks were drawn"
    assert any(not np.array_equal(before[n], now) for n, now in zero_places(net).items())


def test_more_zeros_than_asked_for_says_which_sparsity_keeps_them():
    """What the message advises is followed literally, and keeps the zeros."""
    net = sparse(0.7)
    with pytest.raises(ConfigError, match="to keep exactly its zeros") as raised:
        fit(net, MagnitudePruning(0.5, from_zeros=True))
    advised = str(raised.value).partition("write sparsity=")[2].partition(" ")[0]
    before = zero_places(net)
    fit(net, MagnitudePruning(float(advised), from_zeros=True))
    assert all(np.array_equal(before[n], now) for n, now in zero_places(net).items())


def test_a_resumed_fit_takes_the_masks_of_the_checkpoint(tmp_path):
    class Save(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    whole, net = MagnitudePruning(0.9, from_zeros=True), sparse()
    fit(net, whole, Save(), max_epochs=4)
    resumed, other = MagnitudePruning(0.9, from_zeros=True), Net()
    assert not warned(other, resumed, max_epochs=4, ckpt_path=tmp_path / "1.ckpt")
    assert resumed.masks.digest() == whole.masks.digest()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    "fits",
    [
        lambda: MagnitudePruning(0.9, schedule=OneShot(0)),
        lambda: DynamicSparseTraining(0.9, every="2it"),
        lambda: MagnitudePruning(0.75, schedule="acdc", every="2it"),
    ],
)
def test_own_zeros_cause_no_warning(fits):
    net, callback = Net(), fits()
    assert not warned(net, callback)
    assert not warned(net, callback)


def test_masks_of_the_first_pruner_cause_no_warning_in_the_second():
    net = sparse()
    first = MagnitudePruning(0.75, from_zeros=True)
    assert not warned(net, first, MagnitudePruning(0.9, include=["body.0"]))


def test_few_zeros_and_zeros_elsewhere_cause_no_warning():
    net = Net()
    with torch.no_grad():
        net.body[0].weight[0, 0] = 0.0  # 1 of 144 is below 1 %
        net.body[0].bias.zero_()
    assert not warned(net, MagnitudePruning(0.9, include=["*.weight", "*.bias"]))


def test_layers_of_zeros_are_named_in_the_warning():
    net = Net()
    torch.nn.init.zeros_(net.body[2].weight)
    [message] = warned(net, MagnitudePruning(0.9))
    assert "48 of 144" in message
    assert "all of body.2.weight" in message


def test_attach_takes_zeros():
    callback = MagnitudePruning(0.9, from_zeros=True)
    callback.attach(sparse())
    assert callback.sparsity == 0.75
