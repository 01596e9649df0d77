# SPDX-License-Identifier: MIT
"""Checkpoints of averaged weights resume exactly and can be tested."""

from functools import partial

import gloo_ranks
import pytest
import torch
from averaging_reference import averages, copy_of, exponential, placed, zeros_of
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from rewinding_fits import ROUNDS, Normed
from tiny_fits import ADAM, WEIGHTS, Net, copied, equal, fit, loader, read, samples, trainer

from regrow import (
    AccuracyBudget,
    Cubic,
    DynamicSparseTraining,
    MagnitudePruning,
    Regrow,
    SparseModelCheckpoint,
    Table,
)
from regrow.data.tensor_loader import BatchLoader

EPOCHS = 5
SWA = partial(
    StochasticWeightAveraging, swa_lrs=0.05, swa_epoch_start=2, annealing_epochs=1, device=None
)
AVERAGES = {"ema": exponential, "mean": lambda **kw: averages().WeightAveraging(**kw), "swa": SWA}
WAYS = {
    "gradual": lambda: (MagnitudePruning(0.8, schedule=Cubic("3it", "28it", "5it")),),
    "soft": lambda: (MagnitudePruning(0.8, schedule=Cubic("3it", "28it", "5it"), soft=True),),
    "rigl": lambda: (DynamicSparseTraining(0.7, every="3it", end=0.9, init="he"),),
    "regrow": lambda: (
        MagnitudePruning(schedule=Table({"3it": 0.5, "25it": 0.75})),
        Regrow(at=["9it", "22it"], fraction=0.4),
    ),
    "budget": lambda: (
        MagnitudePruning(schedule=Table({"1ep": 0.3, "18it": 0.8})),
        AccuracyBudget("val/loss", 0.01, mode="min", recover="4it"),
    ),
    "rewind": lambda: (MagnitudePruning(0.875, schedule=ROUNDS(), rewind="3it"),),
}


def shuffled():
    return BatchLoader(*samples().tensors, batch_size=4, shuffle=True, seed=3)


def run(module, *callbacks, **kw):
    return fit(module, *callbacks, data=shuffled(), val=loader(2), max_epochs=EPOCHS, **kw)


def everywhere(folder, **kw):
    return ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=1, save_top_k=-1,
        auto_insert_metric_name=False, **kw,
    )  # fmt: skip


def epochs(folder):
    return ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)


def ended(module, averaging, made):
    made.save_checkpoint("end.ckpt")
    # of torch before 2.9, the state of SWA's schedule holds a function
    saved = torch.load("end.ckpt", weights_only=False)
    kept = [copied(module), dict(copy_of(averaging).state_dict()), saved["optimizer_states"]]
    return kept, saved.get("averaging_state"), saved["callbacks"]


@pytest.mark.parametrize(
    ("average", "way", "order"),
    [
        *(("ema", way, "before") for way in ("gradual", "regrow", "budget", "rewind")),
        *(pytest.param("ema", way, "before", marks=pytest.mark.slow) for way in ("soft", "rigl")),
        *(("mean", "gradual", "before"), ("swa", "gradual", "before"), ("ema", "rigl", "behind")),
        pytest.param("swa", "rigl", "behind", marks=pytest.mark.slow),
    ],
)
def test_resumed_run_is_the_uninterrupted_run(average, way, order, tmp_path):
    """From an epoch's middle, from its end, and from right before and after events."""

    def parts():
        averaging, pruning = AVERAGES[average](), WAYS[way]()
        module = Normed(ADAM) if way == "rewind" else Net(ADAM)
        return module, averaging, placed(order, averaging, *pruning)

    module, averaging, callbacks = parts()
    saves = everywhere(tmp_path / "all"), epochs(tmp_path / "all")
    states = ended(module, averaging, run(module, *callbacks, *saves, enable_checkpointing=True))
    assert zeros_of(module) > WEIGHTS // 4
    for cut in (5, "epoch=1", 27):
        other, again, callbacks = parts()
        made = run(other, *callbacks, ckpt_path=tmp_path / "all" / f"{cut}.ckpt")
        kept, seen, held = ended(other, again, made)
        assert equal(kept, states[0]), cut
        assert equal(seen, states[1])
        for key, state in held.items():
            for swa in (state, states[2][key]):  # Lightning makes it anew one epoch behind
                swa.pop("scheduler_state", None)
            assert equal(state, states[2][key]), (cut, key)


class Tested(Callback):
    """Check that the tested weights are sparse and those of the checkpoint."""

    def __init__(self, expected):
        self.expected, self.seen = expected, 0

    def on_test_batch_start(self, trainer, pl_module, *_):
        assert equal(copied(pl_module), self.expected)
        self.seen += 1


@pytest.mark.parametrize("beside", [True, False], ids=["with the average", "without it"])
def test_best_checkpoint_is_the_masked_average(beside, tmp_path):
    best = SparseModelCheckpoint(tmp_path, filename="best", monitor="val/loss")
    pruning = MagnitudePruning(0.8, schedule=Cubic("3it", "28it", "5it"))
    run(Net(ADAM), exponential(), pruning, best, enable_checkpointing=True)
    saved = read(best.best_model_path)
    assert not equal(saved["state_dict"], saved["current_model_state"])
    tested, module = Tested(dict(saved["state_dict"])), Net(seed=1)
    again = MagnitudePruning(0.8, schedule=Cubic("3it", "28it", "5it"))
    more = (exponential(),) if beside else ()
    job = trainer(*more, again, tested)
    job.test(module, loader(2), ckpt_path=best.best_model_path)
    assert tested.seen == 2
    assert zeros_of(module) == round(0.8 * WEIGHTS)
    job.validate(module, loader(2), ckpt_path=best.best_model_path)
    assert job.callback_metrics["val/loss"].item() == pytest.approx(best.best_model_score.item())
    plain = Net(seed=2)
    plain.load_state_dict(saved["state_dict"])
    again.attach(plain, best.best_model_path)
    assert zeros_of(plain) == round(again.sparsity * WEIGHTS)


def test_weights_only_checkpoint_is_sparse(tmp_path):
    """Lightning then saves the current weights, without calling callbacks."""
    saves = everywhere(tmp_path, save_weights_only=True)
    pruning = MagnitudePruning(0.8, schedule=Cubic("3it", "28it", "5it"))
    run(Net(ADAM), exponential(), pruning, saves, enable_checkpointing=True)
    other = Net(seed=1)
    other.load_state_dict(read(tmp_path / "40.ckpt")["state_dict"])
    assert zeros_of(other) == round(0.8 * WEIGHTS)


def test_averaging_added_at_a_resume_starts_sparse(tmp_path):
    saves = everywhere(tmp_path)
    ways = partial(MagnitudePruning, 0.8, schedule=Cubic("3it", "28it", "5it"))
    run(Net(ADAM), ways(), saves, enable_checkpointing=True)
    module, averaging = Net(ADAM), exponential()
    run(module, averaging, ways(), ckpt_path=tmp_path / "21.ckpt")
    assert zeros_of(module) == zeros_of(copy_of(averaging)) == round(0.8 * WEIGHTS)


@pytest.mark.guard
@pytest.mark.slow
def test_ranks_have_equal_averages(tmp_path):
    """Under DDP each rank has an average of its own: they are the same, and sparse."""
    program = """
from averaging_reference import Mirror, arrays, exponential, same, zeros_of
from regrow import DynamicSparseTraining
averaging, module = exponential(), Net(ADAM)
mirror = Mirror(averaging)
made = job(averaging, DynamicSparseTraining(0.7, every="2it", end=1.0, init="he"), mirror)
made.fit(module, loader(), loader(4))
assert mirror.events > 2 and mirror.back and mirror.looks
assert same(arrays(module), mirror.average)
said = {"state": state(module), "zeros": zeros_of(module)}
"""
    one, other = gloo_ranks.run(program, tmp_path)
    assert equal(one, other)
    assert one["zeros"] == round(0.7 * WEIGHTS)
    assert all(torch.isfinite(tensor).all() for tensor in one["state"].values())


@pytest.mark.guard
@pytest.mark.slow
def test_sharded_parameters_raise(tmp_path):
    program = """
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from lightning.pytorch.callbacks import StochasticWeightAveraging
from regrow import MagnitudePruning, OneShot
from regrow.utils.errors import ConfigError

class Sharded(Net):
    def configure_model(self):
        fully_shard(self, mesh=self.device_mesh["data_parallel"])

module = Sharded(ADAM)
pruning = MagnitudePruning(0.5, schedule=OneShot("1it"), keep_removed=False)
made = trainer(StochasticWeightAveraging(0.1), pruning, devices=1, num_nodes=WORLD,
               strategy=ModelParallelStrategy(process_group_backend="gloo"))
try:
    made.fit(module, loader())
except ConfigError as error:
    said = {"error": str(error), "trained": module.trained}
"""
    for said in gloo_ranks.run(program, tmp_path):
        assert "StochasticWeightAveraging averages a whole copy" in said["error"]
        assert said["trained"] == 0
