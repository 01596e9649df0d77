# SPDX-License-Identifier: MIT
"""Averages with channel pruning are masked, cut, saved and loaded in the same shapes."""

import numpy as np
import pytest
import torch
from averaging_reference import Mirror, arrays, copy_of, exponential, placed, same
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from tiny_channel_fits import PLACES, Net, left, output, pruning, run, sizes
from tiny_fits import copied, equal, loader, read, trainer

from regrow import ChannelsMixin

ORDERS = pytest.mark.parametrize("order", ["before", "behind"])
COMPACT = pytest.mark.parametrize("compact", ["end", "event", None])


class Loadable(ChannelsMixin, Net):
    pass


class Slices(Mirror):
    """Cut the average by hand: the zero rows and the matching columns."""

    def on_compact(self, trainer, pl_module, plan):
        kept = {layer: self.average[f"{layer}.weight"].any(1) for layer in PLACES}
        for layer, places in PLACES.items():
            for name, dim in places.items():
                self.average[name] = np.compress(kept[layer], self.average[name], dim)
        self.note(pl_module)
        self.compare()

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        saved = {name: checkpoint["state_dict"][name].numpy() for name in self.average}
        assert same(saved, self.average)
        self.saved += 1


@ORDERS
@COMPACT
def test_the_average_equals_a_numpy_reference(compact, order, tmp_path):
    averaging, module, channels = exponential(), Net(), pruning(compact=compact)
    mirror = Slices(averaging)
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    made = run(
        module, *placed(order, averaging, channels), mirror, saves, enable_checkpointing=True
    )
    assert mirror.events == 3
    assert mirror.looks == 6
    assert mirror.count == 24
    assert left(module) == (20 if compact is None else 8)
    assert same(arrays(module), mirror.average)
    made.save_checkpoint(tmp_path / "end.ckpt")
    assert mirror.saved == 7
    assert equal(read(tmp_path / "end.ckpt")["state_dict"], copied(module))


def test_cut_model_computes_what_the_masked_average_did():
    outputs = []
    for compact in (None, "end"):
        module = Net()
        run(module, exponential(), pruning(compact=compact))
        outputs.append(output(module))
    torch.testing.assert_close(outputs[1], outputs[0])


def test_regrown_channels_start_at_their_values_in_the_average():
    averaging, module, channels = exponential(), Net(), pruning(compact=None)
    mirror = Mirror(averaging)

    class Back(Mirror):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 14:
                channels.unprune()

    run(module, averaging, channels, mirror, Back(averaging))
    assert mirror.back > 20
    assert same(arrays(module), mirror.average)


@pytest.mark.parametrize("average", ["ema", "swa"])
@pytest.mark.parametrize("compact", ["end", "event"])
def test_resumed_run_is_the_uninterrupted_run(compact, average, tmp_path):
    def parts(seed=0):
        averaging = exponential()
        if average == "swa":
            averaging = StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_epochs=1)
        return Net(seed=seed), averaging, pruning(compact=compact)

    module, averaging, channels = parts()
    saves = ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False
    )
    run(module, averaging, channels, saves, enable_checkpointing=True)
    assert left(module) == 8
    for cut in (2, 13) if average == "ema" else (2, 18):  # not while SWA anneals
        other, again, channels = parts(1)
        run(other, again, channels, seed=1, ckpt_path=tmp_path / f"{cut}.ckpt")
        assert sizes(other) == sizes(module)
        assert equal(copied(other), copied(module)), cut
        assert equal(copied(copy_of(again)), copied(copy_of(averaging))), cut


@pytest.mark.parametrize("recalibrate", [0, 2])
@pytest.mark.parametrize("compact", ["end", "event"])
def test_saved_model_loads_with_and_without_averaging(compact, recalibrate, tmp_path):
    module, channels = Loadable(), pruning(compact=compact, recalibrate=recalibrate)
    made = run(module, exponential(), channels)
    made.save_checkpoint(tmp_path / "end.ckpt")
    loaded = Loadable.load_from_checkpoint(tmp_path / "end.ckpt")
    assert sizes(loaded) == sizes(module)
    assert torch.equal(output(loaded), output(module))
    for more in ((), (exponential(),)):
        other = Net(seed=1)
        job = trainer(*more, pruning(compact=compact, recalibrate=recalibrate))
        job.test(other, loader(2), ckpt_path=tmp_path / "end.ckpt")
        assert torch.equal(output(other), output(module))


def test_model_expanded_after_the_fit_is_saved_full_size(tmp_path):
    module, channels = Net(), pruning()
    made = run(module, exponential(), channels)
    assert left(module) == 8
    channels.expand()
    assert left(module) == 20
    made.save_checkpoint(tmp_path / "end.ckpt")
    assert equal(read(tmp_path / "end.ckpt")["state_dict"], copied(module))


def test_model_cut_after_the_fit_is_saved_small(tmp_path):
    module, channels = Loadable(), pruning(compact=None)
    made = run(module, exponential(), channels)
    channels.compact()
    assert left(module) == 8
    made.save_checkpoint(tmp_path / "end.ckpt")
    assert equal(read(tmp_path / "end.ckpt")["state_dict"], copied(module))
