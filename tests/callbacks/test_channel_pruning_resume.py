# SPDX-License-Identifier: MIT
"""A resumed run is the uninterrupted run, bit for bit, before, between and after cuts."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from slow_cases import mark_rest_slow
from tiny_channel_fits import Net, left, pruning, run, sizes
from tiny_fits import ADAM, equal, loader, read, trainer

from regrow import Exponential, SparseModelCheckpoint
from regrow.utils.errors import ConfigError, StateError

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
QUICK = {"compact": "event", "schedule": "one_shot", "begin": "3it"}


def everywhere(folder):
    return ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=1, save_top_k=-1,
        auto_insert_metric_name=False,
    )  # fmt: skip


def ended(module, channels, made):
    made.save_checkpoint("end.ckpt")
    saved = read("end.ckpt")
    own = saved["callbacks"][channels.state_key]
    kept = {"weights": saved["state_dict"], "own": own, "optimizers": saved["optimizer_states"]}
    return kept | {"plan": saved.get("regrow_channels")}


def timer(model):
    """Milliseconds that depend only on sizes."""
    a, b = sizes(model)
    return 1.0 + (6 * a + a * b + b * 3) / 100


CASES = {
    "end": (ADAM, {"compact": "end"}),
    "event": (ADAM, {"compact": "event"}),
    "momentum": (SGD, {"compact": "event", "of": "macs"}),
    "taylor": (SGD, {"compact": "event", "criterion": "taylor"}),
    "fisher": (SGD, {"compact": "event", "criterion": "fisher"}),
    "activation": (SGD, {"compact": "event", "criterion": "activation"}),
    "latency": (ADAM, {"compact": "event", "of": "latency", "timer": timer, "sparsity": 0.25,
                       "schedule": "linear", "begin": "3it", "end": "18it", "every": "5it"}),
    "milliseconds": (ADAM, {"of": "latency", "timer": timer, "latency_ms": 2.0, "sparsity": None,
                            "schedule": "linear", "begin": "3it", "end": "18it", "every": "5it"}),
    "rewind": (ADAM, {"compact": "event", "rewind": "2it", "sparsity": 0.64,
                      "schedule": Exponential(0.4, every="8it", begin="8it")}),
}  # fmt: skip


def made(case):
    make, kw = CASES[case]
    kw = dict(kw)
    if kw.get("sparsity", 0.6) is None:
        from regrow import ChannelPruning

        del kw["sparsity"]
        return make, ChannelPruning(round_to=1, **kw)
    return make, pruning(**kw)


# before the first event, at it, between two, at an epoch's end, after the last
OFTEN = ("end", "event", "milliseconds", "rewind")


@pytest.mark.parametrize("case", mark_rest_slow(CASES, OFTEN))
def test_resumed_run_is_the_uninterrupted_run(case, tmp_path):
    make, channels = made(case)
    module = Net(make)
    saves = everywhere(tmp_path / "cut")
    whole = ended(module, channels, run(module, channels, saves, enable_checkpointing=True))
    assert left(module) < 20
    for cut in (2, 3, 6, 16, 22) if case in ("end", "event") else (6, 16):
        make, again = made(case)
        other = Net(make, 1)
        job = run(other, again, seed=1, ckpt_path=tmp_path / "cut" / f"{cut}.ckpt")
        resumed = ended(other, again, job)
        assert sizes(other) == sizes(module)
        for what in whole:
            assert equal(whole[what], resumed[what]), f"{what}, cut at {cut}"


def test_the_same_callback_resumes_from_larger_shapes(tmp_path):
    _, channels = made("event")
    module = Net()
    saves = everywhere(tmp_path)
    whole = ended(module, channels, run(module, channels, saves, enable_checkpointing=True))
    for cut in (2, 12):
        job = run(module, channels, seed=1, ckpt_path=tmp_path / f"{cut}.ckpt")
        assert all(equal(value, ended(module, channels, job)[k]) for k, value in whole.items())


def test_resuming_a_finished_run_cuts_it(tmp_path):
    saves = ModelCheckpoint(tmp_path, save_last=True)
    module = Net()
    run(module, pruning(compact="end"), saves, enable_checkpointing=True)
    other, again = Net(seed=1), pruning(compact="end")
    run(other, again, ckpt_path=tmp_path / "last.ckpt")
    assert again.sparsity == 0.6
    assert sizes(other) == sizes(module)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), module.parameters()))  # noqa: B905


@pytest.mark.parametrize("compact", ["end", "event"])
def test_best_checkpoint_with_other_shapes_loads(compact, tmp_path):
    channels, module = pruning(compact=compact), Net()
    early = ModelCheckpoint(tmp_path / "early", filename="a", every_n_train_steps=5)
    best = SparseModelCheckpoint(tmp_path / "best", monitor="val/loss")
    job = run(module, channels, early, best, enable_checkpointing=True)
    small = left(module)
    assert small == 8
    values = {}
    for name, path in (("early", tmp_path / "early" / "a.ckpt"), ("best", best.best_model_path)):
        for kind in ("validate", "test", "predict"):
            outcome = getattr(job, kind)(module, loader(2), ckpt_path=str(path))
            values[name, kind, "same"] = outcome
            fresh, other = Net(seed=1), pruning(compact=compact)
            if kind == "test":
                outcome = trainer(other).test(fresh, loader(2), ckpt_path=str(path))
                [cut], [masked] = values[name, kind, "same"], outcome
                assert cut == pytest.approx(masked, rel=1e-6)
                assert sizes(fresh) == ((12, 8) if compact == "end" else sizes(module))
                assert other.sparsity == channels.sparsity
        saved = read(path)["state_dict"]
        for n, t in module.state_dict().items():
            assert torch.equal(channels.plan.slice(n, saved[n]), t)
        assert left(module) == 8


def test_plain_pytorch_loads_the_small_model(tmp_path):
    from lightning.pytorch import LightningModule

    from regrow import ChannelsMixin, load

    class Mixed(ChannelsMixin, Net):
        pass

    assert issubclass(Mixed, LightningModule)
    channels, module = pruning(), Net()
    job = run(module, channels)
    job.save_checkpoint(tmp_path / "small.ckpt")
    small = load(Net, tmp_path / "small.ckpt")
    mixed = Mixed.load_from_checkpoint(tmp_path / "small.ckpt", map_location="cpu")
    for other in (small, mixed):
        assert sizes(other) == sizes(module)
        assert equal(dict(other.state_dict()), dict(module.state_dict()))
    whole = pruning(compact=None)
    run(Net(), whole).save_checkpoint(tmp_path / "whole.ckpt")
    assert sizes(Mixed.load_from_checkpoint(tmp_path / "whole.ckpt")) == (12, 8)


def test_attach_works_outside_a_fit(tmp_path):
    channels, module = pruning(compact="event"), Net()
    run(module, channels).save_checkpoint(tmp_path / "a.ckpt")
    again, other = pruning(compact="event", example_input=torch.zeros(2, 6)), Net(seed=1)
    again.attach(other, tmp_path / "a.ckpt")
    assert sizes(other) == sizes(module)
    again.expand()
    assert sizes(other) == (12, 8)
    with pytest.raises(ConfigError, match=r"write example_input=torch\.zeros"):
        pruning().attach(Net())


def test_expand_during_a_fit_raises():
    class Expands(Callback):
        def on_train_batch_start(self, trainer, module, *_):
            if trainer.global_step == 5:
                channels.expand()

    channels = pruning(**QUICK)
    with pytest.raises(StateError, match=r"call expand\(\) after it"):
        run(Net(), channels, Expands())


def test_taking_an_example_batch_does_not_move_the_loader():
    """Also a loader's own generator: the order of batches is that of a run without."""
    from tiny_fits import fit, samples
    from torch.utils.data import DataLoader

    class Seen(Callback):
        def __init__(self):
            self.batches = []

        def on_train_batch_start(self, trainer, module, batch, *_):
            self.batches.append(batch[0])

    seen = [Seen(), Seen()]
    for watch, more in zip(seen, ([], [pruning(0.3, schedule="one_shot")]), strict=True):
        data = DataLoader(samples(), 4, shuffle=True, generator=torch.Generator().manual_seed(7))
        torch.manual_seed(3)
        fit(Net(), watch, *more, data=data)
    assert equal(seen[0].batches, seen[1].batches)
    assert Trainer is not None
